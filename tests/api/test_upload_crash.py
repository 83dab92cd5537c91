"""The server is killed in the middle of uploads: whatever it has acknowledged is there afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from tus_client import Tus

from acorn_svc.formats.images import encode_image
from acorn_svc.settings import Settings

pytestmark = pytest.mark.torture

# No worker: what is uploaded is checked, but not fitted.
PROGRAM = """
import uvicorn
from acorn_svc.api.app import create_app
from acorn_svc.jobs.process import hold_lifeline
from acorn_svc.settings import Settings

hold_lifeline()
settings = Settings()
uvicorn.run(create_app(settings), port=settings.port, log_level="warning")
"""
PART_BYTES = 20_000
CHECK_SECONDS = 0.6
PATIENCE_SECONDS = 120


@dataclass
class Sending:
    """An upload, and how much of it was acknowledged."""

    path: str
    content: bytes
    acknowledged: int = 0

    def send(self, tus: Tus) -> None:
        """Send the rest in parts, until the server is gone."""
        with contextlib.suppress(httpx2.TransportError):
            offset = tus.offset(self.path)
            assert offset >= self.acknowledged, "what was acknowledged is gone"
            while offset < len(self.content):
                answer = tus.append(self.path, offset, self.content[offset : offset + PART_BYTES])
                assert answer.status_code == 204, answer.text
                offset = self.acknowledged = int(answer.headers["upload-offset"])


@contextmanager
def running(data: Path) -> Iterator[tuple[subprocess.Popen[bytes], Tus]]:
    """A server process, and a client of it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {**os.environ, **Settings(data=data, port=port).environment()}
    command = [sys.executable, "-c", PROGRAM]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS) as client,
    ):
        try:
            wait_until(lambda: answers(client))
            yield process, Tus(client)
        finally:
            process.kill()


def answers(client: httpx2.Client) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return client.get("/healthz").status_code == 200
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_was_acknowledged_outlives_the_server(
    tmp_path: Path, amount: Callable[[int, int], int], tell: Callable[[str, object], None]
) -> None:
    kills = amount(1, 100)
    chance = random.Random(0)
    sendings: list[Sending] = []
    for number in range(kills + 1):
        with running(tmp_path) as (process, tus):
            for sending in sendings:
                sending.send(tus)
            check(tus, sendings)
            if number == kills:
                break
            # One is in the middle of its parts, the other one in its check, or thereabouts.
            long, short = (begin(tus, noise(number, side)) for side in (400, 100))
            sendings += [long, short]
            with ThreadPoolExecutor() as threads:
                senders = [threads.submit(sending.send, tus) for sending in (long, short)]
                threads.submit(kill, process, chance.uniform(0, CHECK_SECONDS))
            assert [sender.exception() for sender in senders] == [None, None]
    tell("servers killed in the middle of uploads", kills)
    tell("uploads that were taken up again", len(sendings))


def begin(tus: Tus, content: bytes) -> Sending:
    return Sending(urlsplit(tus.new(len(content))).path, content)


def kill(process: subprocess.Popen[bytes], delay: float) -> None:
    time.sleep(delay)
    process.kill()


def check(tus: Tus, sendings: list[Sending]) -> None:
    """Of each upload there is one scene, with every byte."""
    for sending in sendings[-2:]:
        wait_until(lambda path=sending.path: tus.outcome(path)["status"] != "checking")
        outcome = tus.outcome(sending.path)
        assert outcome["status"] == "done", outcome
        assert tus.client.get(f"/scenes/{outcome['scene_id']}/original").content == sending.content
    assert tus.client.get("/scenes").json()["total"] == len(sendings)


def noise(seed: int, side: int) -> bytes:
    """A PNG of three bytes a pixel."""
    return encode_image(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8), "png")
