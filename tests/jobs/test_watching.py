"""The watcher of one fit, without a queue and with another child."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from acorn_svc.jobs.process import Message
from acorn_svc.jobs.queue import JobQueue
from acorn_svc.jobs.workflow import Watcher
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import Scene, SceneStore, Status, new_id


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
