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
from typing import Any, NamedTuple

import httpx2
import psutil
import pytest
from live_server import Scene, Server, picture, wait_until

from acorn_svc.formats.checkpoint import read_state

pytestmark = [pytest.mark.slow, pytest.mark.torture]

SERVER, WORKER, CHILD = "", "acorn_svc.jobs.worker", "acorn_svc.jobs.child"
KILLED_WITHIN_SECONDS = 0.7
ENDLESS = 10_000_000
# Progress is told more often than checkpoints are made, so that it shows what is lost. They are further apart
# where one takes longer than a tenth of that, as on a busy machine.
CHECKPOINT_SECONDS, MOST_FITTING_SECONDS = 1.5, 3.0
FITTED_SECONDS = 3.5, 5.0  # before a kill: more than may be lost
NOTICING_SECONDS = 5  # beyond lease and heartbeat, on a busy machine
ENDS = """
select count(*) from progress_events where json_extract(data, '$.stage') = 'done' group by scene_id
"""
COURSE = """
select id, json_extract(data, '$.step'), json_extract(data, '$.seconds') from progress_events
where scene_id = ? and id > ? order by id
"""
NEWEST_CHECKPOINT = """
select key from files where scene_id = ? and role = 'checkpoint' order by id desc limit 1
"""
SETTINGS = {"job_attempts": 100, "lease_seconds": 1.5, "heartbeat_seconds": 0.4}
Amount = Callable[[int, int], int]
Tell = Callable[[str, object], None]


def undisturbed(server: Server, steps: int) -> bytes:
    """The file of a fit that nothing disturbs."""
    scene = server.upload(picture(), steps=steps, preset="draft")
    server.wait_for_status(scene["id"], "ready")
    return server.file(scene["id"])


def ask(server: Server, query: str, *values: object) -> list[Any]:
    """Rows of the server's database."""
    with closing(sqlite3.connect(server.data / "acorn.sqlite")) as database:
        return database.execute(query, values).fetchall()


class Point(NamedTuple):
    """Where a fit was known to be: number of the event that told it, steps done, seconds spent fitting."""

    event: int
    step: int
    seconds: float


def course(server: Server, scene_id: str, after: int = 0) -> list[Point]:
    """What was told of a fit since an event, and was not undone by a crash."""
    return [Point(*row) for row in ask(server, COURSE, scene_id, after)]


def last_event(server: Server) -> int:
    return int(ask(server, "select seq from sqlite_sequence where name = 'progress_events'")[0][0])


def kept_step(server: Server, scene_id: str) -> int:
    """The step of the newest checkpoint."""
    [(key,)] = ask(server, NEWEST_CHECKPOINT, scene_id)
    return int(read_state(server.data / "blobs" / key).meta["step"])


def run_of(server: Server, scene_id: str) -> int:
    """How often the job was taken over."""
    return int(ask(server, "select run from scenes where id = ?", scene_id)[0][0])


def restart(server: Server, below: list[psutil.Process]) -> None:
    """Start a server again that was killed, once all that it had started is gone by itself."""
    wait_until(lambda: not any(process.is_running() for process in below), "no process is left")
    server.start()


def test_a_fit_that_is_killed_again_and_again_ends_bit_identical(
    tmp_path: Path, amount: Amount, tell: Tell
) -> None:
    kills, steps, chance = amount(3, 10), amount(12_000, 60_000), random.Random(3)
    with Server(tmp_path, **SETTINGS) as server:
        whole = undisturbed(server, steps)
        scene = server.upload(picture(), steps=steps, preset="draft")
        for number in range(kills):
            server.wait_for_version(scene["id"], server.scene(scene["id"])["version"] + 1)
            time.sleep(chance.uniform(0, KILLED_WITHIN_SECONDS))
            assert server.scene(scene["id"])["status"] != "ready", "the fit is too short for so many kills"
            wait_until(lambda: bool(server.processes(CHILD)), "the fit runs")
            _kill(server, (CHILD, WORKER, SERVER)[number % 3], chance)
        server.wait_for_status(scene["id"], "ready")
        progress = [point.step for point in course(server, scene["id"])]
        assert progress == sorted(progress)
        assert server.file(scene["id"]) == whole
    tell("kills", kills)


