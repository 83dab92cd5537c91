"""The table of the job's life, step by step."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from acorn_svc.errors import Conflict
from acorn_svc.jobs import life
from acorn_svc.jobs.life import LIFE, Step
from acorn_svc.store.scenes import Scene, Status


def _scene(status: Status) -> Scene:
    return Scene(id="0" * 26, status=status, run=4, attempts=2, beats=0, error_code="x", error_message="y")


@pytest.mark.parametrize(("status", "step"), list(itertools.product(Status, Step)))
def test_a_step_follows_the_table_or_is_refused(status: Status, step: Step) -> None:
    scene = _scene(status)
    if step in LIFE[status]:
        life.advance(scene, step)
        assert scene.status == LIFE[status][step]
    else:
        with pytest.raises(Conflict):
            life.advance(scene, step)
        assert scene.status == status


def test_every_status_is_in_the_table_and_reachable() -> None:
    assert set(LIFE) == set(Status)
    reached = {after for steps in LIFE.values() for after in steps.values()}
    assert reached == set(Status)


def test_jobs_that_are_over_are_those_that_cannot_fail_any_more() -> None:
    assert set(life.OVER) == {status for status in Status if Step.FAIL not in LIFE[status]}


def test_jobs_that_are_active_are_those_that_a_lost_worker_leaves_behind() -> None:
    assert set(life.ACTIVE) == {status for status in Status if Step.REQUEUE in LIFE[status]}


@pytest.mark.parametrize(
    ("status", "step"),
    [
        (Status.FITTING, life.cancel),
        (Status.PAUSED, life.cancel),
        (Status.FITTING, life.requeue),
        (Status.QUEUED, life.requeue),
        (Status.PAUSED, life.resume),
        (Status.FAILED, life.retry),
        (Status.QUEUED, lambda scene: life.prioritise(scene, 3)),
    ],
)
def test_what_takes_a_job_away_outdates_it(status: Status, step: Callable[[Scene], None]) -> None:
    scene = _scene(status)
    step(scene)
    assert scene.run == 5


@pytest.mark.parametrize("status", [Status.QUEUED, Status.FITTING])
def test_a_pause_lets_the_worker_store_where_it_stopped(status: Status) -> None:
    scene = _scene(status)
    life.pause(scene)
    assert scene.run == 4


def test_a_lost_worker_is_remembered_and_a_person_forgives() -> None:
    lost, resumed, retried = _scene(Status.FITTING), _scene(Status.PAUSED), _scene(Status.FAILED)
    life.requeue(lost)
    life.resume(resumed)
    life.retry(retried)
    assert (lost.attempts, resumed.attempts, retried.attempts) == (2, 0, 0)


def test_retry_forgets_why_it_failed() -> None:
    scene = _scene(Status.FAILED)
    life.retry(scene)
    assert (scene.error_code, scene.error_message, scene.attempts) == (None, None, 0)


def test_a_start_is_counted_before_it_can_go_wrong() -> None:
    scene = _scene(Status.QUEUED)
    life.start(scene)
    assert (scene.status, scene.attempts) == (Status.FITTING, 3)
