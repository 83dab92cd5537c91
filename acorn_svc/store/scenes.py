"""The scenes: rows and files together, the only place that knows both.

    <data>/acorn.sqlite                          scenes, their files and events, and the job queue
    <data>/blobs/originals/<digest>              what was uploaded; the same content is kept once
    <data>/blobs/snapshots/<scene>-<random>      what a fit has shown; the newest two are kept
    <data>/blobs/checkpoints/<scene>-<random>    what a fit needs to go on; the newest two are kept
    <data>/blobs/spool/                          files that are still being written
    <data>/cache/                                copies of files that are kept elsewhere

Database and published files may each be elsewhere, by URL. Files are published before a row names them
and removed after no row does, so that what a row names is there; what no row names, `collect` removes,
unless it may be another database's.
An uploaded `.acorn` is at once the original and a snapshot.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from acorn_svc.errors import Conflict, InsufficientStorage, NotFound
from acorn_svc.settings import Settings
from acorn_svc.store.blobs import Blobs, FolderBlobs, RemoteBlobs, sha256_of
from acorn_svc.store.database import (
    Beginning,
    File,
    ProgressEvent,
    Role,
    Scene,
    SceneHead,
    Status,
    now,
    open_database,
)
from acorn_svc.store.file_cache import FileCache
from acorn_svc.store.promises import missing_bytes

__all__ = [
    "JobHead",
    "ProgressEvent",
    "Scene",
    "SceneHead",
    "SceneStore",
    "Snapshot",
    "Status",
    "is_id",
    "new_id",
    "now",
]

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
ID_CHARACTERS = 26
KEPT_SNAPSHOTS = 2  # whoever has just looked up the older one can still open it
KEPT_CHECKPOINTS = 2  # should the newer one be unreadable, a fit goes on from the older
# Where published files lie; the last is where version 0.1 had them.
FOLDERS = (*(f"{role}s/" for role in Role), "scenes/")


def new_id() -> str:
    """A new scene id: 26 characters of `[0-9a-z]` that sort by the time they were made."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def is_id(text: str, characters: int = ID_CHARACTERS) -> bool:
    """Whether `text` has the form of an id. Nothing else is looked up: no database takes every text."""
    return re.fullmatch(f"[0-9a-z]{{{characters}}}", text) is not None


@dataclass(frozen=True)
class Snapshot:
    """A published `.acorn` file of a scene; `key` is that of `SceneStore.local`.

    Its content never changes; versions count from 1.
    """

    version: int
    key: str


class JobHead(NamedTuple):
    """What a worker needs to know of another one's job."""

    id: str
    status: Status
    run: int
    beats: int


@dataclass(frozen=True)
class Page:
    """Some scenes, newest first; `next` continues the list, `total` counts all."""

    items: Sequence[Scene]
    next: str | None
    total: int


@dataclass(frozen=True)
class Collected:
    """What was removed because nothing needed it; `foreign` files no row names either, but they stay."""

    files: int = 0
    bytes: int = 0
    foreign: int = 0


