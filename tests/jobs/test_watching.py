"""The watcher of one fit, without a queue and with another child."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from acorn_svc.jobs.process import Message
from acorn_svc.jobs.queue import JobQueue
from acorn_svc.jobs.workflow import Watcher
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import Scene, SceneStore, Status, new_id

NOT_ITS_OWN = ("../upload", "../neighbour/field", "link", "missing", "folder", "folder/in", ".", 300 * "x")


def test_the_spool_of_a_fit_that_goes_on_is_not_swept(tmp_path: Path) -> None:
    """However long the child writes nothing."""
    settings = Settings(data=tmp_path, heartbeat_seconds=0.1)
    store = SceneStore(settings)
    jobs = JobQueue(store, 10)
    begun: list[tuple[Path, subprocess.Popen[bytes]]] = []

    def begin(request: Message) -> subprocess.Popen[bytes]:
        spool = Path(request["spool"])
        os.utime(spool, (0, 0))
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        begun.append((spool, child))
        return child

    scene_id = _queued_scene(store)
    thread = threading.Thread(target=Watcher(store, jobs, settings, begin).watch, args=(scene_id, 0))
    thread.start()
    _wait_for(lambda: begun != [] and begun[0][0].stat().st_mtime > 0)
    spool, child = begun[0]
    store.collect(3600)
    assert spool.is_dir()
    child.kill()
    thread.join(60)
    assert not spool.exists()
    jobs.close()
    store.close()


@pytest.mark.parametrize(
    ("say", "member", "name"),
    [
        *(("snapshot", "file", name) for name in NOT_ITS_OWN),
        ("snapshot", "checkpoint", NOT_ITS_OWN[0]),
        ("done", "file", NOT_ITS_OWN[0]),
    ],
)
def test_a_fit_that_names_a_file_which_is_not_its_own_fails_at_once(
    tmp_path: Path, say: str, member: str, name: str
) -> None:
    """It would name it again, so it is not begun again; and nothing of what it named is touched."""
    store = SceneStore(Settings(data=tmp_path))
    jobs = JobQueue(store, 10)
    upload, neighbour = store.blobs.spool / "upload", store.blobs.spool / "neighbour" / "field"
    neighbour.parent.mkdir()
    for other in (upload, neighbour):
        other.write_bytes(b"of somebody else")

    def begin(request: Message) -> subprocess.Popen[bytes]:
        spool = Path(request["spool"])
        (spool / "folder").mkdir()
        (spool / "folder" / "in").write_bytes(b"a field")
        (spool / "own").write_bytes(b"a field")
        (spool / "link").symlink_to(upload)
        files = {"file": str(spool / "own"), member: str(spool / name)}
        return _says({"say": say, **files, "progress": {"stage": "fitting", "step": 1}})

    scene_id = _queued_scene(store)
    assert Watcher(store, jobs, store.settings, begin).watch(scene_id, 0)
    scene = store.get(scene_id)
    assert (scene.status, scene.error_code) == (Status.FAILED, "fit_failed")
    assert scene.error_message == "The fit named a file that isn't its own."
    assert (scene.attempts, scene.version, scene.progress) == (1, 0, None)
    assert [other.read_bytes() for other in (upload, neighbour)] == [b"of somebody else"] * 2
    assert {path.name for path in store.blobs.spool.iterdir()} == {"upload", "neighbour"}
    jobs.close()
    store.close()


def _says(message: Message) -> subprocess.Popen[bytes]:
    """A process that says one thing and waits for its end."""
    command = ["/bin/sh", "-c", 'echo "$1"; read -r line', "child", json.dumps(message)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _queued_scene(store: SceneStore) -> str:
    upload = store.blobs.spool_file()
    upload.write_bytes(b"an image")
    scene = Scene(
        id=new_id(), status=Status.QUEUED, width=8, height=8, channels=3, bit_depth=8, bytes_original=8,
        format_original="png", preset="draft", encoder="grid",
    )  # fmt: skip
    return store.create(scene, upload).id


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
