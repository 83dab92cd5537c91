"""The job queue: accept, cancel, pause, and what keeps it whole when a worker dies.

A scene and its job are committed together, in one transaction of one database: there is no moment at
which one exists without the other. A job in the queue is a DBOS workflow, named by the scene and its run.
One that a change has outdated is taken out of the line after it; should a crash come between the two, it
finds nothing to do when its turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from dbos import DBOS, DBOSClient, EnqueueOptions, WorkflowSerializationFormat
from sqlalchemy import BigInteger, Engine, TableClause, column, table, update
from sqlalchemy.orm import Session, object_session

from acorn_svc.errors import Conflict, NotFound, TooManyRequests, Unavailable
from acorn_svc.jobs import life
from acorn_svc.store.scenes import Scene, SceneStore, Status, now

APPLICATION = "acorn"
# The schema of what the queue stores; a worker takes up only jobs of its own version.
JOBS_VERSION = "jobs-1"
QUEUE = "fits"
DBOS_SCHEMA = "dbos"  # of its tables in PostgreSQL, unless it is told another
WORKFLOW = "fit_scene"
WAITING = ("ENQUEUED", "DELAYED")
BEGUN = ("PENDING", "SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
QUEUE_IS_FULL_SECONDS = 60
HIGHEST_PRIORITY = 10
KEPT_WORKFLOWS = timedelta(days=1)
PRUNED_AT_ONCE = 1000


class Sign(NamedTuple):
    """What should change within a lease, or the job has been lost."""

    scene_id: str
    run: int
    beats: int


class JobQueue:
    """Jobs of the scenes in `store`; at most `limit` may wait or run, `share` of one owner."""

    def __init__(self, store: SceneStore, limit: int, share: int | None = None) -> None:
        self._store = store
        self._limit = limit
        self._share = limit if share is None else share
        engine = store.database.engine
        with store.database.upgrading():
            DBOS.migrate(engine.url.render_as_string(hide_password=False))
        self._client = DBOSClient(system_database_engine=engine, application_name=APPLICATION)
        self._workflows = _workflows(engine)

    def require_room(self, owner: str | None = None) -> None:
        """Raise Unavailable when too many jobs wait, TooManyRequests when too many are of `owner`."""
        if owner is not None and self._store.count_of(owner, *life.ACTIVE) >= self._share:
            raise TooManyRequests(
                f"{self._share} jobs of yours are waiting or running; let one of them end first.",
                limit="max_queued_jobs_per_key",
                value=self._share,
            )
        if self._store.count(*life.ACTIVE) >= self._limit:
            raise Unavailable(
                "Too many jobs are waiting; try again later.",
                retry_after=QUEUE_IS_FULL_SECONDS,
                limit="max_queued_jobs",
                value=self._limit,
            )

    # What people ask for

    def accept(
        self,
        scene: Scene,
        upload: Path,
        also: Callable[[Session], object] = lambda _session: None,
        sha256: str | None = None,
    ) -> Scene:
        """Keep a new scene and its job; neither is lost once this returns.

        `also` and `sha256` are those of `SceneStore.create`.
        """

        def add(session: Session) -> None:
            self._add(session, scene)
            also(session)

        return self._store.create(scene, upload, add, sha256)

    def cancel(self, scene_id: str) -> Scene:
        """End the job; raises NotFound, or Conflict when there is none."""
        return self._change(scene_id, life.cancel)

    def pause(self, scene_id: str) -> Scene:
        """Let the job rest until it is resumed; raises NotFound, or Conflict unless it waits or runs."""
        return self._change(scene_id, life.pause)

    def resume(self, scene_id: str) -> Scene:
        """Queue the job again; raises NotFound, Unavailable, or Conflict unless it was paused."""
        self.require_room(self._store.get(scene_id).owner)
        return self._change(scene_id, life.resume, queue=True)

    def retry(self, scene_id: str) -> Scene:
        """Queue the job again; raises NotFound, Unavailable, or Conflict unless it failed or was ended."""
        self.require_room(self._store.get(scene_id).owner)
        return self._change(scene_id, life.retry, queue=True)

    def prioritise(self, scene_id: str, priority: int) -> Scene:
        """Move a job that waits; raises NotFound, or Conflict when it doesn't wait."""
        return self._change(scene_id, lambda scene: life.prioritise(scene, priority), queue=True)

    def delete(self, scene_id: str) -> None:
        """Remove the scene with its files and its job; raises NotFound."""
        scene = self._store.delete(scene_id)
        if scene.status == Status.QUEUED:
            self._take_out(scene.id, scene.run)

    def positions(self, scenes: Iterable[Scene]) -> dict[str, int]:
        """How many jobs begin before each scene that waits, itself included, by scene id."""
        waiting = [scene.id for scene in scenes if scene.status == Status.QUEUED]
        return self._store.positions(waiting) if waiting else {}

    # What workers do

    def give_back(self, scene_id: str, run: int) -> None:
        """A stopping worker leaves the job to another one, if it is still its own."""
        with suppress(Conflict, NotFound):
            self._change(scene_id, life.requeue, run, queue=True)

    def signs(self) -> set[Sign]:
        """One sign of every job that a worker has, and of every one that waits where no worker finds it."""
        jobs = self._store.jobs(*life.ACTIVE)
        waiting = self._waiting() if any(job.status == Status.QUEUED for job in jobs) else set()
        return {
            Sign(job.id, job.run, job.beats)
            for job in jobs
            if job.status == Status.FITTING or _name(job.id, job.run) not in waiting
        }

    def take_over(self, sign: Sign) -> None:
        """Queue a job again that has shown the same sign for a lease; raises Conflict if it has moved."""

        def step(scene: Scene) -> None:
            if scene.beats != sign.beats:
                raise Conflict("The worker of this job is alive.")
            life.requeue(scene)

        self._change(sign.scene_id, step, sign.run, queue=True)

    def prune(self) -> None:
        """Forget workflows that nobody needs any more, so that the database doesn't grow for ever."""
        needed = {_name(job.id, job.run) for job in self._store.jobs(*life.ACTIVE)}
        while outdated := self._old_workflows() - needed:
            self._client.delete_workflows(sorted(outdated))

    def close(self) -> None:
        """Let go of the queue."""
        self._client.destroy()

    def _waiting(self) -> set[str]:
        """The names of all jobs that a worker will find."""
        return self._names(queue_name=QUEUE, status=list(WAITING))

    def _old_workflows(self) -> set[str]:
        """Some of those that were begun long ago, whether they have ended or lost their worker."""
        before = (now() - KEPT_WORKFLOWS).isoformat()
        return self._names(status=list(BEGUN), end_time=before, limit=PRUNED_AT_ONCE)

    def _names(self, **which: Any) -> set[str]:
        found = self._client.list_workflows(**which, load_input=False, load_output=False)
        return {workflow.workflow_id for workflow in found}

    def _change(
        self, scene_id: str, step: Callable[[Scene], None], run: int | None = None, *, queue: bool = False
    ) -> Scene:
        """Let `step` happen to the scene; in the same transaction its job is queued if it waits then.

        The job that waited before is outdated by any step, and taken out of the line afterwards.
        """
        with self._store.edit(scene_id, run) as scene:
            waited, before = scene.status == Status.QUEUED, scene.run
            step(scene)
            session = object_session(scene)
            if queue and scene.status == Status.QUEUED and session is not None:
                self._add(session, scene)
        if waited:
            self._take_out(scene_id, before)
        return scene

    def _take_out(self, scene_id: str, run: int) -> None:
        """Remove an outdated job from the line, where each one would cost a worker a look in vain."""
        self._client.cancel_workflow(_name(scene_id, run))

    def _add(self, session: Session, scene: Scene) -> None:
        """Queue the job of the scene, in its place in the line.

        Among equal priorities DBOS goes by when a workflow was created: that is when the scene was queued,
        also for a job that is queued again.
        """
        name = _name(scene.id, scene.run)
        options = EnqueueOptions(
            workflow_name=WORKFLOW,
            queue_name=QUEUE,
            workflow_id=name,
            app_version=JOBS_VERSION,
            priority=_place(scene),
            serialization_type=WorkflowSerializationFormat.PORTABLE,
        )
        self._client.enqueue_in_transaction(session, options, scene.id, scene.run)
        row = update(self._workflows).where(self._workflows.c.workflow_uuid == name)
        session.execute(row.values(created_at=int(scene.queued_at.timestamp() * 1000)))


def _workflows(engine: Engine) -> TableClause:
    """The table of DBOS's workflows: as much as is needed of what its manual says of it."""
    schema = DBOS_SCHEMA if engine.dialect.name == "postgresql" else None
    created_at = column("created_at", BigInteger)  # in milliseconds of Unix time
    return table("workflow_status", column("workflow_uuid"), created_at, schema=schema)


def _name(scene_id: str, run: int) -> str:
    return f"{scene_id}-{run}"


def _place(scene: Scene) -> int:
    """The priority as DBOS has it: from 1 on, lowest first; what was begun goes first among its equals."""
    return 2 * (HIGHEST_PRIORITY - scene.priority) + (1 if scene.begun else 2)
