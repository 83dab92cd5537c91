"""Every request is counted, has an id, and is written down when it failed (or always, if so set)."""

from __future__ import annotations

import re
import secrets
import time
from typing import Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from acorn_svc.api.access import without_token
from acorn_svc.api.metrics import Metrics
from acorn_svc.settings import Settings

HEADER: Final = b"x-request-id"
USABLE: Final = re.compile(rb"[0-9A-Za-z._-]{1,64}")
SERVER_ERROR: Final = 500
BUSY: Final = 503
"""Not worth a line each: many come when there is little time to write."""

log = structlog.get_logger()


class Observer:
    """Wraps the whole application. A usable `X-Request-ID` of a proxy is taken over."""

    def __init__(self, app: ASGIApp, metrics: Metrics, settings: Settings) -> None:
        self._app = app
        self._metrics = metrics
        self._log_all = settings.log_requests == "all"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})  # whoever copies the scope keeps the same
        request_id = _given_id(scope) or secrets.token_hex(8).encode()
        structlog.contextvars.bind_contextvars(request_id=request_id.decode())
        begin = time.perf_counter()
        status, seconds = SERVER_ERROR, None  # as long as nothing else has been answered

        async def observed(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.perf_counter() - begin
                message["headers"] = [*message["headers"], (HEADER, request_id)]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            elapsed = time.perf_counter() - begin
            self._metrics.count(scope, status, elapsed if seconds is None else seconds)
            failed = status >= SERVER_ERROR and status != BUSY
            if failed or self._log_all:
                self._write(scope, status, elapsed)

    def _write(self, scope: Scope, status: int, elapsed: float) -> None:
        client = scope.get("client")
        write = log.warning if status >= SERVER_ERROR else log.info
        write(
            "request",
            method=scope["method"],
            path=without_token(scope["path"]),
            status=status,
            seconds=round(elapsed, 4),
            client=client[0] if client else None,
        )


def _given_id(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == HEADER and USABLE.fullmatch(value):
            return bytes(value)
    return None
