"""Who asks: a key, somebody signed in on the page or at a proxy, a link to one scene, or anybody.

Authorization: Bearer KEY     programs
Cookie: acorn_session=...     the page, after POST /session
a header of a trusted proxy   single sign-on
/s/TOKEN/...                  viewers and image tags: one scene, for reading, for a time
nothing                       anybody; where there is no key at all, that may do everything
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, cast

import anyio.to_thread
from fastapi import Depends, Request
from sqlalchemy.exc import OperationalError
from starlette.requests import HTTPConnection
from starlette.types import Scope as Connection

from acorn_svc.api import signing
from acorn_svc.api.proxies import ProxyUser, user_of
from acorn_svc.errors import BadRequest, Forbidden, Misdirected, Unauthenticated
from acorn_svc.settings import Settings, separated
from acorn_svc.store.keys import Key, KeyStore, Scope, digest_of

KEY: Final = re.compile(r"acorn_[0-9a-z]{12}_[0-9a-z]{52}")
BEARER: Final = re.compile(r"bearer +(\S+) *", re.IGNORECASE)
COOKIE: Final = "acorn_session"
ENVIRONMENT: Final = "environment"
KEY_SECONDS: Final = 2.0
"""How long the server goes by what it knows of a key before it looks again."""
MOST_KNOWN: Final = 4096
LINK: Final = "acorn.link"
"""Where the middleware leaves the signed text of a link, in the scope."""


@dataclass(frozen=True)
class Caller:
    """Who asks, and what they may do.

    `owner` is `key:<id>` or `user:<name>`, and that of the scenes they make; None for whoever has no name.
    `scene` is the one scene that a link is for. `ambient` callers are known by what a browser sends by
    itself, also when another site makes it ask.
    """

    name: str
    scope: Scope | None = None
    owner: str | None = None
    scene: str | None = None
    ambient: bool = False
    expires_at: datetime | None = None

    @property
    def label(self) -> str:
        """What the audit log calls them."""
        return self.owner or self.name

    def may(self, scope: Scope) -> bool:
        """Whether they have this scope."""
        return self.scope is not None and self.scope.includes(scope)


ANYONE: Final = Caller("anyone", ambient=True)
LOCAL: Final = Caller("local", Scope.ADMIN, ambient=True)


class KeyRing:
    """The keys as the server knows them: at most KEY_SECONDS old. For one event loop."""

    def __init__(self, store: KeyStore, settings: Settings) -> None:
        self._store = store
        self._known: dict[Hashable, tuple[float, Any]] = {}
        self._in_environment = _key_in_environment(settings)

    async def find(self, text: str) -> Key | None:
        """The key with this text, if it counts."""
        digest = digest_of(text)
        given = self._in_environment
        if given is not None and hmac.compare_digest(given.digest, digest):
            return given
        if KEY.fullmatch(text) is None:
            return None
        return _if_counts(await self._remembered(digest, lambda: self._used(digest)))

    async def get(self, key_id: str) -> Key | None:
        """The key with this id, if it counts."""
        given = self._in_environment
        if given is not None and key_id == given.id:
            return given
        return _if_counts(await self._remembered(("id", key_id), lambda: self._store.get(key_id)))

    async def any(self) -> bool:
        """Whether there ever was a key."""
        known = self._known.get("any")
        if self._in_environment is not None or (known is not None and known[1]):
            return True
        return bool(await self._remembered("any", self._store.exist))

    async def signing_secret(self) -> bytes:
        """What links and sessions are signed with."""
        return cast(bytes, await self._remembered("secret", self._store.signing_secret))

    def forget(self) -> None:
        """Look everything up again: this process has changed a key."""
        self._known.clear()

    def _used(self, digest: str) -> Key | None:
        key = self._store.find(digest)
        if key is not None and key.counts:
            with suppress(OperationalError):  # reading goes on when the disk is full
                self._store.note_use(key)
        return key

    async def _remembered(self, what: Hashable, look_up: Callable[[], object]) -> Any:
        known = self._known.get(what)
        if known is not None and time.monotonic() - known[0] < KEY_SECONDS:
            return known[1]
        found = await anyio.to_thread.run_sync(look_up)
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[what] = (time.monotonic(), found)
        return found


def _key_in_environment(settings: Settings) -> Key | None:
    if settings.admin_key is None:
        return None
    digest = digest_of(settings.admin_key.get_secret_value())
    return Key(id=ENVIRONMENT, name="ACORN_ADMIN_KEY", scope=Scope.ADMIN, digest=digest)


def _if_counts(key: Key | None) -> Key | None:
    return key if key is not None and key.counts else None


class Callers:
    """Finds out who asks."""

    def __init__(self, ring: KeyRing, settings: Settings) -> None:
        self.ring = ring
        self._host_names = {name.lower() for name in separated(settings.host_names)}
        self._behind_sign_on = bool(settings.proxy_user_header)
        self._session_seconds = settings.session_seconds
        self._max_link_seconds = settings.max_link_seconds
        self._admins = frozenset(separated(settings.proxy_admin))
        self._writers = frozenset(separated(settings.proxy_write))

    async def asks_for_keys(self) -> bool:
        """Whether anybody has to say who they are."""
        return self._behind_sign_on or await self.ring.any()

    async def identify(self, scope: Connection) -> Caller:
        """Who sent the request `scope`.

        Raises:
            Unauthenticated: they say who they are, but it isn't true, or not any more.
            Forbidden: their link isn't valid, or not any more.
            BadRequest: they say it twice.
            Misdirected: there is no key, and the name they use may lead somebody else's scripts here.
        """
        if LINK in scope:
            return await self._by_link(scope[LINK])
        user = user_of(scope)
        if user is not None:
            return self._by_proxy(user)
        request = HTTPConnection(scope)
        if not await self.asks_for_keys():
            if not self._is_own_name(request.headers.get("host", "")):
                raise Misdirected(
                    "Without a key, the service answers to localhost, IP addresses and its host_names alone."
                )
            return LOCAL
        given = request.headers.getlist("authorization")
        if given:
            return await self._by_key(given)
        cookie = request.cookies.get(COOKIE)
        return ANYONE if cookie is None else await self._by_session(cookie)

    def _is_own_name(self, host: str) -> bool:
        """Whether the service goes by the name of this Host header.

        Otherwise a site could point its own name at this machine, and its scripts could then read and change
        everything ("DNS rebinding").
        """
        name = re.sub(r":[0-9]*$", "", host).strip("[]").lower()
        return name in self._host_names or _cannot_be_anothers(name)

    async def by_key(self, text: str) -> Caller:
        """Whoever has the key `text`; raises Unauthenticated."""
        return _of_key(await self._key(text))

    async def new_session(self, text: str) -> tuple[Caller, str, int]:
        """Whoever has the key `text`, a signed text that stands for them, and for how many seconds."""
        key = await self._key(text)
        seconds = self._session_seconds
        if key.expires_at is not None:
            seconds = min(seconds, int((key.expires_at - datetime.now(UTC)).total_seconds()))
        signed = signing.sign(await self.ring.signing_secret(), _purpose(key), key.id, seconds)
        return _of_key(key, ambient=True, until=signed.expires_at), str(signed), seconds

    async def new_link(self, scene_id: str, seconds: int) -> signing.Signed:
        """A signed text that lets whoever has it read one scene; raises BadRequest when for too long."""
        if seconds > self._max_link_seconds:
            raise BadRequest(
                "The link would be valid for too long.",
                limit="max_link_seconds",
                value=self._max_link_seconds,
            )
        return signing.sign(await self.ring.signing_secret(), "link", scene_id, seconds)

    async def _key(self, text: str) -> Key:
        key = await self.ring.find(text)
        if key is None:
            raise Unauthenticated("This key isn't known, or has expired or been revoked.")
        return key

    async def _by_link(self, token: str) -> Caller:
        signed = signing.parse(token)
        if signed is None or not signing.is_signed(await self.ring.signing_secret(), "link", signed):
            raise Forbidden("This link isn't valid.")
        if signed.is_over:
            raise Forbidden("This link has expired.")
        return Caller("link", scene=signed.subject, expires_at=signed.expires_at)

    def _by_proxy(self, user: ProxyUser) -> Caller:
        # Marked, or a user could take the name of a group.
        names = {user.name.removeprefix("@")} | {f"@{group}" for group in user.groups}
        scope = Scope.ADMIN if names & self._admins else Scope.WRITE if names & self._writers else Scope.READ
        return Caller(user.name, scope, f"user:{user.name}", ambient=True)

    async def _by_key(self, given: list[str]) -> Caller:
        if len(given) > 1:
            raise BadRequest("There is more than one Authorization header.")
        match = BEARER.fullmatch(given[0])
        if match is None:
            raise Unauthenticated("A key is sent as `Authorization: Bearer KEY`.")
        return await self.by_key(match[1])

    async def _by_session(self, cookie: str) -> Caller:
        signed = signing.parse(cookie)
        key = None if signed is None or signed.is_over else await self.ring.get(signed.subject)
        if signed is None or key is None:
            return ANYONE
        if not signing.is_signed(await self.ring.signing_secret(), _purpose(key), signed):
            return ANYONE
        return _of_key(key, ambient=True, until=signed.expires_at)


def _purpose(key: Key) -> str:
    # With the digest: a session ends with its key, also when another takes its id.
    return f"session {key.digest}"


def _of_key(key: Key, *, ambient: bool = False, until: datetime | None = None) -> Caller:
    return Caller(key.name, key.scope, f"key:{key.id}", ambient=ambient, expires_at=until or key.expires_at)


def _cannot_be_anothers(name: str) -> bool:
    """Whether nobody else can let this name lead here: an address, or a name without a domain."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name.rstrip(".") or name.endswith(".localhost")
    return True


async def get_callers(request: Request) -> Callers:
    """What finds out who asks, for this application."""
    callers: Callers = request.app.state.callers
    return callers


async def get_caller(request: Request) -> Caller:
    """Who asks; the middleware has found it out."""
    caller: Caller = request.state.caller
    return caller


CallersDep = Annotated[Callers, Depends(get_callers)]
CallerDep = Annotated[Caller, Depends(get_caller)]
