"""What a trusted proxy says: who has signed in there, and how the client reached it.

Nobody else is believed: without the setting `trusted_proxies`, no such header is looked at.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from acorn_svc.settings import Settings, separated

USER: Final = "acorn.proxy_user"
MOST_CHARACTERS: Final = 200


@dataclass(frozen=True)
class ProxyUser:
    """Somebody who has signed in at a trusted proxy."""

    name: str
    groups: frozenset[str]


def user_of(scope: Scope) -> ProxyUser | None:
    """Who has signed in at a trusted proxy, if anybody has."""
    return cast(ProxyUser | None, scope.get(USER))


class Proxies:
    """Believes trusted proxies: X-Forwarded-For, -Proto and -Host, and the headers of the settings."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        trusted = separated(settings.trusted_proxies)
        self._networks = [ipaddress.ip_network(network) for network in trusted]
        self._user_header = settings.proxy_user_header.lower().encode()
        self._groups_header = settings.proxy_groups_header.lower().encode()
        self._app = app
        believing = ProxyHeadersMiddleware(cast(ASGI3Application, app), trusted_hosts=trusted)
        self._believing = cast(ASGIApp, believing)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or not self._is_trusted(scope):
            await self._app(scope, receive, send)
            return
        # The address of the proxy is replaced by that of the client; the rest is learned before.
        told = {**scope, "headers": _with_host(scope["headers"]), USER: self._user(scope)}
        await self._believing(told, receive, send)

    def _is_trusted(self, scope: Scope) -> bool:
        try:
            address = ipaddress.ip_address((scope.get("client") or ("",))[0])
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def _user(self, scope: Scope) -> ProxyUser | None:
        """Said once and once only: a second header would be the client's own, let through."""
        if not self._user_header:
            return None
        names = _values(scope, self._user_header)
        if len(names) != 1 or not names[0].isprintable() or not 0 < len(names[0]) <= MOST_CHARACTERS:
            return None
        groups = _values(scope, self._groups_header)
        return ProxyUser(names[0], frozenset(separated(groups[0])) if len(groups) == 1 else frozenset())


def _values(scope: Scope, name: bytes) -> list[str]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value.decode("latin-1").strip() for key, value in headers if key == name]


def _with_host(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    forwarded = [value for name, value in headers if name == b"x-forwarded-host"]
    if len(forwarded) != 1:
        return headers
    return [(b"host", forwarded[0]), *((name, value) for name, value in headers if name != b"host")]
