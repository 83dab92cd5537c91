"""The whole service, whose processes are killed at random moments while it is used."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import httpx2
import psutil
import pytest
from live_server import Scene, Server, picture, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.torture]

SERVER, WORKER, CHILD = "", "acorn_svc.jobs.worker", "acorn_svc.jobs.child"
KILLED_WITHIN_SECONDS = 0.7
ENDS = """
select count(*) from progress_events where json_extract(data, '$.stage') = 'done' group by scene_id
"""
SETTINGS = {"job_attempts": 100, "lease_seconds": 1.5, "heartbeat_seconds": 0.4}
Amount = Callable[[int, int], int]
Tell = Callable[[str, object], None]


def undisturbed(server: Server, steps: int) -> bytes:
    """The file of a fit that nothing disturbs."""
    scene = server.upload(picture(), steps=steps, preset="draft")
    server.wait_for_status(scene["id"], "ready")
    return server.file(scene["id"])


def recorded_steps(server: Server, scene_id: str) -> list[int]:
    query = "select json_extract(data, '$.step') from progress_events where scene_id = ? order by id"
    with closing(sqlite3.connect(server.data / "acorn.sqlite")) as database:
        return [step for (step,) in database.execute(query, (scene_id,))]


def restart(server: Server, below: list[psutil.Process]) -> None:
    """Start a server again that was killed, once all that it had started is gone by itself."""
    wait_until(lambda: not any(process.is_running() for process in below), "no process is left")
    server.start()


def test_a_fit_that_is_killed_again_and_again_ends_bit_identical(
    tmp_path: Path, amount: Amount, tell: Tell
) -> None:
    kills, steps, chance = amount(3, 10), amount(12_000, 60_000), random.Random(3)
    lost: list[float] = []
    with Server(tmp_path, **SETTINGS) as server:
        whole = undisturbed(server, steps)
        scene = server.upload(picture(), steps=steps, preset="draft")
        for number in range(kills):
            server.wait_for_version(scene["id"], server.scene(scene["id"])["version"] + 1)
            time.sleep(chance.uniform(0, KILLED_WITHIN_SECONDS))
            before = server.scene(scene["id"])
            assert before["status"] == "fitting", "the fit is too short for so many kills"
            _kill(server, (CHILD, WORKER, SERVER)[number % 3], chance)
            lost.append(before["progress"]["seconds"] - _first_seconds_after(server, before))
        server.wait_for_status(scene["id"], "ready")
        progress = recorded_steps(server, scene["id"])
        assert progress == sorted(progress)
        assert server.file(scene["id"]) == whole
    tell("kills", kills)
    tell("seconds of fitting lost by a kill, at most", round(max(lost), 2))


def _kill(server: Server, module: str, chance: random.Random) -> None:
    below = psutil.Process(server.process.pid).children(recursive=True)
    assert server.kill_one(chance, module)
    if module == SERVER:
        restart(server, below)


def _first_seconds_after(server: Server, before: Scene) -> float:
    """How long had been fitted when the fit was seen again."""

    def seen() -> bool:
        scene = server.scene(before["id"])
        return bool(scene["updated_at"] != before["updated_at"] and scene["status"] in ("fitting", "ready"))

    wait_until(seen, "the fit goes on")
    return float(server.scene(before["id"])["progress"]["seconds"])


class Client:
    """Uploads, polls and looks from a thread of its own, and writes down what was acknowledged."""

    def __init__(self, server: Server, steps: int, chance: random.Random) -> None:
        self._server = server
        self._options = {"steps": steps, "preset": "draft"}
        self._chance = chance
        self._over = threading.Event()
        self._work = ThreadPoolExecutor(1).submit(self._use)
        self.acknowledged: list[str] = []

    def stop(self) -> None:
        """Raises what went wrong."""
        self._over.set()
        self._work.result()

    def _use(self) -> None:
        while not self._over.is_set():
            with (
                suppress(httpx2.TransportError),
                httpx2.Client(base_url=self._server.url, timeout=60) as client,
            ):
                self._upload(client)
                self._look(client, self._chance.choice(self.acknowledged))

    def _upload(self, client: httpx2.Client) -> None:
        if len(self.acknowledged) > 2 and self._chance.random() < 0.95:
            return
        answer = client.post("/scenes", content=picture(), params=self._options)
        assert answer.status_code == 201, answer.text
        self.acknowledged.append(answer.json()["id"])

    def _look(self, client: httpx2.Client, scene_id: str) -> None:
        for path in (f"/scenes/{scene_id}", "/scenes", f"/iiif/{scene_id}/full/32,32/0/default.png"):
            answer = client.get(path)
            assert answer.status_code == 200 or "nothing to show yet" in answer.text, answer.text


def test_a_service_that_is_killed_loses_nothing_that_it_acknowledged(
    tmp_path: Path, amount: Amount, tell: Tell
) -> None:
    kills, steps, chance = amount(2, 200), 3000, random.Random(7)
    with Server(tmp_path, embedded_workers=2, **SETTINGS) as server:
        whole = undisturbed(server, steps)
        client = Client(server, steps, random.Random(8))
        for number in range(kills):
            wait_until(lambda: bool(server.processes(CHILD)), "a fit runs")
            time.sleep(chance.uniform(0, 2))
            _kill(server, (WORKER, SERVER)[number % 2], chance)
        client.stop()
        wait_until(lambda: _all_ready(server), "every fit is done", patience=3600)
        assert {server.file(scene_id) for scene_id in client.acknowledged} == {whole}
        with closing(sqlite3.connect(server.data / "acorn.sqlite")) as database:
            assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
            assert set(database.execute(ENDS)) == {(1,)}
    tell("kills", kills)
    tell("scenes", len(client.acknowledged))


def _all_ready(server: Server) -> bool:
    """Whether also those are, of which nobody was told because the answer was lost."""
    health = server.client.get("/healthz").json()
    failed = server.client.get("/scenes").json()["items"]
    assert not [scene["error"] for scene in failed if scene["error"]]
    return bool(health["queued"] + health["fitting"] == 0)


def test_stopping_again_and_again_loses_nothing(tmp_path: Path, amount: Amount, tell: Tell) -> None:
    stops, steps, chance = amount(1, 50), amount(8_000, 100_000), random.Random(5)
    longest = 0.0
    with Server(tmp_path, checkpoint_seconds=60) as server:
        whole = undisturbed(server, steps)
        scene = server.upload(picture(), steps=steps, preset="draft")
        step = 0
        for _ in range(stops):
            wait_until(lambda step=step: _step(server, scene) > step, "the fit goes on")  # type: ignore[misc]
            time.sleep(chance.uniform(0, 0.3))
            version = server.scene(scene["id"])["version"]
            longest = max(longest, _stop(server, scene["id"]))
            server.start()
            assert server.scene(scene["id"])["version"] > version
            step = _step(server, scene)
        server.wait_for_status(scene["id"], "ready")
        assert server.file(scene["id"]) == whole
    tell("stops", stops)
    tell("seconds to stop, at most", round(longest, 1))


def _step(server: Server, scene: Scene) -> int:
    progress = server.scene(scene["id"])["progress"]
    return int(progress["step"]) if progress else 0


def _stop(server: Server, scene_id: str) -> float:
    """Stop the server while a client listens; returns the seconds it took."""
    below = psutil.Process(server.process.pid).children(recursive=True)
    with server.client.stream("GET", f"/scenes/{scene_id}/events") as open_stream:
        begin = time.monotonic()
        server.terminate()
        seconds = time.monotonic() - begin
        open_stream.close()
    assert not any(process.is_running() for process in below)
    server.kill()  # closes what is open to it
    return seconds
