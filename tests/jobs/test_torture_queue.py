"""Workers that are killed and frozen at random moments: no job is lost, and none is done twice."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from farm import Farm
from live_server import wait_until
from sqlalchemy import text

from acorn_svc.jobs import workflow
from acorn_svc.jobs.queue import JobQueue
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import Scene, SceneStore, Status, new_id

pytestmark = [pytest.mark.slow, pytest.mark.torture]

FIT_SECONDS = 0.02
KILLED_WITHIN_SECONDS = 0.2
WAITING = 8
LEASE = {"lease_seconds": 4, "heartbeat_seconds": 0.5, "job_attempts": 100}
Amount = Callable[[int, int], int]
Tell = Callable[[str, object], None]


class Client:
    """Adds jobs, and remembers which ones were acknowledged."""

    def __init__(self, data: Path) -> None:
        self.store = SceneStore(Settings(data=data))
        self.jobs = JobQueue(self.store, limit=1000)
        self.accepted: list[str] = []

    def add(self) -> str:
        scene_id, upload = new_id(), self.store.blobs.spool_file()
        upload.write_text(scene_id)
        scene = Scene(
            id=scene_id,
            status=Status.QUEUED,
            bytes_original=8,
            format_original="png",
            preset="draft",
            encoder="grid",
        )
        self.accepted.append(self.jobs.accept(scene, upload).id)
        return scene_id

    def done(self) -> bool:
        return self.store.count(Status.READY) == len(self.accepted)

    def check(self) -> None:
        """What was accepted is there, and was published once."""
        for scene_id in self.accepted:
            scene = self.store.get(scene_id)
            assert (scene.status, scene.version, scene.error_message) == (Status.READY, 1, None)
            assert self.store.local(self.store.snapshot(scene_id)).read_text() == f"field of {scene_id}"
            assert len(self.store.progress_after(scene_id, 0)) == 1
        if self.store.database.engine.dialect.name == "sqlite":
            with self.store.database.read() as session:
                assert session.execute(text("PRAGMA integrity_check")).scalar() == "ok"

    def close(self) -> None:
        self.jobs.close()
        self.store.close()


def test_killed_workers_lose_no_job_and_do_none_twice(tmp_path: Path, amount: Amount, tell: Tell) -> None:
    kills, chance = amount(20, 2000), random.Random(20)
    client = Client(tmp_path)
    with Farm(tmp_path, FIT_SECONDS, **LEASE) as farm:
        killed = _kill_at_random(farm, client, kills, chance)
        wait_until(client.done, "every job is done")
        starts = farm.starts()
        client.check()
        wait_until(lambda: farm.processes()["sh"] == 0, "no child is left")
        logs = [farm.log(worker) for worker in farm.workers]
    cut_off = Counter(scene for log in logs for scene in _cut_off(log))
    for scene, count in Counter(scene for _, scene in starts).items():
        assert count <= 1 + cut_off[scene], scene
    tell("kills", len(killed))
    tell("jobs", len(client.accepted))
    tell("starts", len(starts))
    tell("starts cut off", cut_off.total())
    events = Counter(line["event"] for log in logs for line in log)
    tell("leases lost by living workers", events[workflow.LEASE_IS_OVER])
    client.close()


def _cut_off(log: list[dict[str, Any]]) -> Iterator[str]:
    """The scene of each start that a worker did not bring to an end, as it wrote down itself.

    It was killed in it, or had been too slow to keep its lease. Now and then two are handed out at once, and
    one waits for the other.
    """
    begun = set[str]()
    for line in log:
        match line["event"]:
            case "fit starts":
                begun.add(line["scene"])
            case "fit ends":
                begun.discard(line["scene"])
            case workflow.NOT_WANTED | workflow.LEASE_IS_OVER if line["scene"] in begun:
                begun.remove(line["scene"])
                yield line["scene"]
    yield from begun


def _kill_at_random(farm: Farm, client: Client, kills: int, chance: random.Random) -> list[int]:
    """Keep two workers busy and kill each soon after it has begun to work; returns who was killed."""
    workers, due, killed = {farm.start(), farm.start()}, dict[int, float](), list[int]()
    while len(killed) < kills:
        while client.store.count(Status.QUEUED) < WAITING:
            client.add()
        moment = time.monotonic()
        for worker in workers & {worker for worker, _ in farm.starts()[-100:]} - set(due):
            due[worker] = moment + chance.uniform(0, KILLED_WITHIN_SECONDS)
        for worker in [worker for worker in workers if due.get(worker, moment + 1) <= moment]:
            farm.signal(worker, signal.SIGKILL)
            killed.append(worker)
            workers = workers - {worker} | {farm.start()}
        time.sleep(0.005)
    return killed


def test_a_worker_that_was_frozen_for_longer_than_its_lease_is_refused(tmp_path: Path) -> None:
    client = Client(tmp_path)
    with Farm(tmp_path, 2.0, lease_seconds=1, heartbeat_seconds=0.2) as farm:
        scene, frozen = client.add(), farm.start()
        wait_until(lambda: farm.starts() == [(frozen, scene)], "the first worker has begun")
        farm.signal(frozen, signal.SIGSTOP)
        other = farm.start()
        wait_until(client.done, "the other worker has taken over and is done")
        assert farm.starts() == [(frozen, scene), (other, scene)]
        client.check()
        farm.signal(other, signal.SIGKILL)
        farm.signal(frozen, signal.SIGCONT)
        second = client.add()
        wait_until(client.done, "the first worker goes on with other jobs")
        assert farm.starts()[2:] == [(frozen, second)]
        wait_until(lambda: list(_cut_off(farm.log(frozen))) == [scene], "it says which job it has lost")
        client.check()
    client.close()


def test_workers_that_are_stopped_give_their_job_back_at_once(tmp_path: Path, amount: Amount) -> None:
    client = Client(tmp_path)
    stops = amount(3, 30)
    with Farm(tmp_path, 3600, lease_seconds=3600, heartbeat_seconds=5) as farm:
        scene = client.add()
        for count in range(1, stops + 1):
            worker = farm.start()
            wait_until(lambda count=count: len(farm.starts()) == count, "the worker has begun")  # type: ignore[misc]
            farm.signal(worker, signal.SIGTERM)
            wait_until(lambda: client.store.get(scene).status == Status.QUEUED, "the job waits again")
        assert (client.store.get(scene).attempts, client.store.get(scene).run) == (0, stops)
    client.close()


def test_what_a_child_leaves_behind_holds_up_no_worker(tmp_path: Path) -> None:
    client = Client(tmp_path)
    with Farm(tmp_path, 3600) as farm:
        scene, worker = client.add(), farm.start()
        wait_until(lambda: farm.starts() == [(worker, scene)], "the fit has begun")
        wait_until(lambda: farm.processes()["sleep"] == 1, "it has started something")
        farm.kill_children("sh")
        wait_until(lambda: len(farm.starts()) == 2, "it is begun again")
        assert client.store.get(scene).attempts == 2
    client.close()


def test_a_fit_that_takes_too_long_is_ended_and_says_so(tmp_path: Path) -> None:
    client = Client(tmp_path)
    with Farm(tmp_path, 3600, job_wall_seconds=1, checkpoint_seconds=0.1) as farm:
        farm.start()
        scene = client.add()
        wait_until(lambda: client.store.get(scene).status == Status.FAILED, "the job has failed")
        failed = client.store.get(scene)
        assert failed.error_code == "out_of_time"
        assert "job_wall_seconds allows: 1" in str(failed.error_message)
        wait_until(lambda: farm.processes()["sh"] == 0, "its process has ended")
    client.close()
