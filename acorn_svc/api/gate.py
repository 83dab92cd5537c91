"""Who may work when: few at a time, a bounded queue, once for all who ask, and no longer than anybody waits.

    request ─▶ Flights (the same work is done once for all who ask at the same time), or alone
            ─▶ Gate (at most `width` work, at most `queue` wait, else 503) ─▶ a thread

A client that leaves waits no longer, and work ends when the last who waited for it has left: work in a
thread cannot be ended from outside, but asks `GoOn` between its parts.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, Protocol, Self, TypeVar, cast

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from acorn_svc.api.tally import Tally
from acorn_svc.errors import Unavailable
from acorn_svc.jobs.process import give_way

T = TypeVar("T")

MEAN_OF: Final = 32  # times, the recent ones more than those before
SHORTEST_SECONDS: Final = 1e-6
END: Final = object()


class GoOn:
    """What work asks between its parts, by calling it: whether to go on."""

    def __init__(self, seconds: float, limit: str) -> None:
        self._seconds = seconds
        self._limit = limit
        self._end = math.inf
        self._stopped = False

    def begin(self) -> None:
        """The work begins, and may take its time from now on."""
        self._end = time.monotonic() + self._seconds

    def stop(self) -> None:
        """Nobody waits for the work any more."""
        self._stopped = True

    def __call__(self, _done: float = 0.0) -> None:
        """Raise Unavailable when the work has taken too long, or nobody waits for it."""
        if self._stopped:
            raise Unavailable("The client has gone.")
        if time.monotonic() > self._end:
            raise Unavailable("This took too long.", limit=self._limit, value=self._seconds)


class Gate:
    """Lets `width` pieces of work go on at the same time and `queue` more wait, for `patience` seconds.

    Each may take `seconds`; `limit` is the name of that setting. `tally` counts what works and has worked.

    A crowd begins when the queue is full and ends when nobody waits. A full queue helps nobody then: as many
    are served when only so many wait as are through in `crowd_patience` seconds, and all of them sooner.
    """

    def __init__(
        self,
        width: int,
        queue: int,
        patience: float,
        seconds: float,
        limit: str,
        crowd_patience: float = math.inf,
    ) -> None:
        # Its own queue holds what waits: a thread goes on at once, also while the event loop is busy.
        self._threads = ThreadPoolExecutor(width, thread_name_prefix=limit, initializer=give_way)
        self._waiting: set[object] = set()
        self._crowded = False
        self._crowd_patience = crowd_patience
        self._mean = 0.0  # seconds that work took lately
        self._width = width
        self._queue = queue
        self._patience = patience
        self._seconds = seconds
        self._limit = limit
        self.tally = Tally()

    @property
    def waiting(self) -> int:
        """How many wait for a thread."""
        return len(self._waiting)

    def has_room(self, coming: int = 0) -> bool:
        """Whether one more may wait; `coming` are at work, wait, or are on their way here."""
        waiting = max(self.waiting, coming - self._width)
        if waiting >= self._queue:
            self._crowded = True
        elif not waiting:
            self._crowded = False
        return waiting < (self._short_queue() if self._crowded else self._queue)

    def _short_queue(self) -> float:
        through = self._width * self._crowd_patience / max(self._mean, SHORTEST_SECONDS)
        return min(self._queue, max(self._width, through))

    def full(self) -> Unavailable:
        """The error that says that there is no room."""
        return Unavailable("Too many renders wait.", limit="render_queue", value=self._queue)

    async def run(self, work: Callable[[GoOn], T]) -> T:
        """`work` in a thread, as soon as one is free; cancelled, it leaves the queue at once.

        Raises Unavailable when too many wait, or after too long a wait, or when the work takes too long.
        """
        if not self.has_room():
            raise self.full()
        go_on = GoOn(self._seconds, self._limit)
        running = self._submit(partial(self._noted, work, go_on))
        answer = asyncio.wrap_future(running)
        try:
            await asyncio.wait((answer,), timeout=self._patience)
            if not running.cancel():  # it has begun
                return await answer
        except asyncio.CancelledError:
            answer.cancel()
            go_on.stop()
            raise
        raise Unavailable(
            "The render had to wait too long.", limit="render_wait_seconds", value=self._patience
        )

    def steps(self, first: T, rest: Iterator[T]) -> Steps[T]:
        """`first` and then the items of `rest`, each made in a thread when one is free.

        Between two items the thread is free for others, so a slow client holds nobody up.
        """
        return Steps(first, rest, self._submit)

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        """`work`, which waits for a thread until it begins or is cancelled."""
        turn = object()
        timed = self.tally.timed(work)

        def begin() -> T:
            self._waiting.discard(turn)
            return timed()

        self._waiting.add(turn)
        running = self._threads.submit(begin)
        running.add_done_callback(lambda _: self._waiting.discard(turn))
        return running

    def _noted(self, work: Callable[[GoOn], T], go_on: GoOn) -> T:
        """What `work` comes to, begun now; how long it takes counts for the mean."""
        go_on.begin()
        start = time.monotonic()
        try:
            return work(go_on)
        finally:
            # Should two threads do this at once, one of the times is lost, which does no harm.
            self._mean += (time.monotonic() - start - self._mean) / MEAN_OF

    def close(self) -> None:
        """Take no more work; what goes on is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _close(source: Iterator[object]) -> None:
    close = getattr(source, "close", None)
    if close is not None:
        close()


