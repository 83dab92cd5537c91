"""The life of a scene's job: one table, and the rules on top.

               start            finish
    queued ──────────▶ fitting ──────────▶ ready
      │ ▲                │ ▲ │
      │ │ retry          │ └─┘ start, once more after a crash
      │ │                │
      │ └── cancelled ◀──┤ cancel
      └───▶ failed    ◀──┘ fail

A job is named by the scene's id and its `run`. Cancelling and retrying begin a new run, and what an
older run still wants to write is refused by the store.
"""

from __future__ import annotations

from enum import StrEnum

from acorn_svc.errors import Conflict
from acorn_svc.store.scenes import Scene, Status


class Step(StrEnum):
    """What can happen to a job."""

    START = "start"
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"
    RETRY = "retry"


LIFE: dict[Status, dict[Step, Status]] = {
    Status.QUEUED: {
        Step.START: Status.FITTING,
        Step.FAIL: Status.FAILED,
        Step.CANCEL: Status.CANCELLED,
    },
    Status.FITTING: {
        Step.START: Status.FITTING,
        Step.FINISH: Status.READY,
        Step.FAIL: Status.FAILED,
        Step.CANCEL: Status.CANCELLED,
    },
    Status.READY: {},
    Status.FAILED: {Step.RETRY: Status.QUEUED},
    Status.CANCELLED: {Step.RETRY: Status.QUEUED},
}
ACTIVE = (Status.QUEUED, Status.FITTING)


def advance(scene: Scene, step: Step) -> None:
    """Let `step` happen to the scene's job; raises Conflict when the table has no such step."""
    following = LIFE[scene.status].get(step)
    if following is None:
        raise Conflict(f"A scene that is {scene.status} has no job to {step}.")
    scene.status = following


def start(scene: Scene) -> None:
    """A worker takes the job up, for the first time or after a crash."""
    advance(scene, Step.START)
    scene.attempts += 1


def finish(scene: Scene) -> None:
    """The fit has reached its end."""
    advance(scene, Step.FINISH)


def fail(scene: Scene, code: str, reason: str) -> None:
    """The job cannot go on; `reason` is a sentence for people."""
    advance(scene, Step.FAIL)
    scene.error_code, scene.error_message = code, reason


def cancel(scene: Scene) -> None:
    """Someone doesn't want the job any more; its process is ended by whoever watches it."""
    advance(scene, Step.CANCEL)
    scene.run += 1


def retry(scene: Scene) -> None:
    """The job begins again, from its last checkpoint when there is one."""
    advance(scene, Step.RETRY)
    scene.run += 1
    scene.attempts = 0
    scene.error_code = scene.error_message = None
