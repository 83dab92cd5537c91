"""Where pictures are made: open fields, finished tiles, and who may render when.

    request ─▶ Gate (at most `max_in_flight_renders` work, at most `render_queue` wait, else 503)
            ─▶ Renderer.open (an LRU cache of open fields by scene and version)
            ─▶ rendition.encode ─▶ an LRU cache of encoded pictures

One `Renderer` lives in `app.state.renderer` from start to end of the server. Its caches are bounded
by bytes and are safe to use from several threads.
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Generic, TypeVar, cast

import anyio
import anyio.to_thread
import torch
from fastapi import Depends, Request, Response

from acorn_svc import __version__
from acorn_svc.api.caching import bodiless, headers_for
from acorn_svc.api.rendition import MEDIA_TYPES, Rendition, encode
from acorn_svc.errors import BadRequest, NotFound, Unavailable
from acorn_svc.field.kinds import AnyField, as_image, as_shape
from acorn_svc.field.model import Field
from acorn_svc.field.shape import ShapeField
from acorn_svc.formats.container import read_field
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import SceneHead, SceneStore, Snapshot, Status

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")

SCENE_ID: Final = re.compile("[0-9a-z]{26}")
# Features as 32-bit floats, what is derived from them when a field is read, and its index: 21 bytes
# were measured.
BYTES_PER_PARAMETER: Final = 24
# The finest blocks are there one by one: their leaf, and their sign at every scale.
BYTES_PER_FINEST_BLOCK: Final = 16
READY_SECONDS: Final = 86_400
CHANGING_SECONDS: Final = 2
OPEN_ATTEMPTS: Final = 5


class Cache(Generic[K, V]):
    """Values by key, the least recently used dropped when all together exceed `capacity` bytes."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._used = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value under `key`, now the most recently used one."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep `value`, of `size` bytes; one larger than the whole cache isn't kept."""
        with self._lock:
            self._used -= self._entries.pop(key, (None, 0))[1]
            if size > self._capacity:
                return
            self._entries[key] = (value, size)
            self._used += size
            while self._used > self._capacity:
                _, (_, dropped) = self._entries.popitem(last=False)
                self._used -= dropped

    @property
    def used(self) -> int:
        """Bytes in use; never more than the capacity."""
        return self._used


class Gate:
    """Lets `width` renders work at the same time and `queue` more wait, for `patience` seconds."""

    def __init__(self, width: int, queue: int, patience: float) -> None:
        self._places = anyio.Semaphore(width)
        self._threads = anyio.CapacityLimiter(width)
        self._queue = queue
        self._patience = patience

    async def run(self, work: Callable[[], T], request: Request) -> T:
        """`work` in a thread, as soon as there is a place.

        Raises Unavailable when too many wait, or after too long a wait, or when the client that
        sent `request` has gone in the meantime.
        """
        if self._places.statistics().tasks_waiting >= self._queue:
            raise Unavailable("Too many renders wait.", limit="render_queue", value=self._queue)
        try:
            with anyio.fail_after(self._patience):
                await self._places.acquire()
        except TimeoutError:
            raise Unavailable(
                "The render had to wait too long.",
                limit="render_wait_seconds",
                value=self._patience,
            ) from None
        try:
            if await request.is_disconnected():
                raise Unavailable("The client has gone.")
            return await anyio.to_thread.run_sync(work, limiter=self._threads)
        finally:
            self._places.release()

    async def steps(self, source: Iterator[T]) -> AsyncIterator[T]:
        """The items of `source`, each made in a thread when there is a place.

        Between two items the place is free for others, so a slow client holds nobody up. When the
        consumer stops, or is cancelled, so does `source`.
        """
        end = object()
        try:
            while True:
                async with self._places:
                    item = await anyio.to_thread.run_sync(next, source, end, limiter=self._threads)
                if item is end:
                    return
                yield cast(T, item)
        finally:
            _close(source)


async def continued(first: T, rest: AsyncIterator[T]) -> AsyncIterator[T]:
    """`first` and then `rest`."""
    yield first
    async for item in rest:
        yield item


def _close(source: Iterator[object]) -> None:
    close = getattr(source, "close", None)
    if close is not None:
        close()


@dataclass(frozen=True)
class Extent:
    """What an image is, in pixels."""

    width: int
    height: int
    channels: int


