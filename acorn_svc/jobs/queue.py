"""The side of the job queue that the API uses: accept, cancel, retry.

A scene and its job are committed together, in one transaction of one file: there is no moment at
which one exists without the other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dbos import DBOS, DBOSClient, EnqueueOptions, WorkflowSerializationFormat
from dbos import error as dbos_errors
from sqlalchemy.orm import Session, object_session

from acorn_svc.errors import FitFailed, Unavailable
from acorn_svc.jobs import life
from acorn_svc.store.scenes import Scene, SceneStore

APPLICATION = "acorn"
# The schema of what the queue stores; a worker takes up only jobs of its own version.
JOBS_VERSION = "jobs-1"
QUEUE = "fits"
WORKFLOW = "fit_scene"
UNFINISHED = ("ENQUEUED", "DELAYED", "PENDING")
QUEUE_IS_FULL_SECONDS = 60


class JobQueue:
    """Jobs of the scenes in `store`; at most `limit` may wait or run."""

    def __init__(self, store: SceneStore, limit: int) -> None:
        self._store = store
        self._limit = limit
        engine = store.database.engine
        with store.database.upgrading():
            DBOS.migrate(engine.url.render_as_string(hide_password=False))
        self._client = DBOSClient(system_database_engine=engine, application_name=APPLICATION)

    def require_room(self) -> None:
        """Raise Unavailable when too many jobs wait."""
        if self._store.count(*life.ACTIVE) >= self._limit:
            raise Unavailable(
                "Too many jobs are waiting; try again later.",
                retry_after=QUEUE_IS_FULL_SECONDS,
                limit="max_queued_jobs",
                value=self._limit,
            )

    def accept(self, scene: Scene, upload: Path) -> Scene:
        """Keep a new scene and its job; neither is lost once this returns."""
        return self._store.create(scene, upload, also=lambda session: self._add(session, scene))

    def cancel(self, scene_id: str) -> Scene:
        """End the job; raises NotFound, or Conflict when there is none."""
        return self._change(scene_id, life.cancel)

    def retry(self, scene_id: str) -> Scene:
        """Queue the job again; raises NotFound, or Conflict unless it failed or was cancelled."""
        self.require_room()
        return self._change(scene_id, self._again)

    def restore_lost(self) -> None:
        """Queue again what should be queued but isn't, after the queue itself had a mishap."""
        for scene in self._store.with_status(*life.ACTIVE):
            if self._status(scene) not in UNFINISHED:
                self._change(scene.id, self._anew)

    def close(self) -> None:
        """Let go of the queue."""
        self._client.destroy()

    def _again(self, scene: Scene) -> None:
        life.retry(scene)
        session = object_session(scene)
        assert session is not None
        self._add(session, scene)

    def _anew(self, scene: Scene) -> None:
        life.fail(scene, FitFailed.code, "The job was lost.")
        self._again(scene)

    def _status(self, scene: Scene) -> str | None:
        try:
            return self._client.retrieve_workflow(_name(scene)).get_status().status
        except dbos_errors.DBOSNonExistentWorkflowError:
            return None

    def _change(self, scene_id: str, step: Callable[[Scene], None]) -> Scene:
        with self._store.edit(scene_id) as scene:
            step(scene)
        return scene

    def _add(self, session: Session, scene: Scene) -> None:
        options = EnqueueOptions(
            workflow_name=WORKFLOW,
            queue_name=QUEUE,
            workflow_id=_name(scene),
            app_version=JOBS_VERSION,
            serialization_type=WorkflowSerializationFormat.PORTABLE,
        )
        self._client.enqueue_in_transaction(session, options, scene.id, scene.run)


def _name(scene: Scene) -> str:
    return f"{scene.id}-{scene.run}"
