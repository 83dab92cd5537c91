"""The life of a scene's job: one table, and the rules on top.

             start             finish
    queued ─────────▶ fitting ─────────▶ ready
     ▲ ▲ ▲            │  │                 ▲
     │ │ └─ requeue ──┘  │ pause           │
     │ └──── resume ─── paused ────────────┘ finish: the pause came too late
     └─ retry ── failed, cancelled ◀── fail, cancel ── queued, fitting, paused

    fitting ── start ──▶ fitting       its process died and is started again
    queued ─── pause ──▶ paused        it hadn't begun
    queued ─── requeue, prioritise ──▶ queued       its place in the line was lost, or changes
    paused ─── prioritise ──▶ paused

A job is requeued when its worker was lost or is stopping.

A job is named by the scene's id and its `run`. Whoever takes a job away from a worker, or gives it to the
next one, begins a new run, and what an older run still wants to write is refused by the store. That is
all the fencing there is. Only a pause keeps the run, so that the worker can still store where it stopped.
"""

from __future__ import annotations

from enum import StrEnum

from acorn_svc.errors import Conflict
from acorn_svc.store.scenes import Scene, Status, now


class Step(StrEnum):
    """What can happen to a job."""

    START = "start"
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    REQUEUE = "requeue"
    PRIORITISE = "prioritise"
    RETRY = "retry"


LIFE: dict[Status, dict[Step, Status]] = {
    Status.QUEUED: {
        Step.START: Status.FITTING,
        Step.FAIL: Status.FAILED,
        Step.CANCEL: Status.CANCELLED,
        Step.PAUSE: Status.PAUSED,
        Step.REQUEUE: Status.QUEUED,
        Step.PRIORITISE: Status.QUEUED,
    },
    Status.FITTING: {
        Step.START: Status.FITTING,
        Step.FINISH: Status.READY,
        Step.FAIL: Status.FAILED,
        Step.CANCEL: Status.CANCELLED,
        Step.PAUSE: Status.PAUSED,
        Step.REQUEUE: Status.QUEUED,
    },
    Status.PAUSED: {
        Step.FINISH: Status.READY,
        Step.FAIL: Status.FAILED,
        Step.CANCEL: Status.CANCELLED,
        Step.RESUME: Status.QUEUED,
        Step.PRIORITISE: Status.PAUSED,
    },
    Status.READY: {},
    Status.FAILED: {Step.RETRY: Status.QUEUED},
    Status.CANCELLED: {Step.RETRY: Status.QUEUED},
}
ACTIVE = (Status.QUEUED, Status.FITTING)  # a worker has the job, or will
OVER = (Status.READY, Status.FAILED, Status.CANCELLED)  # nothing happens any more unless someone asks


def advance(scene: Scene, step: Step) -> None:
    """Let `step` happen to the scene's job; raises Conflict when the table has no such step."""
    following = LIFE[scene.status].get(step)
    if following is None:
        raise Conflict(f"A scene that is {scene.status} has no job to {step}.")
    scene.status = following


def start(scene: Scene) -> None:
    """A worker takes the job up, for the first time or once more after its process died."""
    advance(scene, Step.START)
    scene.attempts += 1
    scene.beats += 1


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


def pause(scene: Scene) -> None:
    """The job is to wait; its process keeps where it is and ends."""
    advance(scene, Step.PAUSE)


def resume(scene: Scene) -> None:
    """The job is queued again after a pause."""
    advance(scene, Step.RESUME)
    _queue_anew(scene)


def retry(scene: Scene) -> None:
    """The job begins again, from its last checkpoint when there is one."""
    advance(scene, Step.RETRY)
    _queue_anew(scene)
    scene.error_code = scene.error_message = None


def prioritise(scene: Scene, priority: int) -> None:
    """The job waits for its turn among those of another priority."""
    advance(scene, Step.PRIORITISE)
    scene.priority = priority
    if scene.status == Status.QUEUED:
        scene.run += 1
        scene.queued_at = now()


def requeue(scene: Scene) -> None:
    """The job lost its worker or its place in the queue: it goes on where it was in the line."""
    advance(scene, Step.REQUEUE)
    scene.run += 1


def _queue_anew(scene: Scene) -> None:
    scene.run += 1
    scene.attempts = 0
    scene.queued_at = now()
