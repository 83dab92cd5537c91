"""Where pictures are made: open fields and finished tiles.

    request ─▶ view (the scene at this moment) ─▶ an LRU cache of encoded pictures
            ─▶ gate (who may render when) ─▶ Renderer.open (an LRU cache of open fields)
            ─▶ rendition.encode

An address names a scene by its id, and then shows the newest version, or by its id and a version,
`{id}-{version}`: what it shows never changes, so that of a finished scene it may be kept for ever.

One `Renderer` lives in `app.state.renderer` from start to end of the server. Its caches are bounded
by bytes and are safe to use from several threads. A field that somebody uses is in memory once, whether
the cache holds it or not.
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Generic, TypeVar
from weakref import WeakValueDictionary

import anyio.to_thread
import torch
from fastapi import Depends, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from acorn_svc import __version__
from acorn_svc.api.caching import FOR_EVER, bodiless, headers_for, kept_for
from acorn_svc.api.gate import Flights, Gate, GoOn, Places
from acorn_svc.api.rendition import MEDIA_TYPES, Rendition, encode
from acorn_svc.errors import BadRequest, NotFound, OtherVersion, Unavailable
from acorn_svc.field.kinds import AnyField, as_image, as_shape
from acorn_svc.field.model import Field
from acorn_svc.field.shape import ShapeField
from acorn_svc.formats.container import ModelLimits, read_field
from acorn_svc.jobs.inspection import file_limits
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import SceneHead, SceneStore, Snapshot, Status

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")

SCENE_NAME: Final = re.compile("([0-9a-z]{26})(?:-([1-9][0-9]{0,8}))?")
# Features as 32-bit floats, what is derived from them when a field is read, and its index: 21 bytes
# were measured.
BYTES_PER_PARAMETER: Final = 24
# The finest blocks are there one by one: their leaf, and their sign at every scale.
BYTES_PER_FINEST_BLOCK: Final = 16
# Paths of pictures. What they were lately answered with is remembered by its name in the cache.
PICTURE: Final = re.compile(rb"/(?:iiif|dzi|tiles3d)/[^?#]*\.(?:jpg|png|webp|tif|glb|subtree)(?=[?#]|$)")
EXPECTED: Final = "picture"  # in the state of a request that is on its way
PATH_CACHE_BYTES: Final = 1 << 23
BYTES_PER_PATH: Final = 800  # beside the path itself
READY_SECONDS: Final = 300
CHANGING_SECONDS: Final = 2
OPEN_ATTEMPTS: Final = 5


class Cache(Generic[K, V]):
    """Values by key, the least recently used dropped when all together exceed `capacity` bytes.

    One that is larger than that isn't kept, or with `keeps_newest` alone, until the next one comes.
    `hits` and `misses` count look-ups.
    """

    def __init__(self, capacity: int, *, keeps_newest: bool = False) -> None:
        self.capacity = capacity
        self._keeps_newest = keeps_newest
        self.hits = self.misses = 0
        self._used = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value under `key`, now the most recently used one."""
        with self._lock:
            if key not in self._entries:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def __contains__(self, key: K) -> bool:
        """Whether there is a value under `key`; that doesn't count as a use or a look-up."""
        return key in self._entries

    def put(self, key: K, value: V, size: int) -> None:
        """Keep `value`, of `size` bytes."""
        with self._lock:
            self._used -= self._entries.pop(key, (None, 0))[1]
            if size > self.capacity and not self._keeps_newest:
                return
            self._entries[key] = (value, size)
            self._used += size
            while self._used > self.capacity and len(self._entries) > 1:
                _, (_, dropped) = self._entries.popitem(last=False)
                self._used -= dropped

    @property
    def used(self) -> int:
        """Bytes in use; more than the capacity only for a newest value that is larger by itself."""
        return self._used


@dataclass(frozen=True)
class Extent:
    """What an image is, in pixels."""

    width: int
    height: int
    channels: int


