"""All that has to end when the service stops shares one time."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import pytest
from fastapi.testclient import TestClient

from acorn_svc.api import stopping
from acorn_svc.api.app import create_app
from acorn_svc.api.stopping import Stopping
from acorn_svc.jobs import worker
from acorn_svc.jobs.worker import EmbeddedWorkers
from acorn_svc.settings import Settings
from acorn_svc.store.housekeeping import Housekeeper

DEAF = f"import signal; signal.signal({signal.SIGTERM:d}, signal.SIG_IGN); print(flush=True); input()"


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = 1000.0
        monkeypatch.setattr(stopping, "monotonic", lambda: self.time)


def test_time_runs_from_the_first_call_on_and_ends_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    event = Stopping(30)
    clock.time += 100
    assert event.seconds_left == 30
    event.set()
    clock.time += 20
    event.set()
    assert event.is_set()
    assert event.seconds_left == 10
    clock.time += 20
    assert event.seconds_left == 0


def test_what_one_has_taken_the_next_does_not_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    seen: list[tuple[str, float]] = []

    class Workers:
        alive = True

        def start(self) -> None:
            pass

        def ask_to_stop(self) -> None:
            seen.append(("asked", clock.time - 1000))

        def stop(self, seconds: float) -> None:
            seen.append(("workers", seconds))

    end = Housekeeper.stop

    def stop(housekeeper: Housekeeper, seconds: float) -> None:
        seen.append(("housekeeper", seconds))
        clock.time += 7
        end(housekeeper, 60)

    monkeypatch.setattr(Housekeeper, "stop", stop)
    app = create_app(Settings(data=tmp_path, shutdown_seconds=30), cast(EmbeddedWorkers, Workers()))
    with TestClient(app):
        app.state.stopping.set()
        clock.time += 20  # requests that were begun
    assert seen == [("asked", 20), ("housekeeper", 10), ("workers", 3)]


def test_workers_that_do_not_end_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[subprocess.Popen[bytes]] = []

    def spawn(*_: object, **__: object) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        process = subprocess.Popen([sys.executable, "-c", DEAF], stdin=pipe, stdout=pipe)
        assert process.stdout is not None
        process.stdout.readline()  # from here on it is deaf
        processes.append(process)
        return process

    monkeypatch.setattr(worker, "spawn", spawn)
    # Were each given the time of the settings, this would not end.
    workers = EmbeddedWorkers(Settings(data=tmp_path, embedded_workers=2, shutdown_seconds=600))
    workers.start()
    while not workers.alive:
        time.sleep(0.01)
    workers.stop(0.2)
    assert [process.wait() for process in processes] == [-signal.SIGKILL] * 2
