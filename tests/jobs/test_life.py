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
    return Scene(id="0" * 26, status=status, run=4, attempts=2, error_code="x", error_message="y")


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


def test_active_are_those_that_can_still_fail() -> None:
    assert set(life.ACTIVE) == {status for status in Status if Step.FAIL in LIFE[status]}


@pytest.mark.parametrize("step", [life.cancel, life.retry])
def test_cancel_and_retry_outdate_the_job_that_was(step: Callable[[Scene], None]) -> None:
    scene = _scene(Status.FITTING if step is life.cancel else Status.FAILED)
    step(scene)
    assert scene.run == 5


def test_retry_forgets_why_it_failed() -> None:
    scene = _scene(Status.FAILED)
    life.retry(scene)
    assert (scene.error_code, scene.error_message, scene.attempts) == (None, None, 0)


def test_a_start_is_counted_before_it_can_go_wrong() -> None:
    scene = _scene(Status.QUEUED)
    life.start(scene)
    assert (scene.status, scene.attempts) == (Status.FITTING, 3)
