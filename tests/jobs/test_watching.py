"""The watcher of one fit, without a queue and with another child."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from farm import PROGRESS

from acorn_svc.jobs import workflow
from acorn_svc.jobs.process import Message
from acorn_svc.jobs.queue import JobQueue
from acorn_svc.jobs.reaper import Reaper
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
        return _says({"say": say, **files, "progress": PROGRESS})

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


@pytest.mark.parametrize(
    "message",
    [
        "nonsense",
        [],
        {},
        {"say": "farewell"},
        {"say": "started"},
        {"say": "started", "step": "1"},
        {"say": "started", "step": 1 << 63},
        {"say": "progress", "progress": {"stage": "fitting", "step": 1}},
        {"say": "progress", "progress": {**PROGRESS, "seconds": float("nan")}},
        {"say": "progress", "progress": {**PROGRESS, "stage": 10_000 * "x"}},
        {"say": "snapshot", "file": 1, "progress": PROGRESS},
        {"say": "failed", "error": "no"},
    ],
)
def test_a_fit_that_says_what_makes_no_sense_fails_at_once(tmp_path: Path, message: object) -> None:
    store = SceneStore(Settings(data=tmp_path))
    jobs = JobQueue(store, 10)
    scene_id = _queued_scene(store)
    assert Watcher(store, jobs, store.settings, lambda _request: _says(message)).watch(scene_id, 0)
    scene = store.get(scene_id)
    assert (scene.status, scene.error_code, scene.attempts) == (Status.FAILED, "fit_failed", 1)
    assert scene.error_message == "The process of the fit said what makes no sense."
    assert (scene.version, scene.progress) == (0, None)
    jobs.close()
    store.close()


@pytest.mark.parametrize("script", ["exec >&-", "head -c 70000 /dev/zero"])
def test_a_fit_that_can_be_heard_no_more_is_ended_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """It has closed its output, or says one line without an end."""
    monkeypatch.setattr(workflow, "LAST_WORDS_SECONDS", 0.1)
    store = SceneStore(Settings(data=tmp_path, job_attempts=1))
    jobs = JobQueue(store, 10)
    scene_id, children = _queued_scene(store), list[subprocess.Popen[bytes]]()

    def begin(_request: Message) -> subprocess.Popen[bytes]:
        children.append(_runs(f"{script}; read -r line"))
        return children[-1]

    assert Watcher(store, jobs, store.settings, begin).watch(scene_id, 0)
    scene = store.get(scene_id)
    assert (scene.status, scene.error_code, scene.attempts) == (Status.FAILED, "fit_failed", 1)
    assert [child.poll() for child in children] == [-signal.SIGKILL]
    jobs.close()
    store.close()


def test_a_fit_that_says_far_too_much_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It talks faster than it is heard, here until it is ended, and the worker keeps little of that."""
    store = SceneStore(Settings(data=tmp_path))
    jobs = JobQueue(store, 10)
    scene_id, heard = _queued_scene(store), list[workflow.Heard]()
    listen, watcher = workflow._listen, Watcher(store, jobs, store.settings, _says_for_ever)

    def listen_first(child: subprocess.Popen[bytes]) -> workflow.Heard:
        heard.append(listen(child))
        _wait_for(lambda: heard[0].qsize() > workflow.UNHEARD_LINES)
        return heard[0]

    monkeypatch.setattr(workflow, "_listen", listen_first)
    assert watcher.watch(scene_id, 0)
    scene = store.get(scene_id)
    assert (scene.status, scene.error_code, scene.attempts) == (Status.FAILED, "fit_failed", 1)
    assert scene.error_message == "The process of the fit said more than a fit has to say."
    assert heard[0].qsize() <= workflow.UNHEARD_LINES + 2  # the line that was too much, and the end
    jobs.close()
    store.close()


