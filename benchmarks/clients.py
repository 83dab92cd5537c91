"""HTTP clients that cost little: many connections from one process, closed loop or open loop.

In a closed loop each connection asks again when it has been answered, so a slow server is asked less. In an
open loop requests are due at a fixed rate, whatever becomes of the ones before, as those of many people are.
There a time counts from when a request is begun, also while it waits for one of the connections.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import re
from collections.abc import Coroutine, Iterator
from typing import Any, Final, NamedTuple, TypeVar, cast

import uvloop

T = TypeVar("T")
Answer = tuple[int, bytes, bytes]
"""Status, header and body."""

HEADER_END: Final = b"\r\n\r\n"
LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
STATUS: Final = slice(9, 12)
LOST: Final = 0


class Reply(NamedTuple):
    """What came of one request: `status` 0 when the connection was lost, `content` a hash of the body."""

    path: str
    status: int
    seconds: float
    header: bytes
    content: int


class Link(asyncio.Protocol):
    """One connection, for one request at a time whose answer says how long it is."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._answer: asyncio.Future[Answer] | None = None
        self._buffer = bytearray()
        self.is_open = False
        self._lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._lost.set()
        self._settle(LOST, b"", b"")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(HEADER_END)
        if end < 0:
            return
        header = bytes(self._buffer[:end])
        found = LENGTH.search(header)
        whole = end + len(HEADER_END) + (int(found[1]) if found else 0)
        if len(self._buffer) >= whole:
            body = bytes(self._buffer[end + len(HEADER_END) : whole])
            del self._buffer[:whole]
            self._settle(int(header[STATUS]), header, body)

    def _settle(self, status: int, header: bytes, body: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, header, body))

    async def ask(self, path: str) -> Answer:
        """What is at `path`."""
        if not self.is_open:
            return LOST, b"", b""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        return await self._answer

    async def close(self) -> None:
        self._transport.abort()
        await self._lost.wait()


async def connect(host: str, port: int) -> Link:
    """A new connection; raises OSError."""
    _, link = await asyncio.get_running_loop().create_connection(Link, host, port)
    return link


async def closed_loop(
    host: str, port: int, paths: Iterator[str], connections: int, seconds: float
) -> list[Reply]:
    """All replies to `connections` clients that ask one thing after the other for so long."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    replies = []

    async def client() -> None:
        link = await connect(host, port)
        while link.is_open and loop.time() < end:
            path, start = next(paths), loop.time()
            answer = await link.ask(path)
            replies.append(_reply(path, answer, loop.time() - start))
        await link.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return replies


def again_and_again(host: str, port: int, path: str, connections: int, seconds: float) -> list[Reply]:
    """The same from many, in a closed loop; to be called in a process that does nothing else."""
    return run(closed_loop(host, port, itertools.repeat(path), connections, seconds))


async def open_loop(
    host: str, port: int, paths: Iterator[str], rate: float, seconds: float, most: int
) -> list[Reply]:
    """All replies to `rate` requests a second for so long, over at most `most` connections."""
    loop = asyncio.get_running_loop()
    idle: asyncio.Queue[Link] = asyncio.Queue()
    for _ in range(most):
        idle.put_nowait(await connect(host, port))
    replies = []

    async def request(path: str, begun: float) -> None:
        link = await idle.get()
        if not link.is_open:
            link = await connect(host, port)
        answer = await link.ask(path)
        replies.append(_reply(path, answer, loop.time() - begun))
        idle.put_nowait(link)

    start = loop.time()
    asking = []
    for number in range(int(rate * seconds)):
        # Also when it is late, so that answers are read.
        await asyncio.sleep(max(0, start + number / rate - loop.time()))
        asking.append(asyncio.create_task(request(next(paths), loop.time())))
    await asyncio.gather(*asking)
    while not idle.empty():
        await idle.get_nowait().close()
    return replies


def _reply(path: str, answer: Answer, seconds: float) -> Reply:
    status, header, body = answer
    return Reply(path, status, seconds, header, hash(body))


def run(main: Coroutine[Any, Any, T]) -> T:
    """What `main` returns, on the fastest event loop, and without stops to look for garbage."""
    gc.disable()
    try:
        return uvloop.run(main)
    finally:
        gc.enable()