@dataclass(frozen=True)
class View:
    """A scene that can be looked at: what is known of it, and its newest snapshot at this moment.

    `pinned`: the address named this version, and nothing else may be shown in its place.
    """

    scene: SceneHead
    snapshot: Snapshot
    pinned: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """What never shows anything else: the scene's id and the snapshot's version."""
        return self.scene.id, self.snapshot.version

    @property
    def is_shape(self) -> bool:
        """Whether this is a shape and not an image."""
        return self.scene.kind == "shape"

    @property
    def image(self) -> Extent:
        """The image's size; raises BadRequest for a shape."""
        scene = self.scene
        if scene.width is None or scene.height is None or scene.channels is None:
            raise BadRequest("This scene is a shape, which has no pixels; ask for its mesh or 3D Tiles.")
        return Extent(scene.width, scene.height, scene.channels)

    def require_shape(self) -> None:
        """Raise BadRequest for an image."""
        if not self.is_shape:
            raise BadRequest("This scene is an image, which has no surface; ask for a picture of it.")

    def headers(self, **more: str) -> dict[str, str]:
        """Of an answer made from this view alone: short-lived, but for a version of a finished scene.

        Its ETag changes with what is to be seen, and with the program that renders it.
        """
        etag = f'"{self.snapshot.version}-{__version__}"'
        return headers_for(etag, self._lifetime(), **more)

    def _lifetime(self) -> str:
        if self.scene.status != Status.READY:
            return kept_for(CHANGING_SECONDS)
        return FOR_EVER if self.pinned else kept_for(READY_SECONDS)

    def renewed(self, newest: View) -> View:
        """`newest`, of the same scene, for whoever asked for this; raises OtherVersion if it won't do."""
        if self.pinned and newest.snapshot.version != self.snapshot.version:
            raise OtherVersion("The scene shows another version now.")
        return replace(newest, pinned=self.pinned)


@dataclass(frozen=True)
class Opened:
    """An open field, the view that it shows, and whether to go on making something of it."""

    view: View
    field: AnyField
    go_on: GoOn


# Makes the bytes of an answer, in a thread.
Work = Callable[[Opened], bytes]


