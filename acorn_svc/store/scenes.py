"""The scenes: rows and files together, the only place that knows both.

    <data>/acorn.sqlite                   scenes, their events, and the job queue
    <data>/blobs/scenes/<id>/original     what was uploaded, until the scene is deleted
    <data>/blobs/scenes/<id>/<n>.acorn    snapshot n; the newest two are kept
    <data>/blobs/spool/                   files that are still being written
    <data>/work/<id>/                     what a running fit needs to go on after a crash

An uploaded `.acorn` is at once the original and snapshot 1.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from acorn_svc.errors import AcornError, Conflict, NotFound
from acorn_svc.store.blobs import Blobs
from acorn_svc.store.database import Database, ProgressEvent, Scene, SceneHead, Status, now

__all__ = ["ProgressEvent", "Scene", "SceneHead", "SceneStore", "Snapshot", "Status", "new_id"]

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
KEPT_SNAPSHOTS = 2  # whoever has just looked up the older one can still open it


def new_id() -> str:
    """A new scene id: 26 characters of `[0-9a-z]` that sort by the time they were made."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


@dataclass(frozen=True)
class Snapshot:
    """A published `.acorn` file of a scene. Its content never changes; versions count from 1."""

    version: int
    path: Path


@dataclass(frozen=True)
class Page:
    """Some scenes, newest first; `next` continues the list, `total` counts all."""

    items: Sequence[Scene]
    next: str | None
    total: int


