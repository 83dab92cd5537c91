"""Jobs from upload to end: shown while they run, cancelled, taken up again, surviving their child."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from live_server import Scene, Server, picture, wait_until

from acorn_svc.formats.container import read_field

pytestmark = pytest.mark.slow
ENDLESS = 10_000_000
CHILD = "acorn_svc.jobs.child"


@pytest.fixture
def running(server: Server) -> Iterator[Scene]:
    """A scene whose fit runs, and has shown something."""
    scene = server.upload(picture(), steps=ENDLESS)
    server.wait_for_version(scene["id"], 1)
    yield server.scene(scene["id"])
    server.client.delete(f"/scenes/{scene['id']}")


def _events(answer: httpx2.Response) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """name, data and id of each event."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        if not line and fields:
            yield fields["event"], json.loads(fields["data"]), fields.get("id")
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


def test_an_image_becomes_a_field(server: Server) -> None:
    scene = server.upload(picture(), steps=30, preset="draft", title="Disc")
    assert (scene["status"], scene["width"], scene["height"]) == ("queued", 64, 64)
    ready = server.wait_for_status(scene["id"], "ready")
    field = read_field(server.file(scene["id"]))
    assert (field.width, field.height, field.channels) == (64, 64, 3)
    assert ready["progress"]["stage"] == "done"
    assert ready["progress"]["step"] == ready["progress"]["steps"] == 30
    assert ready["progress"]["psnr"] == pytest.approx(field.info().psnr)
    assert ready["version"] >= 1
    assert server.client.get(f"/scenes/{scene['id']}/original").content == picture()


def test_a_running_fit_is_seen(server: Server, running: Scene) -> None:
    answer = server.client.get(f"/iiif/{running['id']}/full/32,32/0/default.png")
    assert answer.status_code == 200, answer.text
    tree = server.client.get(f"/scenes/{running['id']}/tree").json()
    assert sum(side * side for _, _, side, _ in tree["blocks"]) >= 64 * 64
    server.wait_for_version(running["id"], running["version"] + 1)


def test_events_tell_history_and_go_on_where_a_client_left(server: Server) -> None:
    scene = server.upload(picture(), steps=200)
    with server.client.stream("GET", f"/scenes/{scene['id']}/events") as answer:
        live = list(_events(answer))
    assert live[0][0] == "scene"
    assert [data["status"] for name, data, _ in live if name == "scene"][-1] == "ready"
    progress = [(data, number) for name, data, number in live if name == "progress"]
    steps = [data["step"] for data, _ in progress]
    assert steps == sorted(steps)
    assert steps[-1] == 200
    assert progress[-1][0]["stage"] == "done"

    history = list(_events(server.client.get(f"/scenes/{scene['id']}/events")))
    assert [event for event in history if event[0] == "progress"] == [
        event for event in live if event[0] == "progress"
    ]
    seen = {"Last-Event-ID": str(progress[-2][1])}
    rest = list(_events(server.client.get(f"/scenes/{scene['id']}/events", headers=seen)))
    assert [number for name, _, number in rest if name == "progress"] == [progress[-1][1]]


def test_cancel_ends_the_child_and_keeps_what_was_shown(server: Server, running: Scene) -> None:
    answer = server.client.post(f"/scenes/{running['id']}/cancel")
    assert answer.json()["status"] == "cancelled"
    wait_until(lambda: not server.processes(CHILD), "the child has ended")
    scene = server.scene(running["id"])
    assert (scene["status"], scene["error"]) == ("cancelled", None)
    assert read_field(server.file(running["id"])).width == 64
    assert server.client.post(f"/scenes/{running['id']}/cancel").status_code == 409


def test_a_queued_job_is_cancelled_without_ever_starting(server: Server, running: Scene) -> None:
    waiting = server.upload(picture(), steps=ENDLESS)
    assert server.client.post(f"/scenes/{waiting['id']}/cancel").json()["status"] == "cancelled"
    server.client.post(f"/scenes/{running['id']}/cancel")
    after = server.upload(picture(), steps=5)
    server.wait_for_status(after["id"], "ready")
    assert server.scene(waiting["id"])["status"] == "cancelled"
    assert server.scene(waiting["id"])["version"] == 0


