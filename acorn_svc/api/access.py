"""Who may do what: one table for all routes, and the middleware that holds every request against it.

The table is held against the routes when the application is made: one without a rule stops it there. What is
neither in the table nor of the page isn't found.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final
from urllib.parse import urlsplit

import anyio.to_thread
import structlog
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from acorn_svc.api import errors, signing
from acorn_svc.api.callers import ANYONE, COOKIE, LINK, LOCAL, Caller, Callers
from acorn_svc.errors import AcornError, Forbidden, NotFound, Unauthenticated
from acorn_svc.store.audit import AuditEntry, AuditLog
from acorn_svc.store.keys import Scope
from acorn_svc.store.scenes import SceneStore
from acorn_svc.store.uploads import UploadStore

log = structlog.get_logger()


class Need(Enum):
    """What a request needs, from lenient to strict."""

    NOTHING = 0
    """Nobody is asked who they are."""
    GREETING = 1
    """Who says who they are must say so truly; the answer may depend on it."""
    SEE = 2
    """To see the scene: it is public, or the link is for it, or the scope is read."""
    READ = 3
    WRITE = 4
    CONTINUE = 5
    """To have begun the upload, with the scope write; or the scope admin."""
    CHANGE = 6
    """To have made the scene, with the scope write; or the scope admin."""
    ADMIN = 7


RULES: Final = {
    "GET /openapi.json": Need.NOTHING,
    "GET /healthz": Need.NOTHING,
    "GET /readyz": Need.NOTHING,
    "GET /session": Need.GREETING,
    "POST /session": Need.GREETING,
    "DELETE /session": Need.GREETING,
    "GET /scenes": Need.GREETING,  # lists what the caller may see
    # What there is to see of a scene
    "GET /iiif/{id}": Need.SEE,
    "GET /iiif/{id}/info.json": Need.SEE,
    "GET /iiif/{id}/{region}/{size}/{rotation}/{file}": Need.SEE,
    "GET /dzi/{id}.dzi": Need.SEE,
    "GET /dzi/{id}_files/{level}/{tile}": Need.SEE,
    "GET /tiles3d/{id}/tileset.json": Need.SEE,
    "GET /tiles3d/{id}/subtrees/{level:int}.{x:int}.{y:int}.{z:int}.subtree": Need.SEE,
    "GET /tiles3d/{id}/content/{level:int}/{x:int}/{y:int}/{z:int}.glb": Need.SEE,
    "GET /scenes/{id}": Need.SEE,
    "GET /scenes/{id}/events": Need.SEE,
    "GET /scenes/{id}/file": Need.SEE,
    "GET /scenes/{id}/tree": Need.SEE,
    "GET /scenes/{id}/region": Need.SEE,
    "GET /scenes/{id}/mesh": Need.SEE,
    "GET /scenes/{id}/thumbnail.webp": Need.SEE,
    "POST /scenes/{id}/query": Need.SEE,
    # Originals may say more than can be seen: where and with what a photo was taken.
    "GET /scenes/{id}/original": Need.READ,
    "GET /metrics": Need.READ,
    "POST /scenes": Need.WRITE,
    "POST /uploads": Need.WRITE,
    "GET /uploads/{id}": Need.CONTINUE,
    "PATCH /uploads/{id}": Need.CONTINUE,
    "DELETE /uploads/{id}": Need.CONTINUE,
    "PATCH /scenes/{id}": Need.CHANGE,
    "DELETE /scenes/{id}": Need.CHANGE,
    "POST /scenes/{id}/cancel": Need.CHANGE,
    "POST /scenes/{id}/pause": Need.CHANGE,
    "POST /scenes/{id}/resume": Need.CHANGE,
    "POST /scenes/{id}/retry": Need.CHANGE,
    "POST /scenes/{id}/links": Need.CHANGE,
    "GET /keys": Need.ADMIN,
    "POST /keys": Need.ADMIN,
    "DELETE /keys/{id}": Need.ADMIN,
    "GET /audit": Need.ADMIN,
}
SCOPES: Final = {
    Need.READ: Scope.READ,
    Need.WRITE: Scope.WRITE,
    Need.CONTINUE: Scope.WRITE,
    Need.CHANGE: Scope.WRITE,
    Need.ADMIN: Scope.ADMIN,
}
"""The scope that is needed, whatever else is."""
SCHEMES: Final = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key, made by `POST /keys` or `acorn keys create`. Where there is none, and nobody "
        "signs in at a proxy, everybody may do everything. A signed link needs no key: it begins with `/s/`.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "What `POST /session` gives a browser for a key.",
    },
}
"""How the manual calls the ways to say who one is. Those of a proxy are between it and the service."""
PART: Final = "PATCH /uploads/{id}"
MADE: Final = "acorn-scene"
"""The header in which the last part of an upload says where its scene is."""
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
ID: Final = re.compile("[0-9a-z]{1,26}")
"""Of a scene, an upload or a key; whatever else stands in an address is not written down."""
DISGUISE: Final = b"x-http-method-override"
LINK_PATH: Final = re.compile(rf"/s/({signing.FORM})(?P<rest>/.*)", re.DOTALL)
# Neither does a part of an upload change anything, until it is the last one.
NOT_AUDITED: Final = frozenset({"DELETE /session", "POST /scenes/{id}/query", PART})


@dataclass(frozen=True)
class Route:
    """One route of the application, and what it needs."""

    pattern: re.Pattern[str]
    path: str
    methods: frozenset[str]
    need: Need


def rules_of(app: FastAPI) -> list[Route]:
    """What each route of `app` needs. Raises KeyError when RULES doesn't say."""
    return [
        Route(compile_path(path)[0], path, frozenset(methods), _need(path, methods))
        for path, methods in routes_of(app)
    ]


