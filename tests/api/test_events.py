"""The stream of a scene at rest: it tells everything, and ends."""

from __future__ import annotations

import json

from conftest import Gallery, random_field

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
    gallery.store.forget_progress_after(scene_id, 5)
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
