"""The server: uvicorn, with an end to everything that a client can be slow at or have too much of.

    connect ─▶ at most `max_connections`, `max_connections_per_address`      else 503, closed
    header  ─▶ `header_seconds`, `max_header_bytes`                          else 408, 431
    body    ─▶ `request_seconds`, or `min_body_bytes_per_second`             else 408
    queue   ─▶ at most `max_pipelined_requests` behind the one in work       else 503, closed
    work    ─▶ at most `max_requests`, pictures as the renderer can take     else 503
    answer  ─▶ the client takes something every `send_seconds`               else closed
    idle    ─▶ `keep_alive_seconds`                                          then closed

Uvicorn itself knows only the last. Nothing is timed request by request: a connection notes since when it
waits for what, and twice a second all of them are looked through, so fast clients pay next to nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
from collections import Counter
from collections.abc import Hashable, Iterable
from enum import Enum, auto
from functools import partial
from types import FrameType
from typing import Any, Final, NamedTuple, cast

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_remote_addr

from acorn_svc.api import errors
from acorn_svc.api.metrics import Metrics
from acorn_svc.api.rendering import Renderer
from acorn_svc.errors import AcornError, BadRequest, Conflict, HeaderTooLarge, TooSlow, Unavailable
from acorn_svc.settings import Settings

TICKS_PER_SWEEP: Final = 5  # uvicorn's ticks, ten a second
IPV6_NETWORK_BITS: Final = 64
LINE_BYTES: Final = 4  # of each line of a header: the colon, a space, and its end
# Files that are open beside the connections: database, logs, models that are read, the worker's pipes.
OTHER_DESCRIPTORS: Final = 256


class Server(uvicorn.Server):
    """Uvicorn within the limits of `settings`; asked to stop, it first ends what would never end."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        admission = Admission(settings, app.state.renderer, app.state.metrics)
        protocol = cast(type[asyncio.Protocol], partial(Connection, settings, admission))
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=protocol,
            ws="none",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # `api.proxies` does that, for those that are trusted
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
        super().__init__(config)
        self._state = app.state
        self._swept = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called on SIGTERM and SIGINT."""
        self._state.stopping.set()
        if self._state.workers is not None:
            self._state.workers.ask_to_stop()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; whether to stop."""
        if counter % TICKS_PER_SWEEP == 0:
            self._sweep()
        return await super().on_tick(counter)

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        elapsed, self._swept = now - (self._swept or now), now
        for connection in list(self.server_state.connections):
            cast(Connection, connection).look(now, elapsed)


