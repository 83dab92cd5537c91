"""The application: routers put together, and the server that runs it.

browser, curl ─▶ uvicorn ─▶ application (never decodes an upload, never fits)
├─▶ store: one data folder
├─▶ child: checks an upload
└─▶ workers: processes of their own ─▶ child: one fit each
"""

from __future__ import annotations

import gc
import ipaddress
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from acorn_svc import __version__, logs
from acorn_svc.api import (
    access,
    audit,
    deepzoom,
    errors,
    events,
    health,
    iiif,
    keys,
    links,
    mesh,
    metrics,
    page,
    query,
    region,
    scenes,
    session,
    tiles3d,
    tus,
)
from acorn_svc.api.callers import Callers, KeyRing
from acorn_svc.api.gate import Places
from acorn_svc.api.intake import Intake
from acorn_svc.api.metrics import Metrics
from acorn_svc.api.observation import Observer
from acorn_svc.api.proxies import Proxies
from acorn_svc.api.rendering import Renderer
from acorn_svc.api.safe_headers import SafeHeaders
from acorn_svc.api.server import Server, require_descriptors
from acorn_svc.api.stopping import Stopping
from acorn_svc.errors import Conflict, TooManyBytes
from acorn_svc.jobs.inspection import Inspector
from acorn_svc.jobs.queue import JobQueue
from acorn_svc.jobs.worker import EmbeddedWorkers, lock_folder
from acorn_svc.settings import Settings
from acorn_svc.store.audit import AuditLog
from acorn_svc.store.housekeeping import Housekeeper
from acorn_svc.store.keys import KeyStore
from acorn_svc.store.scenes import SceneStore
from acorn_svc.store.uploads import UploadStore

DESCRIPTION = """
Acorn turns an image or a 3D scan into an adaptive neural field, a small network that knows the
picture or the surface at every scale, and serves it while it is still learning.

1. **Upload** an image or a mesh: `curl --data-binary @photo.jpg "$ACORN/scenes?preset=draft"`
2. **Follow** the fit: `curl -N $ACORN/scenes/ID/events`
3. **Look** at a picture with any IIIF or Deep Zoom viewer, or cut out any region at any size; look
   at a shape with any 3D Tiles client, or download its mesh at any resolution.
4. **Keep** the `.acorn` file: `curl -O -J $ACORN/scenes/ID/file`

Coordinates in an image are in pixels of the full image: x to the right, y down, the first pixel's
centre at (0.5, 0.5). Those of a shape are in the units of the mesh that was uploaded.

Every error has the same shape: `{"error": {"code", "message", "limit", "value"}}`.
"""
TAGS = [
    {"name": "Scenes", "description": "Upload images and meshes, follow their fit, keep the result."},
    {"name": "Uploads", "description": "Upload in parts, and go on where it broke off: tus 1.0.0."},
    {"name": "IIIF", "description": "Pictures for viewers: the IIIF Image API 3.0, level 2."},
    {"name": "Deep Zoom", "description": "Pictures for viewers: Deep Zoom images (DZI)."},
    {"name": "Region", "description": "Any part of a scene, at any size, as one file."},
    {"name": "Shapes", "description": "A shape as one mesh, at any resolution."},
    {"name": "3D Tiles", "description": "Shapes for viewers: 3D Tiles 1.1, an implicit octree."},
    {"name": "Query", "description": "The field itself: coordinates in, values out."},
    {"name": "Access", "description": "Keys, signing in, signed links, and who did what."},
    {"name": "Service", "description": "The service itself."},
]
UPLOADS = re.compile("/scenes|/uploads(/.*)?")
log = structlog.get_logger()