def routes_of(app: FastAPI) -> Iterable[tuple[str, set[str]]]:
    """Path and methods of every route, in the order in which they are tried."""
    for route in iter_route_contexts(app.routes):
        if route.path is not None and route.methods is not None:
            yield route.path, route.methods


def _need(path: str, methods: Iterable[str]) -> Need:
    """OPTIONS says what may be asked, never what there is; HEAD is as GET."""
    asking = {"GET" if method == "HEAD" else method for method in methods} - {"OPTIONS"}
    needs = [RULES[f"{method} {path}"] for method in asking]
    return max(needs, key=lambda need: need.value, default=Need.NOTHING)


def describe(app: FastAPI, routes: Sequence[Route]) -> None:
    """Let the manual say what each of `routes` needs."""
    undescribed = app.openapi

    def described() -> dict[str, Any]:
        manual = undescribed()
        manual.setdefault("components", {})["securitySchemes"] = SCHEMES
        for route in routes:
            operations = manual["paths"].get(compile_path(route.path)[1], {})
            for method in route.methods & {name.upper() for name in operations}:
                operations[method.lower()]["security"] = _security(route.need)
        return manual

    app.openapi = described  # type: ignore[method-assign]


def _security(need: Need) -> list[dict[str, list[str]]]:
    """Any of these will do, as OpenAPI has it; an empty one is nobody."""
    if need is Need.NOTHING:
        return []
    scopes = [SCOPES[need].value] if need in SCOPES else []
    ways = [{name: scopes} for name in SCHEMES]
    return ways if scopes else [{}, *ways]