def test_a_pause_makes_room_and_changes_nothing(server: Server) -> None:
    whole = server.upload(picture(), steps=6000, preset="draft")
    server.wait_for_status(whole["id"], "ready")
    paused = server.upload(picture(), steps=6000, preset="draft")
    server.wait_for_version(paused["id"], 1)
    version = server.scene(paused["id"])["version"]
    assert server.client.post(f"/scenes/{paused['id']}/pause").json()["status"] == "paused"
    wait_until(lambda: not server.processes(CHILD), "the child has ended")
    assert server.scene(paused["id"])["version"] > version
    other = server.upload(picture(), steps=5)
    server.wait_for_status(other["id"], "ready")
    assert server.scene(paused["id"])["status"] == "paused"
    step = server.scene(paused["id"])["progress"]["step"]
    assert 0 < step < 6000
    assert server.client.post(f"/scenes/{paused['id']}/resume").json()["queue_position"] == 1
    server.wait_for_status(paused["id"], "ready")
    assert server.file(paused["id"]) == server.file(whole["id"])


def test_the_most_urgent_job_is_next(server: Server, running: Scene) -> None:
    waiting = [server.upload(picture(), steps=5, priority=priority)["id"] for priority in (-1, 0, 1)]
    assert [server.scene(scene_id)["queue_position"] for scene_id in waiting] == [3, 2, 1]
    changed = server.client.patch(f"/scenes/{waiting[0]}", json={"priority": 2, "title": "Now"}).json()
    assert (changed["priority"], changed["queue_position"], changed["title"]) == (2, 1, "Now")
    refused = server.client.patch(f"/scenes/{running['id']}", json={"priority": 2})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    server.client.post(f"/scenes/{running['id']}/cancel")
    finished = [server.wait_for_status(scene_id, "ready")["updated_at"] for scene_id in waiting]
    assert finished[0] < finished[2] < finished[1]


def test_retry_goes_on_from_the_checkpoint(server: Server, running: Scene) -> None:
    server.client.post(f"/scenes/{running['id']}/cancel")
    before = server.scene(running["id"])
    assert server.client.post(f"/scenes/{running['id']}/retry").json()["status"] == "queued"
    server.wait_for_version(running["id"], before["version"] + 1)
    assert server.scene(running["id"])["progress"]["step"] >= before["progress"]["step"]
    server.client.post(f"/scenes/{running['id']}/cancel")


def test_retry_of_what_did_not_fail_is_refused(server: Server, running: Scene) -> None:
    answer = server.client.post(f"/scenes/{running['id']}/retry")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "conflict"


def test_delete_ends_the_fit_and_leaves_nothing(server: Server, running: Scene) -> None:
    assert server.client.delete(f"/scenes/{running['id']}").status_code == 204
    wait_until(lambda: not server.processes(CHILD), "the child has ended")
    assert server.client.get(f"/scenes/{running['id']}").status_code == 404
    wait_until(
        lambda: not [path for path in server.data.rglob("*") if running["id"] in path.parts],
        "every file of the scene is gone",
    )


def test_a_killed_child_is_started_again_and_goes_on(server: Server, running: Scene) -> None:
    (child,) = server.processes(CHILD)
    child.send_signal(signal.SIGKILL)
    wait_until(lambda: not child.is_running(), "the child is dead")
    version = server.scene(running["id"])["version"]
    server.wait_for_version(running["id"], version + 1)
    assert server.scene(running["id"])["status"] == "fitting"
    assert server.scene(running["id"])["progress"]["step"] >= running["progress"]["step"]


def test_a_killed_worker_is_started_again_and_goes_on(server: Server, running: Scene) -> None:
    (worker,) = server.processes("acorn_svc.jobs.worker")
    worker.send_signal(signal.SIGKILL)
    wait_until(lambda: not worker.is_running(), "the worker is dead")
    version = server.scene(running["id"])["version"]
    server.wait_for_version(running["id"], version + 1)
    assert server.scene(running["id"])["status"] == "fitting"
