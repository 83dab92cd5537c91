"""What happens to a scene, as server-sent events: first what has happened, then what happens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Final

import anyio.to_thread
from fastapi import APIRouter, Header, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic_core import to_json

from acorn_svc.api.dependencies import SceneDep, StoreDep
from acorn_svc.api.errors import documented
from acorn_svc.api.scenes import BaseDep, scene_out
from acorn_svc.errors import NotFound
from acorn_svc.jobs import life
from acorn_svc.store.scenes import ProgressEvent, Scene, SceneStore

LOOK_SECONDS: Final = 0.25
SILENCE_SECONDS: Final = 15.0
MAX_EVENT_DIGITS: Final = 18
# Proxies must neither keep the stream nor hold it back.
HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

router = APIRouter(tags=["Scenes"])


@router.get(
    "/scenes/{id}/events",
    summary="Follow a scene",
    response_class=Response,
    responses={
        200: {"content": {EventSourceResponse.media_type: {}}, "description": "The events."},
        **documented(404),
    },
)
async def follow(
    scene: SceneDep,
    request: Request,
    store: StoreDep,
    base: BaseDep,
    last_event_id: Annotated[
        str | None, Header(description="The last event the client has; later ones are sent.")
    ] = None,
) -> EventSourceResponse:
    """A stream of `text/event-stream` that ends when the job is over, however it ended.

    - `scene`: the scene as `GET /scenes/{id}` shows it; at once, and whenever it changes.
    - `progress`: `id`, `version`, `status`, and the members of the scene's `progress`; first those
      of the past, so that a curve can be drawn, then each as it comes.
    """
    follower = Follower(store, scene, base, _position(last_event_id))
    return EventSourceResponse(_stream(follower, request.app.state.stopping), headers=HEADERS)


class Follower:
    """One client of a scene: what it has been told, and whether there is more to come."""

    def __init__(self, store: SceneStore, scene: Scene, base: str, after: int) -> None:
        self._store = store
        self._base = base
        self._scene = scene
        self._after = after
        self.over = False

    def introduction(self) -> bytes:
        """The scene as it was when the client came."""
        return self._scene_event()

    def news(self) -> list[bytes]:
        """What has happened since the last call; blocks while the store is asked."""
        # In this order: all that led to the scene's state is then among the events.
        present = _find(self._store, self._scene.id)
        progress = self._store.progress_after(self._scene.id, self._after)
        told = self._tell_progress(progress)
        if present is not None and present.updated_at != self._scene.updated_at:
            self._scene = present
            told.append(self._scene_event())
        # A long history comes in several parts.
        self.over = present is None or (not progress and present.status not in life.ACTIVE)
        return told

    def _tell_progress(self, progress: Sequence[ProgressEvent]) -> list[bytes]:
        if progress:
            self._after = progress[-1].id
        return [_progress_event(event) for event in progress]

    def _scene_event(self) -> bytes:
        data = scene_out(self._scene, self._base).model_dump_json()
        return format_sse_event(event="scene", data_str=data)


async def _stream(follower: Follower, stopping: threading.Event) -> AsyncIterator[bytes]:
    yield follower.introduction()
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
    data = to_json(event.data, inf_nan_mode="null").decode()
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
