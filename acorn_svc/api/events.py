"""What happens to a scene, as server-sent events: first what has happened, then what happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from acorn_svc.api.dependencies import SceneDep, StoreDep
from acorn_svc.api.errors import documented
from acorn_svc.api.scenes import BaseDep, scene_out
from acorn_svc.errors import NotFound
from acorn_svc.jobs import life
from acorn_svc.store.scenes import Scene, SceneStore

LOOK_SECONDS = 0.25
MAX_EVENT_DIGITS = 18

router = APIRouter(tags=["Scenes"])


@router.get(
    "/scenes/{id}/events",
    summary="Follow a scene",
    response_class=EventSourceResponse,
    responses=documented(404),
)
async def follow(
    scene: SceneDep,
    request: Request,
    store: StoreDep,
    base: BaseDep,
    last_event_id: Annotated[
        str | None, Header(description="The last event the client has; later ones are sent.")
    ] = None,
) -> AsyncIterator[ServerSentEvent]:
    """A stream of `text/event-stream` that ends when the job is over, however it ended.

    - `scene`: the scene as `GET /scenes/{id}` shows it; at once, and whenever it changes.
    - `progress`: `id`, `version`, `status`, and the members of the scene's `progress`; first those
      of the past, so that a curve can be drawn, then each as it comes.
    """
    yield ServerSentEvent(event="scene", data=scene_out(scene, base))
    told, after = scene.updated_at, _position(last_event_id)
    while not request.app.state.stopping.is_set():
        # In this order: all that led to the scene's state is then among the events.
        present = await anyio.to_thread.run_sync(_find, store, scene.id)
        events = await anyio.to_thread.run_sync(store.progress_after, scene.id, after)
        for event in events:
            after = event.id
            yield ServerSentEvent(event="progress", data=event.data, id=str(event.id))
        if present is None:
            return
        if present.updated_at != told:
            told = present.updated_at
            yield ServerSentEvent(event="scene", data=scene_out(present, base))
        if not events:
            if present.status not in life.ACTIVE:
                return
            await asyncio.sleep(LOOK_SECONDS)


def _find(store: SceneStore, scene_id: str) -> Scene | None:
    try:
        return store.get(scene_id)
    except NotFound:
        return None


def _position(last_event_id: str | None) -> int:
    text = last_event_id or ""
    known = text.isascii() and text.isdigit() and len(text) <= MAX_EVENT_DIGITS
    return int(text) if known else 0
