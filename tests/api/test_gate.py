"""Who may work when: places, waiting, once for all, and nothing for those who have left."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from typing import cast

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from acorn_svc.api.gate import BoundedStream, Flights, Gate, GoOn, Places, Steps, alone
from acorn_svc.errors import NotFound, Unavailable
from acorn_svc.jobs.process import NICENESS

PATIENCE_SECONDS = 10


def gate_of(
    width: int = 1,
    queue: int = 9,
    patience: float = 60,
    seconds: float = 60,
    crowd_patience: float = 60,
) -> Gate:
    return Gate(width, queue, patience, seconds, "render_seconds", crowd_patience)


class Client:
    """The one thing about a request that is asked for: whether something comes of it."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()

    async def receive(self) -> Message:
        await self.leaves.wait()
        return {"type": "http.disconnect"}


def request_of(client: Client) -> Request:
    return cast(Request, client)


async def happens(condition: Callable[[], bool]) -> None:
    """Let everybody else work until something is so."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), PATIENCE_SECONDS)

    asyncio.run(bounded())


def test_the_gate_lets_only_so_many_in_at_once() -> None:
    running, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2)

    def work(_: GoOn) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait(PATIENCE_SECONDS)
        with lock:
            running -= 1

    async def main() -> None:
        gate = gate_of(width=2)
        await asyncio.gather(*(gate.run(work) for _ in range(8)))

    run(main)
    assert most == 2


def test_the_gate_refuses_whom_it_cannot_seat() -> None:
    release = threading.Event()

    async def main() -> None:
        gate = gate_of(queue=1)
        working = asyncio.create_task(gate.run(lambda _: release.wait(PATIENCE_SECONDS)))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(gate.run(lambda _: 7))
        await happens(lambda: gate.waiting == 1)
        try:
            with pytest.raises(Unavailable) as caught:
                await gate.run(lambda _: None)
        finally:
            release.set()
        assert (caught.value.limit, caught.value.value) == ("render_queue", 1)
        assert await waiting == 7
        await working

    run(main)


def test_in_a_crowd_the_queue_is_short_until_nobody_waits() -> None:
    async def main() -> None:
        gate = gate_of(queue=3, crowd_patience=1e-9)
        ends = [threading.Event() for _ in range(4)]
        crowd = [asyncio.create_task(gate.run(lambda _, end=end: end.wait(PATIENCE_SECONDS))) for end in ends]
        await happens(lambda: gate.waiting == 3)
        assert not gate.has_room()
        for number, room in enumerate((False, False, True)):  # beside two, one, nobody who waits
            ends[number].set()
            await crowd[number]
            await happens(lambda waiting=2 - number: gate.waiting == waiting)
            assert gate.has_room() == room
        ends[3].set()
        await crowd[3]

    run(main)


def test_where_a_crowd_has_patience_the_queue_stays_as_long() -> None:
    release = threading.Event()

    async def main() -> None:
        gate = gate_of(queue=2, crowd_patience=60)
        crowd = [asyncio.create_task(gate.run(lambda _: release.wait(PATIENCE_SECONDS))) for _ in range(3)]
        await happens(lambda: gate.waiting == 2)
        assert not gate.has_room()
        crowd.pop().cancel()
        await happens(lambda: gate.waiting == 1)
        assert gate.has_room()
        release.set()
        await asyncio.gather(*crowd)

    run(main)


def test_what_work_leaves_to_be_made_later_goes_on_after_its_end() -> None:
    async def main() -> None:
        def work(go_on: GoOn) -> Iterator[int]:
            return (number for number in range(3) if go_on() is None)

        assert list(await gate_of().run(work)) == [0, 1, 2]

    run(main)


def test_a_thread_goes_on_while_the_event_loop_is_busy() -> None:
    second = threading.Event()

    async def main() -> None:
        gate = gate_of(width=1)
        both = [
            asyncio.create_task(gate.run(lambda _: None)),
            asyncio.create_task(gate.run(lambda _: second.set())),
        ]
        await asyncio.sleep(0)
        assert second.wait(PATIENCE_SECONDS / 2)  # nothing else happens in the loop meanwhile
        await asyncio.gather(*both)

    run(main)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are ranked on Linux only")
def test_work_leaves_the_processor_to_the_event_loop() -> None:
    def niceness(_go_on: GoOn) -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    async def main() -> None:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        assert await gate_of().run(niceness) == max(before, NICENESS)
        assert os.getpriority(os.PRIO_PROCESS, 0) == before

    run(main)


def test_the_gate_gives_up_waiting_and_stays_usable() -> None:
    release = threading.Event()

    async def main() -> None:
        gate = gate_of(patience=0.01)
        working = asyncio.create_task(gate.run(lambda _: release.wait(PATIENCE_SECONDS)))
        await asyncio.sleep(0)
        try:
            with pytest.raises(Unavailable) as caught:
                await gate.run(lambda _: None)
        finally:
            release.set()
        assert caught.value.limit == "render_wait_seconds"
        await working
        assert await gate.run(lambda _: 7) == 7

    run(main)


def test_whoever_leaves_the_queue_makes_room_at_once() -> None:
    release = threading.Event()

    async def main() -> None:
        gate = gate_of(queue=1)
        working = asyncio.create_task(gate.run(lambda _: release.wait(PATIENCE_SECONDS)))
        await asyncio.sleep(0)
        client = Client()
        rendered: list[int] = []
        waiting = asyncio.create_task(alone(request_of(client), gate.run(lambda _: rendered.append(1))))
        await happens(lambda: gate.waiting == 1)
        client.leaves.set()
        with pytest.raises(Unavailable):
            await waiting
        await happens(lambda: gate.waiting == 0)
        release.set()
        await working
        assert await gate.run(lambda _: 7) == 7
        assert rendered == []

    run(main)


def test_work_ends_when_its_client_leaves() -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(go_on: GoOn) -> None:
        try:
            while True:
                go_on()
                begun.set()
                time.sleep(0.001)
        finally:
            ended.set()

    async def main() -> None:
        gate, client = gate_of(), Client()
        working = asyncio.create_task(alone(request_of(client), gate.run(work)))
        await happens(begun.is_set)
        client.leaves.set()
        with pytest.raises(Unavailable):
            await working
        await happens(ended.is_set)
        assert await gate.run(lambda _: 7) == 7

    run(main)


def test_a_place_is_taken_until_the_work_ends_also_when_nobody_waits_for_it() -> None:
    release = threading.Event()

    async def main() -> None:
        gate = gate_of()
        working = asyncio.create_task(gate.run(lambda _: release.wait(PATIENCE_SECONDS)))
        await asyncio.sleep(0.01)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        after = asyncio.create_task(gate.run(lambda _: release.is_set()))
        await happens(lambda: gate.waiting == 1)
        release.set()
        assert await after

    run(main)


def test_work_that_takes_too_long_ends_and_says_why() -> None:
    def endless(go_on: GoOn) -> None:
        while True:
            go_on()

    async def main() -> None:
        gate = gate_of(seconds=0.01)
        with pytest.raises(Unavailable) as caught:
            await gate.run(endless)
        assert (caught.value.limit, caught.value.value) == ("render_seconds", 0.01)
        assert await gate.run(lambda _: 7) == 7

    run(main)


def test_an_error_in_the_work_frees_its_place() -> None:
    async def main() -> None:
        gate = gate_of()
        with pytest.raises(ZeroDivisionError):
            await gate.run(lambda _: 1 / 0)
        assert await gate.run(lambda _: 7) == 7

    run(main)


def test_steps_yield_everything_and_stop_with_their_consumer() -> None:
    closed = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    async def main() -> None:
        gate = gate_of()
        assert [number async for number in gate.steps(9, iter(range(5)))] == [9, 0, 1, 2, 3, 4]
        steps = gate.steps(9, numbers())
        assert [await anext(steps), await anext(steps)] == [9, 0]
        # Between two steps the only place is free.
        assert await gate.run(lambda _: 7) == 7
        await steps.aclose()
        assert closed == [True]

    run(main)


def test_a_step_that_is_cancelled_is_closed_when_it_has_ended() -> None:
    release, closed = threading.Event(), threading.Event()

    def numbers() -> Iterator[int]:
        try:
            yield 0
            release.wait(PATIENCE_SECONDS)
            yield 1
        finally:
            closed.set()

    async def consume(steps: Steps[int]) -> None:
        async with aclosing(steps):
            async for _ in steps:
                pass

    async def main() -> None:
        gate = gate_of()
        consumer = asyncio.create_task(consume(gate.steps(9, numbers())))
        await asyncio.sleep(0.01)
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        assert not closed.is_set()
        release.set()
        await happens(closed.is_set)
        assert await gate.run(lambda _: 7) == 7

    run(main)


def test_a_stream_that_ends_before_its_second_item_closes_what_makes_them() -> None:
    closed = []

    def pieces() -> Iterator[bytes]:
        try:
            yield b"first"
            yield b"second"
        finally:
            closed.append(True)

    async def nothing() -> Message:
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def leave(_message: Message) -> None:
        raise OSError("the client has gone")

    async def main() -> None:
        making = pieces()
        steps = gate_of().steps(next(making), making)
        with suppress(OSError, ClientDisconnect):
            await BoundedStream(Places(1, "max_streams"), steps, {}, "text/plain")(
                {"type": "http"}, nothing, leave
            )
        assert closed == [True]

    run(main)


def test_many_who_ask_for_the_same_get_it_from_one() -> None:
    made = 0

    async def main() -> None:
        flights: Flights[int] = Flights()
        go = asyncio.Event()

        async def work() -> int:
            nonlocal made
            made += 1
            await go.wait()
            return 7

        asking = [asyncio.create_task(flights.join(request_of(Client()), "key", work)) for _ in range(100)]
        await happens(lambda: "key" in flights)
        go.set()
        assert await asyncio.gather(*asking) == [7] * 100
        assert "key" not in flights

    run(main)
    assert made == 1


def test_an_error_reaches_all_who_ask_and_is_forgotten() -> None:
    async def main() -> None:
        flights: Flights[int] = Flights()

        async def fails() -> int:
            await asyncio.sleep(0)
            raise NotFound("nothing there")

        async def works() -> int:
            return 7

        asking = [asyncio.create_task(flights.join(request_of(Client()), "key", fails)) for _ in range(3)]
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(error) for error in found] == [NotFound] * 3
        assert await flights.join(request_of(Client()), "key", works) == 7

    run(main)


def test_shared_work_ends_when_the_last_has_left_and_not_before() -> None:
    async def main() -> None:
        flights: Flights[int] = Flights()
        cancelled = asyncio.Event()

        async def endless() -> int:
            try:
                await asyncio.sleep(3600)
            finally:
                cancelled.set()
            return 0

        async def works() -> int:
            return 7

        first, second = (
            asyncio.create_task(flights.join(request_of(Client()), "key", endless)) for _ in range(2)
        )
        await happens(lambda: "key" in flights)
        first.cancel()
        await asyncio.wait([first])
        await asyncio.sleep(0.01)
        assert not cancelled.is_set()
        second.cancel()
        await asyncio.wait([second])
        # Whoever comes now begins anew.
        assert await flights.join(request_of(Client()), "key", works) == 7
        await happens(cancelled.is_set)

    run(main)


def test_streams_take_their_places_while_they_are_sent() -> None:
    places = Places(1, "max_streams")
    sent: list[Message] = []

    async def nothing_more() -> Message:
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        with pytest.raises(Unavailable) as caught:
            places.require_room()
        assert (caught.value.limit, caught.value.value) == ("max_streams", 1)

    async def content() -> AsyncGenerator[bytes, None]:
        yield b"a"
        yield b"b"

    async def main() -> None:
        stream = BoundedStream(places, content(), {}, "text/plain")
        await stream({"type": "http"}, nothing_more, send)
        places.require_room()
        with places, pytest.raises(Unavailable):
            await BoundedStream(places, content(), {}, "text/plain")({"type": "http"}, nothing_more, send)

    run(main)
    assert b"".join(message.get("body", b"") for message in sent) == b"ab"
    gc.collect()
