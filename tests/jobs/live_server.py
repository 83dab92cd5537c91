"""Real servers, with their worker and its children, as processes on a folder of their own."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil

from acorn_svc.formats.images import encode_image
from acorn_svc.settings import Settings

# On a lifeline, so that no server is left behind by tests that were themselves killed.
PROGRAM = """
from acorn_svc.api.app import serve
from acorn_svc.jobs.process import hold_lifeline
from acorn_svc.settings import Settings

hold_lifeline()
serve(Settings())
"""
# Soon after a crash, jobs go on; and checkpoints are frequent.
QUICK = {"job_threads": 1, "checkpoint_seconds": 0.2, "lease_seconds": 3, "heartbeat_seconds": 0.5}
PATIENCE_SECONDS = 120
LOOK_SECONDS = 0.05

Scene = dict[str, Any]


def picture(side: int = 64) -> bytes:
    """A PNG of smooth colours with a sharp disc in it."""
    y, x = np.mgrid[:side, :side] / side
    disc = (x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.05
    pixels = np.stack([x, y, np.where(disc, 1.0, 0.2)], axis=-1)
    return encode_image((pixels * 255).astype(np.uint8), "png")


def wait_until(condition: Callable[[], bool], what: str, patience: float = PATIENCE_SECONDS) -> None:
    """Wait for something that must happen; how long it takes on a busy machine is no matter."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(LOOK_SECONDS)


class Server:
    """One server; starts on entering, is gone with everything it started on leaving."""

    def __init__(self, data: Path, **settings: object) -> None:
        self.data = data
        self._settings = {**QUICK, **settings}

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start, and wait until it answers and its worker runs."""
        values = {"data": self.data, "port": _free_port(), **self._settings}
        settings = Settings.model_validate(values)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            env={**os.environ, **settings.environment()},
            start_new_session=True,
        )
        self.url = f"http://127.0.0.1:{settings.port}"
        self.client = httpx2.Client(base_url=self.url, timeout=60)
        wait_until(self._healthy, "the server answers")

    def _healthy(self) -> bool:
        assert self.process.poll() is None, "the server ended at its start"
        with contextlib.suppress(httpx2.TransportError):
            return self.client.get("/healthz").status_code == httpx2.codes.OK
        return False

    def kill(self) -> None:
        """End all of its processes at once, as a loss of power would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.client.close()

    def kill_one(self, chance: random.Random, module: str) -> bool:
        """Kill the server's own process, or one of those that run `module`, if there is one."""
        victims = self.processes(module) if module else [psutil.Process(self.process.pid)]
        if not victims:
            return False
        chance.choice(victims).kill()
        if not module:
            self.process.wait()
            self.kill()
        return True

    def terminate(self) -> int:
        """Ask it to end and wait until it has."""
        self.process.terminate()
        return self.process.wait(PATIENCE_SECONDS)

    def upload(self, content: bytes, **options: object) -> Scene:
        answer = self.client.post("/scenes", content=content, params={**options})
        assert answer.status_code == httpx2.codes.CREATED, answer.text
        return dict(answer.json())

    def scene(self, scene_id: str) -> Scene:
        return dict(self.client.get(f"/scenes/{scene_id}").json())

    def wait_for_status(self, scene_id: str, status: str) -> Scene:
        wait_until(lambda: self.scene(scene_id)["status"] == status, f"the scene is {status}")
        return self.scene(scene_id)

    def wait_for_version(self, scene_id: str, version: int) -> None:
        wait_until(lambda: self.scene(scene_id)["version"] >= version, f"version {version}")

    def file(self, scene_id: str) -> bytes:
        answer = self.client.get(f"/scenes/{scene_id}/file")
        assert answer.status_code == httpx2.codes.OK, answer.text
        return answer.content

    def processes(self, module: str) -> list[psutil.Process]:
        """The processes below this server that run a module."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in below if module in _command(process)]


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