def test_a_kill_costs_no_more_than_a_checkpoint_and_a_lease(
    tmp_path: Path, amount: Amount, tell: Tell
) -> None:
    kills, chance, losses = amount(2, 12), random.Random(4), list[Loss]()
    with Server(tmp_path, embedded_workers=2, checkpoint_seconds=CHECKPOINT_SECONDS, **SETTINGS) as server:
        scene_id = server.upload(picture(), steps=ENDLESS, preset="draft")["id"]
        server.wait_for_version(scene_id, 1)
        for number in range(kills):
            time.sleep(chance.uniform(*FITTED_SECONDS))
            losses.append(_lose(server, scene_id, (CHILD, WORKER, SERVER)[number % 3]))
    fitting, waiting = (max(seconds) for seconds in zip(*losses, strict=True))
    assert fitting <= MOST_FITTING_SECONDS
    assert waiting <= SETTINGS["lease_seconds"] + SETTINGS["heartbeat_seconds"] + NOTICING_SECONDS
    tell("kills", kills)
    tell("seconds of fitting lost by a kill, at most", round(fitting, 2))
    tell("seconds until another worker takes over, at most", round(waiting, 2))


class Loss(NamedTuple):
    """What a kill has cost in seconds: of fitting, and until another worker took over, if that was needed."""

    fitting: float
    waiting: float


def _lose(server: Server, scene_id: str, module: str) -> Loss:
    """Kill the child of a fit, its worker or its server, and see from where it goes on."""
    wait_until(lambda: bool(server.processes(CHILD)), "the fit runs")
    [child] = server.processes(CHILD)
    kept, run, before = kept_step(server, scene_id), run_of(server, scene_id), course(server, scene_id)[-1]
    begin = end = time.monotonic()
    if module == SERVER:
        _kill(server, SERVER, random.Random())
    elif module == WORKER:
        child.parent().kill()
        wait_until(lambda: run_of(server, scene_id) > run, "the other worker takes over")
        end = time.monotonic()
    else:
        child.kill()
    after = _first_after(server, scene_id, child)
    assert after.step >= kept, "it goes on from an older checkpoint"
    return Loss(before.seconds - after.seconds, end - begin)


def _kill(server: Server, module: str, chance: random.Random) -> None:
    below = psutil.Process(server.process.pid).children(recursive=True)
    assert server.kill_one(chance, module)
    if module == SERVER:
        restart(server, below)


def _first_after(server: Server, scene_id: str, killed: psutil.Process) -> Point:
    """Where the fit was when another child had begun to go on."""
    wait_until(lambda: any(child.pid != killed.pid for child in server.processes(CHILD)), "a child begins")
    event = last_event(server)  # what the one before it said was told before it was begun
    wait_until(lambda: bool(course(server, scene_id, event)), "the fit goes on")
    return course(server, scene_id, event)[0]


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
        assert ask(server, "pragma integrity_check") == [("ok",)]
        assert set(ask(server, ENDS)) == {(1,)}
    tell("kills", kills)
    tell("scenes", len(client.acknowledged))


def _all_ready(server: Server) -> bool:
    """Whether also those are, of which nobody was told because the answer was lost."""
    health = server.client.get("/healthz").json()
    failed = server.client.get("/scenes").json()["items"]
    assert not [scene["error"] for scene in failed if scene["error"]]
    return bool(health["queued"] + health["fitting"] == 0)


def test_stopping_again_and_again_loses_nothing(tmp_path: Path, amount: Amount, tell: Tell) -> None:
    stops, steps, chance = amount(1, 50), amount(8_000, 300_000), random.Random(5)
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
