"""Headers that tell browsers what not to do: guess types, run scripts, frame us, read across sites."""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from acorn_svc.api.caching import CROSS_ORIGIN, PREFLIGHT_SECONDS
from acorn_svc.settings import Settings, separated

ANY: Final = "*"
# Pages say themselves what they load, and scripts are run by pages.
SELF_DESCRIBED: Final = ("text/html", "text/javascript", "application/javascript", "text/css")
ALLOW_ORIGIN: Final = "access-control-allow-origin"
METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"


class SafeHeaders:
    """Adds them to every answer, and lets scripts of other sites read or write as the settings say.

    Routes that are made to be read by other sites allow it to all of them; here that is narrowed.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._readers = frozenset(separated(settings.cors_origins))
        self._writers = frozenset(separated(settings.cors_write_origins))
        self._frames = f"frame-ancestors {settings.frame_ancestors}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        is_writer = origin is not None and origin in self._writers

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                self._secure(answer)
                self._narrow(answer, origin, is_writer)
            await send(message)

        if is_writer and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _preflight(marked)
            return
        await self._app(scope, receive, marked)

    def _secure(self, answer: MutableHeaders) -> None:
        answer["x-content-type-options"] = "nosniff"
        answer["referrer-policy"] = "same-origin"
        described = answer.get("content-type", "").startswith(SELF_DESCRIBED)
        policy = self._frames if described else f"default-src 'none'; {self._frames}"
        # A second policy narrows the first, so it is added to one that is there.
        answer.append("content-security-policy", policy)

    def _narrow(self, answer: MutableHeaders, origin: str | None, is_writer: bool) -> None:
        if is_writer and origin is not None:
            for name, value in CROSS_ORIGIN.items():
                answer[name] = value
            answer[ALLOW_ORIGIN] = origin
            answer.add_vary_header("Origin")
        elif ANY not in self._readers and ALLOW_ORIGIN in answer:
            answer.add_vary_header("Origin")
            if origin in self._readers:
                answer[ALLOW_ORIGIN] = str(origin)
            else:
                del answer[ALLOW_ORIGIN]


async def _preflight(send: Send) -> None:
    headers = [
        (b"access-control-allow-methods", METHODS.encode()),
        (b"access-control-allow-headers", b"*, Authorization"),
        (b"access-control-max-age", str(PREFLIGHT_SECONDS).encode()),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
