"""What happens to a scene, as server-sent events: first what has happened, then what happens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Final

import anyio.to_thread
from fastapi import APIRouter, Header, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic_core import to_json

from acorn_svc.api.dependencies import SceneDep, StoreDep
from acorn_svc.api.errors import documented
from acorn_svc.api.gate import BoundedStream, Places
from acorn_svc.api.scenes import Show, ShowDep, seconds_left
from acorn_svc.errors import NotFound
from acorn_svc.jobs import life
from acorn_svc.store.scenes import ProgressEvent, Scene, SceneStore, Status

LOOK_SECONDS: Final = 0.25
SILENCE_SECONDS: Final = 15.0
MAX_EVENT_DIGITS: Final = 18
# Proxies must neither keep the stream nor hold it back.
HEADERS: Final[dict[str, str]] = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

router = APIRouter(tags=["Scenes"])


@router.get(
    "/scenes/{id}/events",
    summary="Follow a scene",
    response_class=Response,
    responses={
        200: {"content": {EventSourceResponse.media_type: {}}, "description": "The events."},
        **documented(404, 503),
    },
)
async def follow(
    scene: SceneDep,
    request: Request,
    store: StoreDep,
    show: ShowDep,
    last_event_id: Annotated[
        str | None, Header(description="The last event the client has; later ones are sent.")
    ] = None,
) -> Response:
    """A stream of `text/event-stream` that ends when the job is over, however it ended.

    - `scene`: the scene as `GET /scenes/{id}` shows it; at once, and whenever it changes.
    - `progress`: `id`, `version`, `status`, `seconds_left`, and the members of the scene's `progress`;
      first those of the past, so that a curve can be drawn, then each as it comes.
    """
    places: Places = request.app.state.event_streams
    places.require_room()
    follower = await anyio.to_thread.run_sync(Follower, store, scene, show, _position(last_event_id))
    events = _stream(follower, request.app.state.stopping)
    return BoundedStream(places, events, HEADERS, EventSourceResponse.media_type)


class Follower:
    """One client of a scene: what it has been told, and whether there is more to come."""

    def __init__(self, store: SceneStore, scene: Scene, show: Show, after: int) -> None:
        self._store = store
        self._show = show
        self._shown = show(scene)
        self._after = after
        self.over = False

    def scene_event(self) -> bytes:
        """The scene as it was told last; at first, as it was when the client came."""
        return format_sse_event(event="scene", data_str=self._shown.model_dump_json())

    def news(self) -> list[bytes]:
        """What has happened since the last call; blocks while the store is asked."""
        # In this order: all that led to the scene's state is then among the events.
        scene_id = self._shown.id
        present = _find(self._store, scene_id)
        progress = self._store.progress_after(scene_id, self._after)
        told = self._tell_progress(progress)
        if present is not None and self._has_changed(present):
            self._shown = self._show(present)
            told.append(self.scene_event())
        # A long history comes in several parts.
        self.over = present is None or (not progress and present.status in life.OVER)
        return told

    def _has_changed(self, present: Scene) -> bool:
        """Whether clients see something new: the scene itself, or its place in the queue."""
        if present.updated_at != self._shown.updated_at:
            return True
        return (
            present.status == Status.QUEUED
            and self._show(present).queue_position != self._shown.queue_position
        )

    def _tell_progress(self, progress: Sequence[ProgressEvent]) -> list[bytes]:
        if progress:
            self._after = progress[-1].id
        return [_progress_event(event) for event in progress]


async def _stream(follower: Follower, stopping: threading.Event) -> AsyncGenerator[bytes, None]:
    yield follower.scene_event()
    silence = 0.0
    while not stopping.is_set():
        news = await anyio.to_thread.run_sync(follower.news)
        for event in news:
            yield event
        if follower.over:
            return
        silence = 0.0 if news else silence + LOOK_SECONDS
        if silence >= SILENCE_SECONDS:
            yield KEEPALIVE_COMMENT
            silence = 0.0
        if not news:
            await asyncio.sleep(LOOK_SECONDS)


def _progress_event(event: ProgressEvent) -> bytes:
    # JSON has no infinity, which is the quality of a perfect fit.
    told = {**event.data, "seconds_left": seconds_left(event.data)}
    data = to_json(told, inf_nan_mode="null").decode()
    return format_sse_event(event="progress", data_str=data, id=str(event.id))


def _find(store: SceneStore, scene_id: str) -> Scene | None:
    try:
        return store.get(scene_id)
    except NotFound:
        return None


def _position(last_event_id: str | None) -> int:
    text = last_event_id or ""
    known = text.isascii() and text.isdigit() and len(text) <= MAX_EVENT_DIGITS
    return int(text) if known else 0
