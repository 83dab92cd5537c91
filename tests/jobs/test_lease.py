"""Leases and the reaper: who lets go of a job, who takes it over, and that no clock that is set matters."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable

import pytest

from acorn_svc.errors import AcornError, Conflict, NotFound
from acorn_svc.jobs.lease import Lease
from acorn_svc.jobs.queue import Sign
from acorn_svc.jobs.reaper import Reaper

LEASE, HEARTBEAT = 0.3, 0.05
PATIENCE = 60


class Jobs:
    """Jobs whose signs a test sets; those that were taken over begin a new run."""

    def __init__(self) -> None:
        self.present: set[Sign] = set()
        self.alive: set[str] = set()

    def set(self, signs: Iterable[Sign]) -> None:
        self.present = set(signs)

    def signs(self) -> set[Sign]:
        return set(self.present)

    def take_over(self, sign: Sign) -> None:
        if sign.scene_id in self.alive:
            raise Conflict("alive")
        self.present.remove(sign)


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reaper(jobs: Jobs, clock: Clock) -> Reaper:
    return Reaper(jobs, 30, clock)  # type: ignore[arg-type]


def test_a_job_whose_sign_stays_the_same_for_a_lease_is_taken_over(
    jobs: Jobs, clock: Clock, reaper: Reaper
) -> None:
    silent = Sign("a", 0, 7)
    for clock.time in (0, 10, 20, 29.9):
        jobs.set({silent, Sign("b", 0, int(clock.time))})
        assert reaper.look() == []
    clock.time = 30
    jobs.set({silent, Sign("b", 0, 30)})
    assert reaper.look() == [silent]
    assert reaper.look() == []


def test_a_new_reaper_waits_for_a_whole_lease(jobs: Jobs, clock: Clock, reaper: Reaper) -> None:
    clock.time = 1e6
    jobs.set({Sign("a", 0, 0)})
    assert reaper.look() == []


def test_a_new_run_or_a_time_out_of_sight_begins_a_new_lease(
    jobs: Jobs, clock: Clock, reaper: Reaper
) -> None:
    for clock.time, signs in [
        (0, {Sign("a", 0, 1)}),
        (20, {Sign("a", 1, 1)}),
        (25, set()),
        (45, {Sign("a", 1, 1)}),
    ]:
        jobs.set(signs)
        assert reaper.look() == []
    clock.time = 74
    assert reaper.look() == []


def test_a_worker_that_proves_to_be_alive_keeps_its_job(jobs: Jobs, clock: Clock, reaper: Reaper) -> None:
    jobs.set({Sign("a", 0, 1), Sign("b", 0, 1)})
    jobs.alive = {"a"}
    reaper.look()
    clock.time = 31
    assert reaper.look() == [Sign("b", 0, 1)]


def test_a_clock_that_jumps_takes_no_job_from_a_worker(
    jobs: Jobs, clock: Clock, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(1)
    for second in range(0, 3600, 5):
        clock.time = second
        wrong = chance.choice([-3600.0, 3600.0, 10.0 * second])
        monkeypatch.setattr(time, "time", lambda wrong=wrong: 1.8e9 + wrong)
        monkeypatch.setattr(time, "time_ns", lambda wrong=wrong: int((1.8e9 + wrong) * 1e9))
        jobs.set({Sign("a", 0, second)})
        assert reaper.look() == []


def _lease(beat: object, lost: threading.Event) -> Lease:
    return Lease(beat, lost.set, lease_seconds=LEASE, heartbeat_seconds=HEARTBEAT)  # type: ignore[arg-type]


def test_a_lease_lives_as_long_as_its_signs() -> None:
    lost, beaten = threading.Event(), threading.Semaphore(0)
    with _lease(beaten.release, lost):
        for _ in range(3 * round(LEASE / HEARTBEAT)):
            assert beaten.acquire(timeout=PATIENCE)
    # A machine that stood still for a whole lease in between may have lost it, and rightly.


@pytest.mark.parametrize("error", [Conflict("fenced"), NotFound("deleted")])
def test_a_sign_that_is_refused_ends_the_lease_at_once(error: AcornError) -> None:
    lost, beats = threading.Event(), []

    def refused() -> None:
        beats.append(1)
        raise error

    with Lease(refused, lost.set, lease_seconds=1e6, heartbeat_seconds=HEARTBEAT):
        assert lost.wait(PATIENCE)
    assert beats == [1]


def test_a_database_out_of_reach_ends_the_lease() -> None:
    lost, tried = threading.Event(), []

    def unreachable() -> None:
        tried.append(1)
        raise OSError("no route to host")

    with _lease(unreachable, lost):
        assert lost.wait(PATIENCE)
    assert len(tried) > 1


def test_a_sign_that_hangs_ends_the_lease() -> None:
    lost, never = threading.Event(), threading.Event()
    with _lease(never.wait, lost):
        assert lost.wait(PATIENCE)
    never.set()


def test_a_lease_that_was_given_up_is_not_lost() -> None:
    lost = threading.Event()
    with _lease(lambda: None, lost):
        pass
    assert not lost.wait(3 * LEASE)