class SceneStore:
    """Every scene. Safe to use from several threads, processes and, given URLs, machines."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        settings.data.mkdir(parents=True, exist_ok=True)
        self.blobs = open_blobs(settings)
        self.database = open_database(settings.database_url, settings.data / "acorn.sqlite")

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

    def page(self, limit: int, cursor: str | None = None, *, only_public: bool = False) -> Page:
        """At most `limit` scenes, newest first, after `cursor` (a Page's `next`).

        Raises NotFound for a cursor that no page could have.
        """
        if cursor is not None and not is_id(cursor):
            raise NotFound("No page of the list begins there.")
        query = select(Scene).order_by(Scene.id.desc()).limit(limit + 1)
        everything = select(func.count()).select_from(Scene)
        if only_public:
            query, everything = query.where(Scene.public), everything.where(Scene.public)
        if cursor is not None:
            query = query.where(Scene.id < cursor)
        with self.database.read() as session:
            found = session.scalars(query).all()
            total = session.scalar(everything) or 0
        more = found[limit - 1].id if len(found) > limit else None
        return Page(found[:limit], more, total)

    def jobs(self, *statuses: Status) -> list[JobHead]:
        """The jobs of the scenes that have one of `statuses`."""
        query = select(Scene.id, Scene.status, Scene.run, Scene.beats).where(Scene.status.in_(statuses))
        with self.database.read() as session:
            return [JobHead(*row) for row in session.execute(query)]

    def positions(self, scene_ids: Sequence[str]) -> dict[str, int]:
        """The place in the line, from 1 on, of each of `scene_ids` that is queued."""
        order = (Scene.priority.desc(), Scene.begun.desc(), Scene.queued_at, Scene.id)
        place = func.row_number().over(order_by=order)
        line = select(Scene.id, place.label("place")).where(Scene.status == Status.QUEUED).subquery()
        query = select(line).where(line.c.id.in_(scene_ids))
        with self.database.read() as session:
            return {scene_id: place for scene_id, place in session.execute(query)}

    def count(self, *statuses: Status) -> int:
        """How many scenes have one of `statuses`."""
        return sum(self.counts(*statuses))

    def count_of(self, owner: str, *statuses: Status) -> int:
        """How many scenes of `owner` have one of `statuses`."""
        query = select(func.count()).where(Scene.owner == owner, Scene.status.in_(statuses))
        with self.database.read() as session:
            return session.scalar(query) or 0

    def counts(self, *statuses: Status) -> list[int]:
        """How many scenes have each of `statuses`, all at the same moment."""
        query = select(Scene.status, func.count()).where(Scene.status.in_(statuses)).group_by(Scene.status)
        with self.database.read() as session:
            found = {status: count for status, count in session.execute(query)}
        return [found.get(status, 0) for status in statuses]

    def waiting_since(self) -> datetime | None:
        """When the scene that has waited longest was last changed; none when none waits."""
        with self.database.read() as session:
            query = select(func.min(Scene.updated_at)).where(Scene.status == Status.QUEUED)
            return session.scalar(query)

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
        if scene.snapshot is None:
            raise NotFound("This scene has nothing to show yet; its fit has only begun.")
        return Snapshot(scene.version, scene.snapshot)

    def local(self, snapshot: Snapshot) -> Path:
        """The snapshot as a file of this machine; may take as long as a download.

        Raises:
            FileNotFoundError: it has been replaced, or its scene deleted.
        """
        return self.blobs.local(snapshot.key)

    def original(self, scene_id: str) -> Path:
        """The file as it was uploaded, on this machine.

        Raises:
            NotFound: there is no such scene.
            FileNotFoundError: the file was lost, or the scene has just been deleted.
        """
        keys = self._keys(scene_id, Role.ORIGINAL)
        if not keys:
            raise _no_scene()
        return self.blobs.local(keys[0])

    def checkpoints(self, scene_id: str) -> list[Path]:
        """What the fit can go on from, newest first, on this machine."""
        paths = []
        for key in self._keys(scene_id, Role.CHECKPOINT):
            with suppress(FileNotFoundError):
                paths.append(self.blobs.local(key))
        return paths

    def _keys(self, scene_id: str, role: Role) -> Sequence[str]:
        query = select(File.key).where(File.scene_id == scene_id, File.role == role)
        with self.database.read() as session:
            return session.scalars(query.order_by(File.id.desc())).all()

    def bytes_used(self) -> int:
        """Bytes of all files that scenes need."""
        with self.database.read() as session:
            return _bytes_used(session)

    def require_room(self, size: int) -> None:
        """Raise InsufficientStorage unless there is room for `size` more bytes."""
        self._require_quota(self.bytes_used() + size)
        self.require_disk(size)

    def require_disk(self, size: int) -> None:
        """The same of the disk alone: room that was promised to uploads isn't there for others."""
        with self.database.read() as session:
            promised = missing_bytes(session, self.settings)
        self.blobs.require_room(promised + size, self.settings.min_free_disk_bytes)

    def require_quota(self, sha256: str, size: int) -> None:
        """Raise InsufficientStorage when an original of `size` bytes takes too much; each is kept once."""
        key = _original_key(sha256)
        with self.database.read() as session:
            if session.scalar(select(File.id).where(File.key == key).limit(1)) is None:
                self._require_quota(_bytes_used(session) + size)

    def _require_quota(self, total: int) -> None:
        quota = self.settings.store_quota_bytes
        if total > quota:
            message = "The scenes take all the room that they may take; delete some."
            raise InsufficientStorage(message, limit="store_quota_bytes", value=quota)

    # Changes

    def create(
        self,
        scene: Scene,
        upload: Path,
        also: Callable[[Session], object] = lambda _session: None,
        sha256: str | None = None,
    ) -> Scene:
        """Keep `upload`, a file of the spool, and add the scene; `also` joins the transaction.

        `sha256` is the digest of the file in hexadecimal, where it is known already.

        The upload becomes the original, and also the snapshot of a scene that is born with a version.
        It is gone from the spool afterwards. Raises InsufficientStorage when all files take too much.
        """
        key, size = _original_key(sha256 or sha256_of(upload)), upload.stat().st_size
        roles = [Role.ORIGINAL, Role.SNAPSHOT] if scene.version else [Role.ORIGINAL]
        files = [File(scene_id=scene.id, role=role, key=key, bytes=size) for role in roles]
        with self._publishing({key: upload}) as session:
            if not self.blobs.has(key):  # the last other scene with this content was deleted just now
                self.blobs.publish(upload, key)
            session.add(scene)
            session.flush()
            session.add_all(files)
            self._require_quota(_bytes_used(session))
            also(session)
        return scene

    @contextmanager
    def _publishing(self, sources: Mapping[str, Path]) -> Iterator[Session]:
        """Publish files of the spool by key, then a write transaction whose rows will name them.

        They are gone from the spool afterwards; unless all succeeds, what was published goes again.
        """
        try:
            for key, source in sources.items():
                self.blobs.publish(source, key)
            with self.database.write() as session:
                yield session
        except Exception:
            self.discard(sources)
            raise
        for source in sources.values():
            source.unlink()

    def discard(self, keys: Iterable[str]) -> None:
        """Remove those of these files that no row names.

        The write lock is held meanwhile, so that no row can come to name them.
        """
        with self.database.write() as session:
            named = set(session.scalars(select(File.key).where(File.key.in_(keys))))
            for key in set(keys) - named:
                self.blobs.delete(key)

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

    def update(self, scene_id: str, **values: str | bool | None) -> Scene:
        """Set what people say, such as the title; raises NotFound."""
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

    def beat(self, scene_id: str, run: int) -> None:
        """Give a sign of life of the worker that has the job; raises as `edit` does."""
        with self.database.write() as session:
            scene = _require(session, scene_id)
            _require_run(scene, run)
            scene.beats += 1

    def forget_progress_after(self, scene_id: str, run: int, step: int) -> None:
        """Drop progress that a crash has undone, so that the history never runs backwards.

        Raises as `edit` does.
        """
        later = ProgressEvent.data["step"].as_integer() > step
        of_scene = ProgressEvent.scene_id == scene_id
        with self.database.write() as session:
            _require_run(_require(session, scene_id), run)
            session.execute(delete(ProgressEvent).where(of_scene, later))

    def forget_history(self, before: datetime, *statuses: Status) -> None:
        """Drop the progress of scenes with one of `statuses` that were last changed before a moment.

        What they had reached in the end stays.
        """
        old = select(Scene.id).where(Scene.status.in_(statuses), Scene.updated_at < before)
        with self.database.write() as session:
            session.execute(delete(ProgressEvent).where(ProgressEvent.scene_id.in_(old)))

    def publish_snapshot(
        self,
        scene_id: str,
        run: int,
        source: Path,
        progress: dict[str, Any],
        checkpoint: Path | None = None,
        then: Callable[[Scene], None] | None = None,
    ) -> None:
        """Make `source` the scene's next version, and `checkpoint` what its fit goes on from.

        Both are files of the spool, and gone from there afterwards. `then` may change the scene in the
        same transaction; clients are then told. Raises as `edit` does.
        """
        made = {Role.SNAPSHOT: source} | ({Role.CHECKPOINT: checkpoint} if checkpoint else {})
        files = {path: _new_file(scene_id, role, path) for role, path in made.items()}
        with self._publishing({file.key: path for path, file in files.items()}) as session:
            scene = _require(session, scene_id)
            _require_run(scene, run)
            scene.version, scene.progress, scene.attempts = scene.version + 1, progress, 0
            _record_progress(session, scene)
            if then is not None:
                then(scene)
                scene.updated_at = now()
            session.add_all(files.values())
            session.flush()
            outdated = _forget_outdated(session, scene)
        self.discard(outdated)

    def delete(self, scene_id: str) -> Scene:
        """Remove the scene, its events and its files; returns it as it was, or raises NotFound."""
        with self.database.write() as session:
            scene = _require(session, scene_id)
            keys = session.scalars(select(File.key).where(File.scene_id == scene_id)).all()
            session.delete(scene)
        self.discard(keys)
        return scene

    # Housekeeping

    def collect(self, age: float) -> Collected:
        """Remove what no row names and nobody has written to for `age` seconds.

        Safe while others write, as long as nobody needs `age` to publish a file. Safe also with the wrong
        database, or before its rows are back: what is older than the database isn't its rubbish, and where
        there is none of the files that it names, nothing is.
        """
        self.blobs.sweep_spool(age)
        with self.database.read() as session:
            named = set(session.scalars(select(File.key).distinct()))
            beginning = session.scalar(select(func.min(Beginning.at))) or now()
        blobs = [blob for blob in self.blobs.listing() if blob.key.startswith(FOLDERS)]
        is_ours = any(blob.key in named for blob in blobs)
        lifetime = (now() - beginning).total_seconds() if is_ours else 0
        unnamed = [blob for blob in blobs if blob.age >= age and blob.key not in named]
        rubbish = [blob for blob in unnamed if blob.age < lifetime]
        for blob in rubbish:
            self.discard([blob.key])
        return Collected(len(rubbish), sum(blob.bytes for blob in rubbish), len(unnamed) - len(rubbish))

    def adopt_old_checkpoints(self) -> None:
        """Take over what version 0.1 kept in a folder for each fit; only while no fit runs."""
        folder = self.settings.data / "work"
        for path in folder.glob("*/checkpoint"):
            with suppress(NotFound):
                if self.get(path.parent.name).status != Status.READY:
                    file = _new_file(path.parent.name, Role.CHECKPOINT, path)
                    with self._publishing({file.key: path}) as session:
                        session.add(file)
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def open_blobs(settings: Settings) -> Blobs:
    """Where published files are, by the settings."""
    folder = settings.data / "blobs"
    if not settings.blob_url:
        return FolderBlobs(folder)
    cache = FileCache(settings.data / "cache" / "blobs", settings.blob_cache_bytes)
    return RemoteBlobs(folder, settings.blob_url, cache)


def _bytes_used(session: Session) -> int:
    files = select(File.key, File.bytes).distinct().subquery()
    return int(session.scalar(select(func.sum(files.c.bytes))) or 0)


def _new_file(scene_id: str, role: Role, source: Path) -> File:
    """The row of a file that nobody else could publish by the same name."""
    key = f"{role}s/{scene_id}-{secrets.token_hex(8)}"
    return File(scene_id=scene_id, role=role, key=key, bytes=source.stat().st_size)


def _original_key(sha256: str) -> str:
    return f"originals/{sha256}"


def _forget_outdated(session: Session, scene: Scene) -> list[str]:
    """Remove the rows of files that the scene needs no more; returns their keys."""
    kept = {
        Role.SNAPSHOT: KEPT_SNAPSHOTS,
        Role.CHECKPOINT: 0 if scene.status == Status.READY else KEPT_CHECKPOINTS,
    }
    outdated: list[File] = []
    for role, count in kept.items():
        query = select(File).where(File.scene_id == scene.id, File.role == role)
        outdated += session.scalars(query.order_by(File.id.desc()).offset(count)).all()
    for file in outdated:
        session.delete(file)
    return [file.key for file in outdated]


def _require(session: Session, scene_id: str) -> Scene:
    scene = session.get(Scene, scene_id) if is_id(scene_id) else None
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
