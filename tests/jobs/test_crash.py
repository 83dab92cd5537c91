"""What is promised when processes die, and when they are asked to end."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from live_server import Server, picture, wait_until

STEPS = 12_000


def _uninterrupted(data: Path) -> bytes:
    with Server(data, checkpoint_seconds=60) as server:
        scene = server.upload(picture(), steps=STEPS, preset="draft")
        server.wait_for_status(scene["id"], "ready")
        return server.file(scene["id"])


@pytest.mark.slow
def test_kill_9_in_mid_fit_changes_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path / "killed", checkpoint_seconds=0.05)
    with server:
        scene = server.upload(picture(), steps=STEPS, preset="draft")
        server.wait_for_version(scene["id"], 2)
        killed_at = server.scene(scene["id"])
    assert killed_at["status"] == "fitting"
    assert killed_at["progress"]["step"] < STEPS
    with server:
        server.wait_for_status(scene["id"], "ready")
        resumed = server.file(scene["id"])
        steps = _recorded_steps(server)
    assert steps == sorted(steps)
    assert resumed == _uninterrupted(tmp_path / "whole")


def _recorded_steps(server: Server) -> list[int]:
    query = "select json_extract(data, '$.step') from progress_events order by id"
    with closing(sqlite3.connect(server.data / "acorn.sqlite")) as database:
        return [step for (step,) in database.execute(query)]


@pytest.mark.slow
def test_sigterm_keeps_a_checkpoint_and_ends_everything(tmp_path: Path) -> None:
    server = Server(tmp_path, checkpoint_seconds=60)
    with server:
        scene = server.upload(picture(), steps=10_000_000)
        server.wait_for_version(scene["id"], 1)
        below = psutil.Process(server.process.pid).children(recursive=True)
        version = server.scene(scene["id"])["version"]
        with server.client.stream("GET", f"/scenes/{scene['id']}/events") as open_stream:
            server.terminate()
            assert not [process for process in below if process.is_running()]
            open_stream.close()
    with server:
        # The checkpoint of the end was published too, although none was due for a minute.
        assert server.scene(scene["id"])["version"] > version
        assert server.scene(scene["id"])["status"] in ("queued", "fitting")


@pytest.mark.slow
def test_a_second_server_on_the_same_folder_refuses_to_start(tmp_path: Path) -> None:
    with Server(tmp_path):
        second = Server(tmp_path)
        with pytest.raises(AssertionError, match="ended at its start"):
            second.start()
        second.kill()


@pytest.mark.slow
def test_a_fit_that_keeps_dying_fails_with_a_reason(tmp_path: Path) -> None:
    with Server(tmp_path, checkpoint_seconds=3600, job_attempts=2) as server:
        scene = server.upload(picture(256), steps=10_000_000)
        killed: set[int] = set()

        def failed() -> bool:
            for child in server.processes("acorn_svc.jobs.child"):
                if child.pid not in killed:
                    killed.add(child.pid)
                    child.kill()
            return bool(server.scene(scene["id"])["status"] == "failed")

        wait_until(failed, "the job has failed")
        error = server.scene(scene["id"])["error"]
        assert error["code"] == "fit_failed"
        assert len(killed) == 2