class Renderer:
    """Renders the scenes of one store, within the limits of `settings`."""

    def __init__(self, store: SceneStore, settings: Settings) -> None:
        # Renders run side by side, each on one core. Threads within a render would wait for each
        # other, more than ten times longer while a fit keeps the cores busy.
        torch.set_num_threads(1)
        self.settings = settings
        queue, patience = settings.render_queue, settings.render_wait_seconds
        self.gate = Gate(
            settings.max_in_flight_renders,
            queue,
            patience,
            settings.render_seconds,
            "render_seconds",
            settings.crowd_wait_seconds,
        )
        # A mesh takes long: one at a time, so that pictures go on.
        self.extractions = Gate(1, queue, patience, settings.mesh_seconds, "mesh_seconds")
        self.streams = Places(settings.max_streams, "max_streams")
        self._store = store
        self._limits = ModelLimits(**file_limits(settings)["model"])
        # The newest stays whatever its size: it isn't read again for each of its tiles.
        self._fields: Cache[tuple[str, int], AnyField] = Cache(settings.field_cache_bytes, keeps_newest=True)
        self._in_use: WeakValueDictionary[tuple[str, int], AnyField] = WeakValueDictionary()
        self._results: Cache[Hashable, bytes] = Cache(settings.tile_cache_bytes)
        self._making: Flights[tuple[View, bytes]] = Flights()
        self._expected: Counter[bytes] = Counter()
        self._paths: Cache[bytes, Hashable] = Cache(PATH_CACHE_BYTES)
        self._opening = threading.Lock()

    @property
    def caches(self) -> dict[str, Cache[Any, Any]]:
        """The caches by name."""
        return {"fields": self._fields, "tiles": self._results}

    @property
    def spool(self) -> Path:
        """The folder for temporary files, on the disk that holds the data."""
        return self._store.blobs.spool

    @property
    def _is_crowded(self) -> bool:
        return not self.gate.has_room(coming=len(self._making) + len(self._expected))

    def unknown_picture(self, url: bytes) -> bytes | None:
        """The path of the picture at `url`, as it was sent, if there is one that isn't in the cache."""
        match = PICTURE.match(url)
        return None if match is None or self._paths.get(match[0]) in self._results else match[0]

    def refuses(self, picture: bytes) -> bool:
        """Whether a request for an unknown picture need not be looked at: there is no room to render it.

        Taking a request apart costs more than answering it. A crowd would take the time away from those who
        are let in.
        """
        return self._is_crowded and picture not in self._expected

    def expecting(self, picture: bytes, app: ASGIApp) -> ASGIApp:
        """`app`, to be called once and soon; until it asks for the picture, that counts as one more."""
        self._expected[picture] += 1

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"][EXPECTED] = picture
            try:
                await app(scope, receive, send)
            finally:
                self._arrived(scope)

        return counted

    def _arrived(self, scope: Scope) -> None:
        picture = scope.get("state", {}).pop(EXPECTED, None)
        if picture is not None:
            self._expected[picture] -= 1
            if not self._expected[picture]:
                del self._expected[picture]

    async def view(self, name: str) -> View:
        """The scene `{id}`, or `{id}-{version}`, as it looks now.

        Raises NotFound, and OtherVersion when the scene shows another version.
        """
        match = SCENE_NAME.fullmatch(name)
        if not match:
            raise NotFound("There is no such scene.")
        scene_id, version = match.groups()
        try:
            scene = self._store.head_now(scene_id)
        except BlockingIOError:
            view = await anyio.to_thread.run_sync(self._view, scene_id)
        else:
            view = View(scene, self._store.snapshot_of(scene))
        if version is None:
            return view
        if int(version) != view.snapshot.version:
            raise OtherVersion("The scene shows another version now.")
        return replace(view, pinned=True)

    def _view(self, scene_id: str) -> View:
        scene = self._store.head(scene_id)
        return View(scene, self._store.snapshot_of(scene))

    async def respond(self, request: Request, view: View, rendition: Rendition, **headers: str) -> Response:
        """The picture as an answer to `request`, with `headers` added. Raises as Gate.run and open."""

        def render(opened: Opened) -> bytes:
            return encode(as_image(opened.field), rendition, opened.go_on)

        media_type = MEDIA_TYPES[rendition.format]
        return await self.answer(request, view, rendition, render, media_type, **headers)

    async def answer(
        self,
        request: Request,
        view: View,
        what: Hashable,
        work: Work,
        media_type: str,
        **headers: str,
    ) -> Response:
        """What `work` makes, as `make` does, as an answer to `request`, with `headers` added."""
        if answer := bodiless(request, media_type, view.headers(**headers)):
            return answer
        newest, content = await self.make(view, what, work, request)
        path: bytes = request.scope["raw_path"]
        self._paths.put(path, (newest.key, what), len(path) + BYTES_PER_PATH)
        return Response(content, 200, newest.headers(**headers), media_type)

    async def make(self, view: View, what: Hashable, work: Work, request: Request) -> tuple[View, bytes]:
        """What `work` makes of the view's field, and the view that it shows; see `open`.

        Kept under the name `what`, and made once for all who ask at the same time. Raises as Gate.run, open
        and `work`.
        """
        self._arrived(request.scope)
        key = view.key, what
        known = self._results.get(key)
        if known is not None:
            return view, known
        if key not in self._making and self._is_crowded:
            raise self.gate.full()
        anybodys = replace(view, pinned=False)
        making = self._making.join(request, key, lambda: self._make(anybodys, what, work))
        newest, content = await making
        return view.renewed(newest), content

    async def _make(self, view: View, what: Hashable, work: Work) -> tuple[View, bytes]:
        def in_thread(go_on: GoOn) -> tuple[View, bytes]:
            newest, field = self.open(view)
            known = self._results.get((newest.key, what))
            return newest, work(Opened(newest, field, go_on)) if known is None else known

        newest, content = await self.gate.run(in_thread)
        self._results.put((newest.key, what), content, len(content))
        return newest, content

    def open_image(self, view: View) -> tuple[View, Field]:
        """As `open`, for an image; raises BadRequest for a shape."""
        newest, field = self.open(view)
        return newest, as_image(field)

    def open_shape(self, view: View) -> tuple[View, ShapeField]:
        """As `open`, for a shape; raises BadRequest for an image."""
        newest, field = self.open(view)
        return newest, as_shape(field)

    def open(self, view: View) -> tuple[View, AnyField]:
        """The view's field, and the view that it shows: a newer one, if the snapshot of `view` has been
        replaced since it was looked up, as happens to those who wait while a fit goes on.

        Blocks while the field is read, so call it in a thread. Raises NotFound when the scene has been
        deleted, Unavailable when one snapshot after the other is replaced, and OtherVersion when that of a
        pinned view is.
        """
        for _ in range(OPEN_ATTEMPTS):
            try:
                return view, self._field(view)
            except FileNotFoundError:
                view = view.renewed(self._view(view.scene.id))
        raise Unavailable("This scene changes too fast; ask again.", retry_after=1)

    def close(self) -> None:
        """Take no more work."""
        self.gate.close()
        self.extractions.close()

    def _field(self, view: View) -> AnyField:
        known = self._fields.get(view.key)
        if known is not None:
            return known
        # One reader at a time: a burst of tiles of a new version reads the file once.
        with self._opening:
            field = self._in_use.get(view.key)  # as is all that the cache holds
            if field is None:
                field = read_field(self._store.local(view.snapshot), self._limits)
                self._in_use[view.key] = field
            self._fields.put(view.key, field, _memory(field))
            return field


def _memory(field: AnyField) -> int:
    """About how many bytes an open field takes."""
    finest = math.prod(field.lattice.tree.extent)
    return field.parameter_count * BYTES_PER_PARAMETER + finest * BYTES_PER_FINEST_BLOCK


async def get_renderer(request: Request) -> Renderer:
    """The server's renderer, which `create_app` made."""
    renderer: Renderer = request.app.state.renderer
    return renderer


RendererDep = Annotated[Renderer, Depends(get_renderer)]
