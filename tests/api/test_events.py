"""The stream of a scene at rest: it tells everything, and ends."""

from __future__ import annotations

import json
import math

import anyio
import pytest
from conftest import Gallery, random_field
from starlette.types import ASGIApp, Message

from acorn_svc.api import events
from acorn_svc.store.scenes import Status


def _progress(step: int) -> dict[str, object]:
    return {"stage": "fitting", "step": step, "steps": 9, "seconds": 1.0, "psnr": None} | {
        "blocks": 1, "parameters": 1, "bytes": 1
    }  # fmt: skip


def test_a_scene_at_rest_tells_its_past_and_ends(gallery: Gallery) -> None:
    scene_id = gallery.add(random_field(16, 16))
    for step in (1, 2):
        gallery.store.note_progress(scene_id, 0, _progress(step))
    answer = gallery.client.get(f"/scenes/{scene_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    names = [line for line in answer.text.splitlines() if line.startswith("event:")]
    assert names == ["event: scene", "event: progress", "event: progress"]
    data = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert data[0] == gallery.client.get(f"/scenes/{scene_id}").json()
    assert [event["step"] for event in data[1:]] == [1, 2]
    assert {"id": scene_id, "version": 1, "status": "ready"}.items() <= data[1].items()


def test_a_client_that_has_everything_gets_no_progress_again(gallery: Gallery) -> None:
    scene_id = gallery.add(random_field(16, 16))
    gallery.store.note_progress(scene_id, 0, _progress(1))
    last = gallery.store.progress_after(scene_id, 0)[-1].id
    path = f"/scenes/{scene_id}/events"
    assert "progress" not in gallery.client.get(path, headers={"Last-Event-ID": str(last)}).text.split()
    assert "progress" in gallery.client.get(path, headers={"Last-Event-ID": "nonsense"}).text.split()


def test_progress_that_a_crash_undid_is_forgotten(gallery: Gallery) -> None:
    scene_id = gallery.add(random_field(16, 16))
    for step in (1, 5, 9):
        gallery.store.note_progress(scene_id, 0, _progress(step))
    gallery.store.forget_progress_after(scene_id, 0, 5)
    steps = [event.data["step"] for event in gallery.store.progress_after(scene_id, 0)]
    assert steps == [1, 5]


def test_a_stopping_service_ends_the_stream_of_a_running_fit(gallery: Gallery) -> None:
    scene_id = gallery.add(random_field(16, 16), status=Status.FITTING)
    stopping = gallery.client.app.state.stopping  # type: ignore[attr-defined]
    stopping.set()
    try:
        answer = gallery.client.get(f"/scenes/{scene_id}/events")
        assert "event: scene" in answer.text
    finally:
        stopping.clear()


def test_what_json_cannot_say_is_null(gallery: Gallery) -> None:
    scene_id = gallery.add(random_field(16, 16))
    gallery.store.note_progress(scene_id, 0, _progress(1) | {"psnr": math.inf})
    answer = gallery.client.get(f"/scenes/{scene_id}/events")
    data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [json.loads(text, parse_constant=pytest.fail) for text in data][1]["psnr"] is None


def test_a_silent_stream_is_kept_alive(live_gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(events, "SILENCE_SECONDS", 0.02)
    scene_id = live_gallery.add(random_field(16, 16), status=Status.FITTING)
    with live_gallery.client.stream("GET", f"/scenes/{scene_id}/events") as answer:
        assert ": ping" in answer.iter_lines()


class Reader:
    """A client that reads so much of its stream, then nothing more, and leaves."""

    def __init__(self, reads: float) -> None:
        self._left = reads
        self._full = anyio.Event()
        self._asked = False

    async def receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._full.wait()
        await anyio.sleep(0.2)  # Until everything between the store and the client is full as well.
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self._left -= 1
        if self._left <= 0:
            self._full.set()
            await anyio.sleep_forever()

    def follow(self, gallery: Gallery, scene_id: str) -> None:
        """Raises what the server would write down."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": f"/scenes/{scene_id}/events",
            "query_string": b"",
            "headers": [(b"host", b"acorn")],
        }
        app: ASGIApp = gallery.client.app  # type: ignore[attr-defined]
        anyio.run(app, scope, self.receive, self.send)


@pytest.mark.parametrize("reads", [1, 2, 5])
def test_a_client_may_leave_at_any_time(gallery: Gallery, reads: int) -> None:
    scene_id = gallery.add(random_field(16, 16), status=Status.FITTING)
    for step in range(9):
        gallery.store.note_progress(scene_id, 0, _progress(step))
    Reader(reads).follow(gallery, scene_id)


def test_an_error_within_a_stream_is_not_hidden(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of order")

    scene_id = gallery.add(random_field(16, 16), status=Status.FITTING)
    monkeypatch.setattr(gallery.store, "progress_after", broken)
    with pytest.raises(RuntimeError, match="out of order"):
        Reader(math.inf).follow(gallery, scene_id)
