"""The bounds of the renderer: memory, places, waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import cast

import anyio
import anyio.to_thread
import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st

from acorn_svc.api.rendering import Cache, Gate
from acorn_svc.errors import Unavailable

CAPACITY = 100


class Client:
    """The one thing about a request that the gate asks for."""

    def __init__(self, gone: bool = False) -> None:
        self.gone = gone

    async def is_disconnected(self) -> bool:
        return self.gone


def request(gone: bool = False) -> Request:
    return cast(Request, Client(gone))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 150))))
def test_a_cache_keeps_the_newest_that_fit(steps: list[tuple[int, int]]) -> None:
    cache: Cache[int, int] = Cache(CAPACITY)
    for key, size in steps:
        cache.put(key, size, size)
        assert cache.used <= CAPACITY
        assert cache.get(key) == (size if size <= CAPACITY else None)
    kept = [size for key in range(10) if (size := cache.get(key)) is not None]
    assert sum(kept) == cache.used


def test_a_cache_drops_what_was_used_longest_ago() -> None:
    cache: Cache[str, str] = Cache(2)
    cache.put("a", "A", 1)
    cache.put("b", "B", 1)
    assert cache.get("a") == "A"
    cache.put("c", "C", 1)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == ("A", None, "C")


def test_the_gate_lets_only_so_many_in_at_once() -> None:
    running, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2)

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait(10)
        with lock:
            running -= 1

    async def main() -> None:
        gate = Gate(width=2, queue=100, patience=60)
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(gate.run, work, request())

    anyio.run(main)
    assert most == 2


def test_the_gate_refuses_whom_it_cannot_seat() -> None:
    release = threading.Event()

    async def main() -> None:
        gate = Gate(width=1, queue=1, patience=60)
        async with anyio.create_task_group() as group:
            group.start_soon(gate.run, lambda: release.wait(10), request())
            group.start_soon(gate.run, lambda: None, request())
            await anyio.wait_all_tasks_blocked()
            try:
                with pytest.raises(Unavailable) as caught:
                    await gate.run(lambda: None, request())
            finally:
                release.set()
        assert (caught.value.limit, caught.value.value) == ("render_queue", 1)
        await gate.run(lambda: None, request())

    anyio.run(main)


def test_the_gate_gives_up_waiting_and_stays_usable() -> None:
    release = threading.Event()

    async def main() -> None:
        gate = Gate(width=1, queue=9, patience=0.01)
        async with anyio.create_task_group() as group:
            group.start_soon(gate.run, lambda: release.wait(10), request())
            await anyio.wait_all_tasks_blocked()
            try:
                with pytest.raises(Unavailable) as caught:
                    await gate.run(lambda: None, request())
            finally:
                release.set()
        assert caught.value.limit == "render_wait_seconds"
        assert await gate.run(lambda: 7, request()) == 7

    anyio.run(main)


def test_nothing_is_rendered_for_a_client_that_has_gone() -> None:
    async def main() -> None:
        gate = Gate(width=1, queue=9, patience=60)
        with pytest.raises(Unavailable):
            await gate.run(lambda: pytest.fail("rendered"), request(gone=True))
        assert await gate.run(lambda: 7, request()) == 7

    anyio.run(main)


def test_an_error_in_the_work_frees_its_place() -> None:
    async def main() -> None:
        gate = Gate(width=1, queue=9, patience=60)
        with pytest.raises(ZeroDivisionError):
            await gate.run(lambda: 1 / 0, request())
        assert await gate.run(lambda: 7, request()) == 7

    anyio.run(main)


def test_steps_yield_everything_and_stop_with_their_consumer() -> None:
    closed = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    async def main() -> None:
        gate = Gate(width=1, queue=9, patience=60)
        assert [number async for number in gate.steps(iter(range(5)))] == [0, 1, 2, 3, 4]
        steps = gate.steps(numbers())
        assert await anext(steps) == 0
        # Between two steps the only place is free.
        assert await gate.run(lambda: 7, request()) == 7
        await steps.aclose()  # type: ignore[attr-defined]
        assert closed == [True]

    anyio.run(main)