@dataclass(frozen=True)
class View:
    """A scene that can be looked at: what is known of it, and its newest snapshot at this moment."""

    scene: SceneHead
    snapshot: Snapshot

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
        """Of an answer made from this view alone: short-lived while the fit goes on.

        Its ETag changes with what is to be seen, and with the program that renders it.
        """
        seconds = READY_SECONDS if self.scene.status == Status.READY else CHANGING_SECONDS
        etag = f'"{self.snapshot.version}-{__version__}"'
        return headers_for(etag, f"public, max-age={seconds}", **more)


class Renderer:
    """Renders the scenes of one store, within the limits of `settings`."""

    def __init__(self, store: SceneStore, settings: Settings) -> None:
        # Renders run side by side, each on one core. Threads within a render would wait for each
        # other, more than ten times longer while a fit keeps the cores busy.
        torch.set_num_threads(1)
        self.settings = settings
        self.gate = Gate(settings.max_in_flight_renders, settings.render_queue, settings.render_wait_seconds)
        # A mesh takes all the time that it needs: one at a time, so that pictures go on.
        self.extractions = Gate(1, settings.render_queue, settings.render_wait_seconds)
        self._store = store
        self._fields: Cache[tuple[str, int], AnyField] = Cache(settings.field_cache_bytes)
        self._results: Cache[Hashable, bytes] = Cache(settings.tile_cache_bytes)
        self._making: dict[Hashable, anyio.Event] = {}
        self._opening = threading.Lock()

    @property
    def spool(self) -> Path:
        """The folder for temporary files, on the disk that holds the data."""
        return self._store.blobs.spool

    async def view(self, scene_id: str) -> View:
        """The scene as it looks now; raises NotFound."""
        if not SCENE_ID.fullmatch(scene_id):
            raise NotFound("There is no such scene.")
        try:
            scene = self._store.head_now(scene_id)
        except BlockingIOError:
            return await anyio.to_thread.run_sync(self._view, scene_id)
        return View(scene, self._store.snapshot_of(scene))

    def _view(self, scene_id: str) -> View:
        scene = self._store.head(scene_id)
        return View(scene, self._store.snapshot_of(scene))

    async def respond(self, request: Request, view: View, rendition: Rendition, **headers: str) -> Response:
        """The picture as an answer to `request`, with `headers` added. Raises as Gate.run and open."""

        def render(field: AnyField) -> bytes:
            return encode(as_image(field), rendition)

        media_type = MEDIA_TYPES[rendition.format]
        return await self.answer(request, view, rendition, render, media_type, **headers)

    async def answer(
        self,
        request: Request,
        view: View,
        what: Hashable,
        work: Callable[[AnyField], bytes],
        media_type: str,
        **headers: str,
    ) -> Response:
        """What `work` makes, as `make` does, as an answer to `request`, with `headers` added."""
        if answer := bodiless(request, media_type, view.headers(**headers)):
            return answer
        newest, content = await self.make(view, what, work, request)
        return Response(content, 200, newest.headers(**headers), media_type)

    async def make(
        self, view: View, what: Hashable, work: Callable[[AnyField], bytes], request: Request
    ) -> tuple[View, bytes]:
        """What `work` makes of the view's field, and the view that it shows; see `open`.

        Kept under the name `what`, and made once for all who ask at the same time. Raises as Gate.run, open
        and `work`.
        """
        key = view.key, what
        while (known := self._results.get(key)) is None:
            if (made := self._making.get(key)) is not None:
                await made.wait()  # should its maker fail or leave, the next one in turn makes it
                continue
            made = self._making[key] = anyio.Event()
            try:
                newest, content = await self.gate.run(lambda: self._work(view, what, work), request)
            finally:
                del self._making[key]
                made.set()
            self._results.put((newest.key, what), content, len(content))
            return newest, content
        return view, known

    def _work(self, view: View, what: Hashable, work: Callable[[AnyField], bytes]) -> tuple[View, bytes]:
        newest, field = self.open(view)
        known = self._results.get((newest.key, what))
        return newest, work(field) if known is None else known

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
        deleted, and Unavailable when one snapshot after the other is replaced.
        """
        for _ in range(OPEN_ATTEMPTS):
            try:
                return view, self._field(view)
            except FileNotFoundError:
                view = self._view(view.scene.id)
        raise Unavailable("This scene changes too fast; ask again.", retry_after=1)

    def _field(self, view: View) -> AnyField:
        known = self._fields.get(view.key)
        if known is not None:
            return known
        # One reader at a time: a burst of tiles of a new version reads the file once.
        with self._opening:
            field = self._fields.get(view.key)
            if field is None:
                field = read_field(self._store.local(view.snapshot))
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