class Access:
    """Lets through what the caller may do, says who they are, and writes down what they change."""

    def __init__(
        self,
        app: ASGIApp,
        routes: Sequence[Route],
        page: Collection[str],
        callers: Callers,
        store: SceneStore,
        uploads: UploadStore,
        audit: AuditLog,
    ) -> None:
        self._app = app
        self._routes = routes
        self._page = page
        self._callers = callers
        self._store = store
        self._uploads = uploads
        self._audit = audit

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = _without_link(scope)
        route, parameters = self._find(scope)
        if route is None:
            known = _first_part(get_route_path(scope)) in self._page
            absent = errors.answer(NotFound("There is nothing at this address."))
            await (self._app if known else absent)(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["route"] = route.path
        asked = _Asked(scope, route, parameters)
        try:
            asked.caller = await self._admit(asked)
        except Exception as error:
            foreseen = error if isinstance(error, AcornError) else errors.of_storage(error)
            if foreseen is None:
                raise
            await self._note(asked, errors.status_of(foreseen))
            await errors.answer(foreseen)(scope, receive, send)
            return
        state["caller"] = asked.caller
        try:
            await self._app(scope, receive, self._watched(asked, send))
        except Exception:
            await self._note(asked, 500)
            raise

    def _find(self, scope: Connection) -> tuple[Route | None, dict[str, str]]:
        """The route as the application will find it, and the parameters in its path.

        A method that the path doesn't have, or that is disguised, needs what its strictest one does.
        """
        path, method = get_route_path(scope), None if _is_disguised(scope) else scope["method"]
        strictest: tuple[Route | None, dict[str, str]] = None, {}
        for route in self._routes:
            match = route.pattern.match(path)
            if match is None:
                continue
            if method in route.methods:
                return route, match.groupdict()
            if strictest[0] is None or route.need.value > strictest[0].need.value:
                strictest = route, match.groupdict()
        return strictest

    async def _admit(self, asked: _Asked) -> Caller:
        """Who asks, if they may; raises Unauthenticated, Forbidden, NotFound or Misdirected."""
        need = asked.route.need
        if need is Need.NOTHING or asked.is_options:
            return ANYONE
        caller = await self._callers.identify(asked.scope)
        if asked.is_unsafe and need is not Need.SEE and caller.ambient:
            _require_same_site(asked.scope)
        if need is Need.SEE:
            await self._require_sight(caller, asked)
        if need in SCOPES:
            _require(caller, SCOPES[need])
        if need is Need.CONTINUE:
            await self._require_upload(caller, asked.parameters["id"])
        elif need is Need.CHANGE:
            await self._require_ownership(caller, asked.parameters["id"])
        return caller

    async def _require_sight(self, caller: Caller, asked: _Asked) -> None:
        if caller.may(Scope.READ):
            return
        # Addresses of what can be seen may name a version: `{id}-{version}`.
        scene_id = asked.parameters["id"].partition("-")[0]
        if caller.scene is not None:
            if caller.scene != scene_id:
                raise NotFound("There is no scene with this id.")
            return
        # Whether there is a private scene with this id is nobody's business.
        if not await self._is_public(scene_id):
            raise Unauthenticated("This needs a key: `Authorization: Bearer KEY`.")

    async def _is_public(self, scene_id: str) -> bool:
        try:
            return self._store.head_now(scene_id).public
        except BlockingIOError:
            pass
        except NotFound:
            return False
        try:
            return (await anyio.to_thread.run_sync(self._store.head, scene_id)).public
        except NotFound:
            return False

    async def _require_ownership(self, caller: Caller, scene_id: str) -> None:
        if caller.may(Scope.ADMIN):
            return
        scene = await anyio.to_thread.run_sync(self._store.get, scene_id)
        if scene.owner is None or scene.owner != caller.owner:
            raise Forbidden("Somebody else made this scene; only they and admins may change it.")

    async def _require_upload(self, caller: Caller, upload_id: str) -> None:
        if caller.may(Scope.ADMIN):
            return
        upload = await anyio.to_thread.run_sync(self._uploads.get, upload_id)
        if upload.owner is None or upload.owner != caller.owner:
            raise NotFound("There is no upload with this id.")

    def _watched(self, asked: _Asked, send: Send) -> Send:
        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                _keep_private(asked.caller, headers)
                await self._note(asked, message["status"], headers.get(MADE) or headers.get("location"))
            await send(message)

        return watched

    async def _note(self, asked: _Asked, status: int, location: str | None = None) -> None:
        """Write down what was done, or tried; what nobody with a name tried, in the log alone."""
        if not asked.is_unsafe or (asked.action in NOT_AUDITED and not (asked.action == PART and location)):
            return
        caller = asked.scope.get("state", {}).get("caller", asked.caller)
        target = (location or "").rpartition("/")[2] or asked.parameters.get("id", "")
        entry = {
            "caller": caller.label,
            "name": caller.name,
            "action": asked.action,
            "target": target if ID.fullmatch(target) else None,
            "address": (asked.scope.get("client") or (None,))[0],
            "status": status,
        }
        log.info("audit", **entry)
        if caller != ANYONE:
            await anyio.to_thread.run_sync(self._keep, entry)

    def _keep(self, entry: dict[str, Any]) -> None:
        try:
            self._audit.add(AuditEntry(**entry))
        except Exception:
            log.exception("an entry of the audit log could not be kept")


class _Asked:
    """One request: which route it is for, and who sent it."""

    def __init__(self, scope: Connection, route: Route, parameters: dict[str, str]) -> None:
        self.scope = scope
        self.route = route
        self.parameters = parameters
        self.caller = ANYONE

    @property
    def action(self) -> str:
        return f"{self.scope['method']} {self.route.path}"

    @property
    def is_options(self) -> bool:
        return self.scope["method"] == "OPTIONS" and not _is_disguised(self.scope)

    @property
    def is_unsafe(self) -> bool:
        return self.scope["method"] not in SAFE_METHODS or _is_disguised(self.scope)


def _is_disguised(scope: Connection) -> bool:
    return any(name == DISGUISE for name, _ in scope["headers"])


def _first_part(path: str) -> str:
    return "/" + path[1:].partition("/")[0]


def _without_link(scope: Connection) -> Connection:
    """A request below /s/TOKEN as one without, and the token beside it, where no log shows it.

    Links that the answer makes stay below: they are made from `root_path`.
    """
    match = LINK_PATH.fullmatch(scope["path"])
    if match is None:
        return scope
    token, path = match[1], match["rest"]
    root = f"{scope.get('root_path', '')}/s/{token}"
    return {**scope, "path": path, "raw_path": path.encode(), "root_path": root, LINK: token}


def without_token(path: str) -> str:
    """`path` as a log may show it: that of a signed link without what signs it."""
    return LINK_PATH.sub(r"/s/...\g<rest>", path)


def _require(caller: Caller, scope: Scope) -> None:
    if caller.may(scope):
        return
    if caller == ANYONE:
        raise Unauthenticated("This needs a key: `Authorization: Bearer KEY`.")
    raise Forbidden(f"This needs the scope {scope}.")


def _require_same_site(scope: Connection) -> None:
    """Refuse what another site has made a browser ask ("cross-site request forgery").

    Browsers say so in Sec-Fetch-Site, older ones in Origin, other programs in neither.
    """
    headers = Headers(scope=scope)
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site in ("same-origin", "none"):
        return
    if site is None and (origin is None or urlsplit(origin).netloc == headers.get("host")):
        return
    raise Forbidden("This was asked by another site. Behind a proxy, the Host header must stay as it was.")


def _keep_private(caller: Caller, headers: MutableHeaders) -> None:
    """Let no cache hand to others what one caller may see."""
    if caller in (ANYONE, LOCAL):
        return
    control = headers.get("cache-control", "no-store")
    headers["cache-control"] = re.sub(r"\bpublic\b", "private", control)