def create_app(settings: Settings, workers: EmbeddedWorkers | None = None) -> FastAPI:
    """The application on the data folder of `settings`; `workers` live as long as it does."""
    app = FastAPI(
        title="Acorn",
        version=__version__,
        summary="Images and shapes as adaptive neural fields, fitted and served.",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        responses=errors.documented(422),
    )
    store = SceneStore(settings)
    app.state.settings = settings
    app.state.store = store
    app.state.jobs = JobQueue(store, settings.max_queued_jobs, settings.max_queued_jobs_per_key)
    app.state.inspector = Inspector(settings)
    app.state.intake = Intake(store, app.state.jobs, app.state.inspector)
    app.state.uploads = UploadStore(store)
    app.state.renderer = Renderer(store, settings)
    app.state.checkup = health.Checkup(store, settings, workers)
    app.state.event_streams = Places(settings.max_event_streams, "max_event_streams")
    app.state.keys = KeyStore(store.database, settings.max_keys)
    app.state.audit = AuditLog(store.database, settings.max_audit_entries)
    app.state.callers = Callers(KeyRing(app.state.keys, settings), settings)
    app.state.workers = workers
    app.state.metrics = Metrics(settings, store, app.state.renderer, workers)
    app.state.stopping = Stopping(settings.shutdown_seconds)
    # Routes are tried in this order.
    for module in (iiif, deepzoom):
        app.include_router(module.pictures, responses=errors.documented(400, 404, 503))
    for module in (scenes, tus, events, links, session, keys, audit, health, metrics):
        app.include_router(module.router)
    for module in (iiif, deepzoom, region, mesh, tiles3d, query):
        app.include_router(module.router, responses=errors.documented(400, 404, 503))
    routes = access.rules_of(app)
    access.describe(app, routes)
    everybodys = page.install(app)
    errors.install(app)
    # The last one is the first to see a request.
    app.add_middleware(Guard, max_request_bytes=settings.max_request_bytes)
    app.add_middleware(
        access.Access,
        routes=routes,
        page=everybodys,
        callers=app.state.callers,
        store=store,
        uploads=app.state.uploads,
        audit=app.state.audit,
    )
    app.add_middleware(SafeHeaders, settings=settings)
    app.add_middleware(Observer, metrics=app.state.metrics, settings=settings)
    if settings.trusted_proxies:
        app.add_middleware(Proxies, settings=settings)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    workers: EmbeddedWorkers | None = app.state.workers
    if workers is not None:
        workers.start()
    stopping: Stopping = app.state.stopping
    housekeeper = Housekeeper(app.state.store, app.state.settings)
    housekeeper.start()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tus.look_after, app.state.uploads, app.state.intake)
        yield
        app.state.inspector.stop()
        tasks.cancel_scope.cancel()
    stopping.set()
    # All are asked before one is waited for.
    if workers is not None:
        workers.ask_to_stop()
    await anyio.to_thread.run_sync(housekeeper.stop, stopping.seconds_left)
    if workers is not None:
        await anyio.to_thread.run_sync(workers.stop, stopping.seconds_left)
    app.state.renderer.close()
    app.state.jobs.close()
    app.state.store.close()


class Guard:
    """Bounds the bodies that are read as a whole."""

    def __init__(self, app: ASGIApp, max_request_bytes: int) -> None:
        self._app = app
        self._most = max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = UPLOADS.fullmatch(scope["path"]) is not None
        await self._app(scope, receive if is_upload else self._bounded(receive), send)

    def _bounded(self, receive: Receive) -> Receive:
        count = 0

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self._most:
                sentence = f"The request is larger than {self._most} bytes."
                cause = TooManyBytes(sentence, limit="max_request_bytes", value=self._most)
                raise HTTPException(413) from cause  # any other kind would be taken for a bad body
            return message

        return counted


def _require_keys(settings: Settings, keys: KeyStore) -> None:
    """Raise Conflict when everybody who reaches the service could do everything, unless that is meant."""
    has_keys = settings.admin_key is not None or bool(settings.proxy_user_header) or keys.exist()
    if has_keys or _is_loopback(settings.host):
        return
    if not settings.insecure:
        raise Conflict(
            f"Everybody who reaches {settings.host} could upload, change and delete: make a key first, with "
            "`acorn keys create --name me --scope admin`, or say --insecure."
        )
    log.warning("There is no key: whoever reaches this address can do everything.", host=settings.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(settings: Settings) -> None:
    """Run the service until SIGTERM or Ctrl-C.

    Raises Conflict when the data folder is in use, when others could do everything, or when the system does
    not allow as many connections as the settings do.
    """
    require_descriptors(settings)
    logs.configure(settings)
    with lock_folder(settings.data, "server.lock"):
        app = create_app(settings, EmbeddedWorkers(settings) if settings.embedded_workers else None)
        app.state.store.adopt_old_checkpoints()
        _require_keys(settings, app.state.keys)
        # What is started from here needs no key, least of all a process that reads uploads.
        os.environ.pop("ACORN_ADMIN_KEY", None)
        # What has been imported stays: to look for garbage in it stops the server for tenths of a second.
        gc.freeze()
        Server(app, settings).run()