class Steps(Generic[T]):
    """The items of `Gate.steps`; when it is closed, so is what makes them, however far it has come."""

    def __init__(
        self, first: T, rest: Iterator[T], submit: Callable[[Callable[[], object]], Future[object]]
    ) -> None:
        self._next: list[T] = [first]
        self._rest = rest
        self._submit = submit
        self._making: Future[object] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._next:
            return self._next.pop()
        self._making = self._submit(lambda: next(self._rest, END))
        item = await asyncio.wrap_future(self._making)
        if item is END:
            raise StopAsyncIteration
        return cast(T, item)

    async def aclose(self) -> None:
        """Make no more items; one that is being made may come to its end."""
        if self._making is None:
            _close(self._rest)
        else:
            self._making.add_done_callback(lambda _: _close(self._rest))


class Content(Protocol):
    """Pieces of an answer, and a way to say that no more of them are wanted."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """Make no more pieces."""


class Places:
    """At most `most` at the same time; `limit` is the name of that setting. Enter with `with`."""

    def __init__(self, most: int, limit: str) -> None:
        self._most = most
        self._limit = limit
        self._taken = 0

    def require_room(self) -> None:
        """Raise Unavailable when all places are taken."""
        if self._taken >= self._most:
            raise Unavailable("Too many of these are sent already.", limit=self._limit, value=self._most)

    def __enter__(self) -> None:
        self.require_room()
        self._taken += 1

    def __exit__(self, *_error: object) -> None:
        self._taken -= 1


class BoundedStream(StreamingResponse):
    """A stream that takes one of `places` while it is sent; raises Unavailable when there is none.

    However it ends, its content is closed then.
    """

    def __init__(self, places: Places, content: Content, headers: dict[str, str], media_type: str) -> None:
        super().__init__(content, headers=headers, media_type=media_type)
        self._places = places
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        async with aclosing(self._content):
            with self._places:
                await super().__call__(scope, receive, send)


@dataclass(eq=False)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    passengers: int = 0


class Flights(Generic[T]):
    """Work that is done once for all who ask for it at the same time, and ended when all have left."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}

    def __contains__(self, key: Hashable) -> bool:
        """Whether the work called `key` is under way."""
        return key in self._flights

    def __len__(self) -> int:
        """How much work is under way."""
        return len(self._flights)

    async def join(self, request: Request, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `work` returns or raises, begun by whoever asks for `key` first; as `unless_gone`."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(work()))
            flight.task.add_done_callback(lambda _: self._forget(key, flight))
        flight.passengers += 1
        try:
            return await unless_gone(request, flight.task)
        finally:
            flight.passengers -= 1
            if not flight.passengers:
                self._forget(key, flight)
                flight.task.cancel()

    def _forget(self, key: Hashable, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


async def alone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises; cancelled when the client leaves, as `unless_gone`."""
    working = asyncio.create_task(work)
    try:
        return await unless_gone(request, working)
    finally:
        working.cancel()


async def unless_gone(request: Request, working: asyncio.Task[T]) -> T:
    """What `working` comes to; raises Unavailable when the client leaves first.

    The body of `request` has been read, or is not wanted.
    """
    watching = asyncio.create_task(_departure(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            watching.result()
            raise Unavailable("The client has gone.")
        return working.result()
    finally:
        watching.cancel()


async def _departure(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