class SceneStore:
    """Every scene of one data folder. Safe to use from several threads and processes."""

    def __init__(self, data: Path) -> None:
        data.mkdir(parents=True, exist_ok=True)
        self._data = data
        self.blobs = Blobs(data / "blobs")
        self.database = Database(data / "acorn.sqlite")

    # Looking things up

    def get(self, scene_id: str) -> Scene:
        """The scene; raises NotFound."""
        with self.database.read() as session:
            return _require(session, scene_id)

    def head(self, scene_id: str) -> SceneHead:
        """What looking at the scene needs of it; raises NotFound."""
        scene = self.get(scene_id)
        return SceneHead(**{field.name: getattr(scene, field.name) for field in fields(SceneHead)})

    def head_now(self, scene_id: str) -> SceneHead:
        """The same within microseconds, for an event loop; raises BlockingIOError where it would wait."""
        found = self.database.glance(scene_id)
        if not found:
            raise _no_scene()
        return found[0]

    def page(self, limit: int, cursor: str | None = None) -> Page:
        """At most `limit` scenes, newest first, after `cursor` (a Page's `next`)."""
        query = select(Scene).order_by(Scene.id.desc()).limit(limit + 1)
        if cursor is not None:
            query = query.where(Scene.id < cursor)
        with self.database.read() as session:
            found = session.scalars(query).all()
            total = session.scalar(select(func.count()).select_from(Scene)) or 0
        more = found[limit - 1].id if len(found) > limit else None
        return Page(found[:limit], more, total)

    def with_status(self, *statuses: Status) -> Sequence[Scene]:
        """Every scene that has one of `statuses`, oldest first."""
        query = select(Scene).where(Scene.status.in_(statuses)).order_by(Scene.id)
        with self.database.read() as session:
            return session.scalars(query).all()

    def count(self, *statuses: Status) -> int:
        """How many scenes have one of `statuses`."""
        return sum(self.counts(*statuses))

    def counts(self, *statuses: Status) -> list[int]:
        """How many scenes have each of `statuses`, all at the same moment."""
        query = select(Scene.status, func.count()).where(Scene.status.in_(statuses)).group_by(Scene.status)
        with self.database.read() as session:
            found = {status: count for status, count in session.execute(query)}
        return [found.get(status, 0) for status in statuses]

    def progress_after(self, scene_id: str, after: int, limit: int = 1000) -> Sequence[ProgressEvent]:
        """The scene's progress with an id above `after`, in order, at most `limit`."""
        query = (
            select(ProgressEvent)
            .where(ProgressEvent.scene_id == scene_id, ProgressEvent.id > after)
            .order_by(ProgressEvent.id)
            .limit(limit)
        )
        with self.database.read() as session:
            return session.scalars(query).all()

    # Files

    def snapshot(self, scene_id: str) -> Snapshot:
        """The newest snapshot; raises NotFound when there is no scene, or nothing to see yet."""
        return self.snapshot_of(self.head(scene_id))

    def snapshot_of(self, scene: SceneHead) -> Snapshot:
        """The scene's newest snapshot when it was looked up; raises NotFound when there was none."""
        if scene.version == 0:
            raise NotFound("This scene has nothing to show yet; its fit has only begun.")
        return Snapshot(scene.version, self.blobs.path(_snapshot_key(scene.id, scene.version)))

    def original(self, scene: Scene) -> Path:
        """The file as it was uploaded; of an uploaded `.acorn` that is its only snapshot."""
        if scene.format_original == "acorn":
            return self.blobs.path(_snapshot_key(scene.id, 1))
        return self.blobs.path(_original_key(scene.id))

    def work_folder(self, scene_id: str) -> Path:
        """The folder where the fit of this scene keeps its checkpoint."""
        return self._data / "work" / scene_id

    # Changes

    def create(
        self,
        scene: Scene,
        upload: Path,
        also: Callable[[Session], object] = lambda _session: None,
    ) -> Scene:
        """Keep `upload`, a file of the spool, and add the scene; `also` joins the transaction.

        The upload becomes the original, or snapshot 1 of a scene that is born with a version.
        """
        key = _snapshot_key(scene.id, 1) if scene.version else _original_key(scene.id)
        self.blobs.publish(upload, key)
        with self.database.write() as session:
            session.add(scene)
            session.flush()
            also(session)
        return scene

    @contextmanager
    def edit(self, scene_id: str, run: int | None = None) -> Iterator[Scene]:
        """The scene inside a write transaction; clients are told that it changed.

        Raises NotFound when the scene is gone, and Conflict when `run` isn't its job any more.
        """
        with self.database.write() as session:
            scene = _require(session, scene_id)
            _require_run(scene, run)
            yield scene
            scene.updated_at = now()

    def update(self, scene_id: str, **values: str | None) -> Scene:
        """Set what people write, such as the title; raises NotFound."""
        with self.edit(scene_id) as scene:
            for name, value in values.items():
                setattr(scene, name, value)
        return scene

    def note_progress(self, scene_id: str, run: int, progress: dict[str, Any]) -> None:
        """Keep how far the fit has come, and tell clients; raises as `edit` does."""
        with self.database.write() as session:
            scene = _require(session, scene_id)
            _require_run(scene, run)
            scene.progress = progress
            _record_progress(session, scene)

    def forget_progress_after(self, scene_id: str, step: int) -> None:
        """Drop progress that a crash has undone, so that the history never runs backwards."""
        later = ProgressEvent.data["step"].as_integer() > step
        of_scene = ProgressEvent.scene_id == scene_id
        with self.database.write() as session:
            session.execute(delete(ProgressEvent).where(of_scene, later))

    def publish_snapshot(
        self,
        scene_id: str,
        run: int,
        source: Path,
        progress: dict[str, Any],
        then: Callable[[Scene], None] | None = None,
    ) -> None:
        """Make `source`, a file of the spool, the scene's next version; raises as `edit` does.

        `then` may change the scene in the same transaction; clients are then told.
        """
        version = self.get(scene_id).version + 1
        self.blobs.publish(source, _snapshot_key(scene_id, version))
        try:
            with self.database.write() as session:
                scene = _require(session, scene_id)
                _require_run(scene, run)
                scene.version, scene.progress, scene.attempts = version, progress, 0
                _record_progress(session, scene)
                if then is not None:
                    then(scene)
                    scene.updated_at = now()
        except AcornError:
            self._forget_snapshot(scene_id, version)
            raise
        self.blobs.delete(_snapshot_key(scene_id, version - KEPT_SNAPSHOTS))

    def _forget_snapshot(self, scene_id: str, version: int) -> None:
        """Remove a snapshot that came too late: its job, or the whole scene, is gone."""
        try:
            self.get(scene_id)
        except NotFound:
            self.remove_files(scene_id)
        else:
            self.blobs.delete(_snapshot_key(scene_id, version))

    def delete(self, scene_id: str) -> None:
        """Remove the scene, its events and its files; raises NotFound."""
        with self.database.write() as session:
            session.delete(_require(session, scene_id))
        self.remove_files(scene_id)

    def remove_files(self, scene_id: str) -> None:
        """Remove every file of a scene that has no row any more."""
        self.blobs.delete_folder(f"scenes/{scene_id}")
        self.drop_checkpoint(scene_id)

    def drop_checkpoint(self, scene_id: str) -> None:
        """Remove what a fit would need to go on."""
        shutil.rmtree(self.work_folder(scene_id), ignore_errors=True)

    def sweep(self) -> None:
        """Remove what a crash left behind; only at start, while nobody writes."""
        self.blobs.empty_spool()
        with self.database.read() as session:
            known = set(session.scalars(select(Scene.id)))
        for scene_id in set(self.blobs.folders("scenes")) - known:
            self.remove_files(scene_id)

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def _original_key(scene_id: str) -> str:
    return f"scenes/{scene_id}/original"


def _snapshot_key(scene_id: str, version: int) -> str:
    return f"scenes/{scene_id}/{version}.acorn"


def _require(session: Session, scene_id: str) -> Scene:
    scene = session.get(Scene, scene_id)
    if scene is None:
        raise _no_scene()
    return scene


def _no_scene() -> NotFound:
    return NotFound("There is no scene with this id.")


def _require_run(scene: Scene, run: int | None) -> None:
    if run is not None and scene.run != run:
        raise Conflict("This job has been replaced by a newer one.")


def _record_progress(session: Session, scene: Scene) -> None:
    data = {"id": scene.id, "version": scene.version, "status": scene.status}
    data |= scene.progress or {}
    session.add(ProgressEvent(scene_id=scene.id, data=data))