class Refusal(NamedTuple):
    """An answer that needs no application: `response`, and its `header` as it goes over the wire."""

    response: JSONResponse
    header: bytes

    @classmethod
    def of(cls, response: JSONResponse) -> Refusal:
        """The same as `response`."""
        return cls(response, STATUS_LINE[response.status_code] + _lines(response.raw_headers))

    def wire(self, more: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
        """All that goes over the wire, with `more` fields in the header."""
        return b"".join([self.header, _lines(more), b"\r\n", bytes(self.response.body)])


def _lines(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % field for field in fields)


class Admission:
    """Who is let in: how many connections there are, in all and of each address, and how many requests."""

    def __init__(self, settings: Settings, renderer: Renderer, metrics: Metrics) -> None:
        self._settings = settings
        self.renderer = renderer
        self._metrics = metrics
        self._of: Counter[Hashable] = Counter()
        most = settings.max_requests
        self._too_many = _closing(Unavailable("Too many requests at once.", limit="max_requests", value=most))
        # Made once: those who ask for pictures in a crowd are many.
        self._crowded = Refusal.of(errors.answer(renderer.gate.full()))

    def refusal(self, picture: bytes | None, requests: int) -> Refusal | None:
        """The answer to one more than `requests`, perhaps for a `picture`, if it isn't let in."""
        refusal = self._too_many if requests >= self._settings.max_requests else None
        if refusal is None and picture is not None and self.renderer.refuses(picture):
            refusal = self._crowded
        if refusal is not None:
            self._metrics.count_refusal(refusal.response.status_code)
        return refusal

    def closing(self, error: AcornError) -> Refusal:
        """The answer that says `error` and ends the connection."""
        refusal = _closing(error)
        self._metrics.count_refusal(refusal.response.status_code)
        return refusal

    def enter(self, address: Hashable) -> None:
        """Count one more; raises Unavailable when there are too many. None is no address, and not limited."""
        settings = self._settings
        if self._of.total() >= settings.max_connections:
            raise Unavailable(
                "Too many connections.", limit="max_connections", value=settings.max_connections
            )
        if address is not None and self._of[address] >= settings.max_connections_per_address:
            raise Unavailable(
                "Too many connections from your address.",
                limit="max_connections_per_address",
                value=settings.max_connections_per_address,
            )
        self._of[address] += 1

    def leave(self, address: Hashable) -> None:
        """Count one less."""
        self._of[address] -= 1
        if not self._of[address]:
            del self._of[address]


def neighbourhood(host: str) -> Hashable:
    """What counts as one address: one of IPv4, and of IPv6 a network as one customer gets it."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return address
    return address.ipv4_mapped or int(address) >> (address.max_prefixlen - IPV6_NETWORK_BITS)


class Awaits(Enum):
    """What a client still has to send."""

    NOTHING = auto()
    HEADER = auto()
    BODY = auto()


class Connection(HttpToolsProtocol):
    """One client's connection."""

    def __init__(self, settings: Settings, admission: Admission, **server: Any) -> None:
        super().__init__(**server)
        self._settings = settings
        self._admission = admission
        self._admitted = False
        self._address: Hashable = None
        self._awaits = Awaits.HEADER
        self._since = self.loop.time()
        self._unused = 0  # bytes that nothing has come of yet: no whole header, no piece of a body
        self._body = 0  # bytes
        self._refused = False  # the request whose header has come last, without the application
        self._answered: RequestResponseCycle | None = None  # `cycle` is that of the request that came last
        self._unsent = 0
        self._stalled = 0.0  # seconds in which the client has taken nothing

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit the client, or tell it that there is no room."""
        client = get_remote_addr(transport)
        self._address = None if client is None else neighbourhood(client[0])
        try:
            self._admission.enter(self._address)
        except Unavailable as error:
            transport.write(self._admission.closing(error).wire())
            transport.close()
            return
        self._admitted = True
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        if self._admitted:
            self._admission.leave(self._address)
            self._give_up()
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Note that a header begins, and how large it grows."""
        self._expect_header()
        self._unused += len(data)
        super().data_received(data)
        if self._unused > self._settings.max_header_bytes and not self.transport.is_closing():
            self._end(self._header_too_large())

    def on_message_begin(self) -> None:
        """A header begins."""
        self._expect_header()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of the header; those that may follow a body are of no use."""
        if self._awaits is Awaits.HEADER:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application, or to an answer that says why not."""
        idle = self.cycle is None or self.cycle.response_complete
        if not idle and len(self.pipeline) >= self._settings.max_pipelined_requests:
            self._await(Awaits.BODY)
            self._end(self._too_many_pipelined())
        if self.transport.is_closing():  # what was read at once goes on, and is for nobody
            self._refused = True
            return
        renderer = self._admission.renderer
        picture = renderer.unknown_picture(self.url)
        refusal = self._refusal(picture)
        self._await(Awaits.BODY)
        self._refused = refusal is not None and idle and self._is_simple()
        if refusal is not None and self._refused:
            self.transport.write(refusal.wire(self.server_state.default_headers))
            self.on_response_complete()
            return
        self.app = self.config.loaded_app if refusal is None else refusal.response
        if refusal is None and picture is not None and idle:
            self.app = renderer.expecting(picture, self.app)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Note how much of the body has come."""
        self._unused = 0
        self._body += len(body)
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has come whole."""
        self._await(Awaits.NOTHING)
        if not self._refused:
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _expect_header(self) -> None:
        if self._awaits is Awaits.NOTHING:
            self._await(Awaits.HEADER)

    def _await(self, awaited: Awaits) -> None:
        self._awaits = awaited
        self._since = self.loop.time()
        self._unused = self._body = 0

    def _is_simple(self) -> bool:
        """Whether a refusal can be written as it is: with its body, and for a client that reads and stays.

        A crowd asks like that. To refuse it costs several times less without the machinery of an answer, and
        that time is for those who are let in.
        """
        parser = self.parser
        stays = parser.should_keep_alive() and parser.get_http_version() == "1.1"
        return stays and parser.get_method() == b"GET" and not self.flow.write_paused

    def _refusal(self, picture: bytes | None) -> Refusal | None:
        """The answer to the request whose header has come, if it isn't let in."""
        most = self._settings.max_header_bytes
        # What was read at once may hold more than the header.
        if self._unused > most and self._header_bytes() > most:
            return self._admission.closing(self._header_too_large())
        return self._admission.refusal(picture, len(self.tasks))

    def _header_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + LINE_BYTES for name, value in self.headers)

    def _header_too_large(self) -> HeaderTooLarge:
        most = self._settings.max_header_bytes
        return HeaderTooLarge("The header is too large.", limit="max_header_bytes", value=most)

    def _too_many_pipelined(self) -> Unavailable:
        most = self._settings.max_pipelined_requests
        return Unavailable(
            "Too many requests wait on this connection.", limit="max_pipelined_requests", value=most
        )

    def send_400_response(self, msg: str) -> None:
        """Answer what isn't HTTP."""
        self.transport.write(self._admission.closing(BadRequest(msg)).wire())
        self.transport.close()

    def look(self, now: float, elapsed: float) -> None:
        """End the connection if it is overdue; `elapsed` seconds have passed since the last look."""
        self._look_at_sending(elapsed)
        if self.transport.is_closing():
            return
        if self._is_held_up():
            self._since += elapsed
        elif (error := self._overdue(now - self._since)) is not None:
            self._end(error)

    def _look_at_sending(self, elapsed: float) -> None:
        unsent = self.transport.get_write_buffer_size()
        # Whoever takes anything makes it shrink at times: it does not grow for long without that.
        self._stalled = self._stalled + elapsed if 0 < self._unsent <= unsent else 0.0
        self._unsent = unsent
        if self._stalled > self._settings.send_seconds:
            self.transport.abort()

    def _is_held_up(self) -> bool:
        """Whether it is not the client that is waited for."""
        return self.flow.read_paused or (self.cycle is not None and self.cycle.waiting_for_100_continue)

    def _overdue(self, waited: float) -> TooSlow | None:
        settings = self._settings
        if self._awaits is Awaits.HEADER and waited > settings.header_seconds:
            return TooSlow(
                "The header takes too long.", limit="header_seconds", value=settings.header_seconds
            )
        rate = settings.min_body_bytes_per_second
        if self._awaits is Awaits.BODY and waited > settings.request_seconds + self._body / rate:
            return TooSlow("The body takes too long.", limit="min_body_bytes_per_second", value=rate)
        return None

    def _end(self, error: AcornError) -> None:
        """Close the connection, saying why if nothing else is being said."""
        self._give_up()
        answered = self._answered
        speaking = answered is not None and answered.response_started and not answered.response_complete
        silent = self._awaits is Awaits.HEADER and not self._unused
        if not silent and not speaking:
            self.transport.write(self._admission.closing(error).wire())
        self.transport.close()

    def _give_up(self) -> None:
        """Tell the request that is answered that nobody waits for it, and forget those behind it."""
        self.pipeline.clear()
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()


def _closing(error: AcornError) -> Refusal:
    """The answer that says `error` and ends the connection."""
    response = errors.answer(error)
    response.headers["Connection"] = "close"
    return Refusal.of(response)


def require_descriptors(settings: Settings) -> None:
    """Allow this process as many open files as the settings need; raises Conflict when the system does not.

    A connection is one, and another may be open for it: an upload, or a file that is sent.
    """
    needed = 2 * settings.max_connections + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise Conflict(
                f"The system allows {hard} open files, max_connections needs {needed}; "
                "raise the one (ulimit -Hn) or lower the other.",
                limit="max_connections",
                value=settings.max_connections,
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