@pytest.mark.parametrize(("paused", "status"), [(False, Status.FAILED), (True, Status.PAUSED)])
def test_a_job_without_starts_left_fails_unless_it_is_paused(
    tmp_path: Path, paused: bool, status: Status
) -> None:
    store = SceneStore(Settings(data=tmp_path, job_attempts=3))
    jobs = JobQueue(store, 10)
    scene_id = _queued_scene(store)
    with store.edit(scene_id) as scene:
        scene.attempts = 3
    if paused:
        jobs.pause(scene_id)
    assert Watcher(store, jobs, store.settings, lambda _request: _runs("exit")).watch(scene_id, 0)
    assert store.get(scene_id).status == status
    jobs.close()
    store.close()


def test_a_start_that_uses_up_its_processor_time_is_the_last(tmp_path: Path) -> None:
    store = SceneStore(Settings(data=tmp_path))
    jobs = JobQueue(store, 10)
    scene_id = _queued_scene(store)
    assert Watcher(store, jobs, store.settings, lambda _request: _runs("kill -XCPU $$")).watch(scene_id, 0)
    scene = store.get(scene_id)
    assert (scene.status, scene.error_code, scene.attempts) == (Status.FAILED, "out_of_time", 1)
    jobs.close()
    store.close()


def test_a_job_whose_original_is_lost_fails(tmp_path: Path) -> None:
    store = SceneStore(Settings(data=tmp_path))
    jobs = JobQueue(store, 10)
    scene_id = _queued_scene(store)
    store.original(scene_id).unlink()
    assert Watcher(store, jobs, store.settings, lambda _request: _runs("exit")).watch(scene_id, 0)
    scene = store.get(scene_id)
    assert (scene.status, scene.error_code) == (Status.FAILED, "fit_failed")
    assert scene.error_message == "The original is lost."
    jobs.close()
    store.close()


def test_a_job_in_trouble_leaves_its_worker_and_goes_on_after_a_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "TROUBLE_SECONDS", 0)
    store = SceneStore(Settings(data=tmp_path))
    jobs = JobQueue(store, 10)

    def begin(_request: Message) -> subprocess.Popen[bytes]:
        raise PermissionError("nobody foresaw this")

    scene_id = _queued_scene(store)
    assert Watcher(store, jobs, store.settings, begin).watch(scene_id, 0)
    scene = store.get(scene_id)
    assert (scene.status, scene.attempts) == (Status.FITTING, 0)
    reaper = Reaper(jobs, lease_seconds=0)
    assert [sign.scene_id for sign in reaper.look()] == [scene_id]
    scene = store.get(scene_id)
    assert (scene.status, scene.run, scene.attempts) == (Status.QUEUED, 1, 0)
    jobs.close()
    store.close()


def test_a_database_that_is_away_for_a_lease_counts_against_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it when it is still away after the child was ended."""
    monkeypatch.setattr(workflow, "TROUBLE_SECONDS", 0)
    store = SceneStore(Settings(data=tmp_path, job_attempts=1, lease_seconds=1, heartbeat_seconds=0.1))
    jobs = JobQueue(store, 10)
    scene_id, edit = _queued_scene(store), store.edit
    edits = [edit, _away, _away, edit]

    def next_edit(*arguments: Any) -> AbstractContextManager[Scene]:
        return edits.pop(0)(*arguments)

    monkeypatch.setattr(store, "beat", _away)
    monkeypatch.setattr(store, "edit", next_edit)
    assert Watcher(store, jobs, store.settings, lambda _request: _runs("read -r line")).watch(scene_id, 0)
    scene = store.get(scene_id)
    assert (scene.status, scene.attempts, edits) == (Status.FITTING, 0, [])
    jobs.close()
    store.close()


def _away(*_arguments: object) -> NoReturn:
    raise OSError("no route to the database")


def _says(message: object) -> subprocess.Popen[bytes]:
    """A process that says one thing and waits for its end."""
    return _runs('echo "$1"; read -r line', json.dumps(message))


def _says_for_ever(_request: Message) -> subprocess.Popen[bytes]:
    return _runs('exec yes "$1"', json.dumps({"say": "started", "step": 7}))


def _runs(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = ["/bin/sh", "-c", script, "child", *arguments]
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
