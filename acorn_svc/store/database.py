"""The database: its tables, and transactions that survive a crash at any moment.

It is one SQLite file in the data folder, or a PostgreSQL database by URL. The tables of the job queue
(DBOS) live beside ours, so that a scene and its job appear in one commit.

SQLite before 3.51.3 can corrupt a file in WAL mode when two connections write and checkpoint at
once, so those versions use a rollback journal that is truncated and fully synchronised.
"""

from __future__ import annotations

import fcntl
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    DateTime,
    Engine,
    Enum,
    ForeignKey,
    Integer,
    String,
    bindparam,
    create_engine,
    event,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, column_property, mapped_column
from sqlalchemy.types import TypeDecorator

from acorn_svc.errors import Unavailable
from acorn_svc.store.migrations import upgrade

SAFE_WAL = (3, 51, 3)
BUSY_SECONDS = 30
UPGRADE_SECONDS = 600
LOOK_SECONDS = 0.1
PLAIN_TEXT: Final = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$"
"""No control characters but tabs and line ends: PostgreSQL takes no NUL, and people see none of the rest."""
# Numbers of PostgreSQL's advisory locks, which are Acorn's own.
WRITE_LOCK, UPGRADE_LOCK = 0xAC024, 0xAC025


class Status(StrEnum):
    """Where a scene stands; which changes are allowed is said in `jobs.life`."""

    QUEUED = "queued"
    FITTING = "fitting"
    PAUSED = "paused"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite drops the time zone, so it is put back on reading."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """UTC without a time zone."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """UTC with its time zone."""
        return None if value is None else value.replace(tzinfo=UTC)


class Role(StrEnum):
    """What a file is to its scene."""

    ORIGINAL = "original"
    SNAPSHOT = "snapshot"
    CHECKPOINT = "checkpoint"


def now() -> datetime:
    """The present moment in UTC."""
    return datetime.now(UTC)


def enumerated(kind: type[StrEnum]) -> Enum:
    """The type of a column that holds members of `kind`, as their texts."""

    def values(members: type[StrEnum]) -> list[str]:
        return [member.value for member in members]

    return Enum(kind, native_enum=False, length=16, values_callable=values)


# 64 bits. SQLite's INTEGER has them, and only rows of that type get their number by themselves.
Number = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """The root of the tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON(none_as_null=True),
        datetime: UtcDateTime,
        Status: enumerated(Status),
        Role: enumerated(Role),
    }


class File(Base):
    """A published file that a scene needs, `key` of `store.blobs`; one that no row names is rubbish.

    Several rows may name the same file: scenes with the same original. Of one scene and role, the file
    with the highest id is the newest.
    """

    __tablename__ = "files"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    scene_id: Mapped[str] = mapped_column(ForeignKey("scenes.id", ondelete="CASCADE"), index=True)
    role: Mapped[Role]
    key: Mapped[str] = mapped_column(index=True)
    bytes: Mapped[int] = mapped_column(Number)


class Scene(Base):
    """One scene: what was uploaded, what people say about it, and how far its fit has come.

    `kind` is "image" or "shape". `width` to `bit_depth` are an image's, in pixels, and null for a shape;
    `shape` is what is known of a shape, as `jobs.inspection.ShapeFacts` has it, and null for an image.
    `owner` is who made it, as `api.callers` writes it, null when nobody had a name; `public` scenes can be
    seen by anybody.
    `run` counts the jobs of this scene: what an old job writes is refused.
    `attempts` counts starts of the fitting process since its last checkpoint. `beats` counts the signs of
    life of the workers that had the job. Those that wait begin by `priority`, the highest first, then
    those that were begun before, then by `queued_at`. `version` counts published snapshots; `snapshot` is
    the key of the newest, null when there is none. `updated_at` changes with the status and with what
    people write, not with progress.
    """

    __tablename__ = "scenes"

    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    kind: Mapped[str] = mapped_column(default="image")
    status: Mapped[Status] = mapped_column(index=True)
    error_code: Mapped[str | None] = mapped_column(default=None)
    error_message: Mapped[str | None] = mapped_column(default=None)

    owner: Mapped[str | None] = mapped_column(String(300), default=None, index=True)
    public: Mapped[bool] = mapped_column(default=False)

    title: Mapped[str | None] = mapped_column(default=None)
    description: Mapped[str | None] = mapped_column(default=None)
    attribution: Mapped[str | None] = mapped_column(default=None)
    rights: Mapped[str | None] = mapped_column(default=None)

    width: Mapped[int | None] = mapped_column(default=None)
    height: Mapped[int | None] = mapped_column(default=None)
    channels: Mapped[int | None] = mapped_column(default=None)
    bit_depth: Mapped[int | None] = mapped_column(default=None)
    shape: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    bytes_original: Mapped[int] = mapped_column(Number)
    format_original: Mapped[str]

    preset: Mapped[str]
    encoder: Mapped[str]
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)

    run: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    beats: Mapped[int] = mapped_column(default=0)
    priority: Mapped[int] = mapped_column(default=0)
    queued_at: Mapped[datetime] = mapped_column(default=now)
    version: Mapped[int] = mapped_column(default=0)
    progress: Mapped[dict[str, Any] | None] = mapped_column(default=None)

    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now)

    snapshot: Mapped[str | None] = column_property(
        select(File.key)
        .where(File.scene_id == id, File.role == Role.SNAPSHOT)
        .order_by(File.id.desc())
        .limit(1)
        .scalar_subquery()
    )

    @hybrid_property
    def begun(self) -> bool:
        """Whether a fit of this scene has ever been started."""
        return (self.attempts + self.version) > 0


class ProgressEvent(Base):
    """How far a fit had come at one moment; the ids give the order in which clients are told."""

    __tablename__ = "progress_events"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    scene_id: Mapped[str] = mapped_column(ForeignKey("scenes.id", ondelete="CASCADE"), index=True)
    data: Mapped[dict[str, Any]]


class Beginning(Base):
    """Since when there is this database; its revisions write the row, and a dump takes it along.

    Where a dump was added to the tables of a new database there are two rows, and the earlier one counts.
    """

    __tablename__ = "beginnings"

    at: Mapped[datetime] = mapped_column(primary_key=True)


class Upload(Base):
    """An upload that arrives in several requests, and what came of it.

    `length` and `received` are in bytes. `labels` is what the client said of it, as it said it, `options`
    what that means for the scene. `digest` is the SHA-256 that the whole is to have, in hexadecimal. Each
    request that appends takes the next `turn`, which becomes negative when it ends and no byte counts yet.
    `owner` is who began it, as for a scene. In the end there is a `scene_id`, or an `error` as the API tells
    it. `updated_at` changes when bytes arrive, and at the end.
    """

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    length: Mapped[int] = mapped_column(Number)
    received: Mapped[int] = mapped_column(Number, default=0)
    turn: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str | None] = mapped_column(String(300), default=None)
    labels: Mapped[str]
    options: Mapped[dict[str, Any]]
    digest: Mapped[str | None] = mapped_column(default=None)
    scene_id: Mapped[str | None] = mapped_column(default=None)
    error: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now, index=True)

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return self.received == self.length

    @property
    def is_finished(self) -> bool:
        """Whether it's known what came of it."""
        return self.scene_id is not None or self.error is not None


@dataclass(frozen=True)
class SceneHead:
    """What looking at a scene needs of its row; the names are those of `Scene`."""

    id: str
    status: Status
    version: int
    kind: str
    width: int | None
    height: int | None
    channels: int | None
    rights: str | None
    snapshot: str | None
    public: bool


_HEAD = (
    select(*(getattr(Scene, field.name) for field in fields(SceneHead)))
    .where(Scene.id == bindparam("scene_id"))
    .compile(dialect=sqlite_dialect(paramstyle="named"))
)
HEAD_QUERY: Final = str(_HEAD)


class Glance(ABC):
    """Looks up heads of scenes without ever waiting, where the database allows that."""

    @abstractmethod
    def __call__(self, scene_id: str) -> list[SceneHead]:
        """The scene with this id as it was last committed, or none.

        Raises:
            BlockingIOError: it can't be told without waiting; a session will, or knows what is wrong.
        """

    def close(self) -> None:  # noqa: B027  nothing to close is the usual case
        """Close its connection."""


class NoGlance(Glance):
    """For a database behind a network, where every look takes time."""

    def __call__(self, scene_id: str) -> list[SceneHead]:
        """See Glance."""
        raise BlockingIOError("The database is elsewhere.")


class SqliteGlance(Glance):
    """Looks within microseconds, on a connection of its own.

    A session takes thirty times longer, and one that may wait for a writer has to be in a thread.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA query_only = ON")
        self._parameters = {name: str(value) for name, value in _HEAD.params.items()}

    def __call__(self, scene_id: str) -> list[SceneHead]:
        """See Glance."""
        parameters = self._parameters | {"scene_id": scene_id}
        try:
            with self._lock:
                rows = self._connection.execute(HEAD_QUERY, parameters).fetchall()
        except sqlite3.OperationalError as error:
            raise BlockingIOError("The database is in use.") from error
        return [SceneHead(id, Status(status), *rest) for id, status, *rest in rows]

    def close(self) -> None:
        """See Glance."""
        with self._lock:
            self._connection.close()


class Database(ABC):
    """The tables behind short transactions."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        with self.upgrading():
            self._upgrade()
        self.glance = self._new_glance()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads; what it returns stays usable afterwards."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that holds the write lock from its start, so that what it read still holds.

        Commits at the end, rolls back on any exception.
        """
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            self._lock(session)
            yield session

    def close(self) -> None:
        """Close every connection."""
        self.glance.close()
        self.engine.dispose()

    @abstractmethod
    def upgrading(self) -> AbstractContextManager[None]:
        """One process at a time may change tables; others wait here until it has."""

    @abstractmethod
    def _upgrade(self) -> None: ...

    @abstractmethod
    def _new_glance(self) -> Glance: ...

    @abstractmethod
    def _lock(self, session: Session) -> None: ...


class SqliteDatabase(Database):
    """One file, durable and safe for several processes of one machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        engine = create_engine(f"sqlite:///{path}", pool_size=5, max_overflow=20)
        event.listen(engine, "connect", _prepare)
        super().__init__(engine)

    @contextmanager
    def upgrading(self) -> Iterator[None]:
        """See Database. A file is locked, for the upgrade may use several connections."""
        with self._path.with_suffix(".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _upgrade(self) -> None:
        with self.engine.connect() as connection:
            # Within a transaction this pragma does nothing, and copying a table would drop its events.
            connection.execute(text("PRAGMA foreign_keys = OFF"))
            connection.commit()
            connection.execute(text("BEGIN IMMEDIATE"))
            upgrade(connection)
            connection.commit()
            connection.execute(text("PRAGMA foreign_keys = ON"))
            connection.commit()

    def _new_glance(self) -> Glance:
        return SqliteGlance(str(self._path))

    def _lock(self, session: Session) -> None:
        session.execute(text("BEGIN IMMEDIATE"))


def _prepare(connection: sqlite3.Connection, _record: object) -> None:
    # DBOS shares this engine and begins its own transactions in the driver's way.
    connection.isolation_level = "IMMEDIATE"
    journal = "WAL" if sqlite3.sqlite_version_info >= SAFE_WAL else "TRUNCATE"
    connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


class PostgresDatabase(Database):
    """A PostgreSQL database, which any number of machines may share.

    Writers take turns, as they do in SQLite: an advisory lock is their write lock. Their transactions
    are short, and what they read still holds without a thought for isolation levels.
    """

    def __init__(self, url: str) -> None:
        options = f"-c lock_timeout={BUSY_SECONDS}s"
        engine = create_engine(
            make_url(url).set(drivername="postgresql+psycopg"),
            pool_size=5,
            max_overflow=20,
            pool_pre_ping=True,
            connect_args={"options": options, "connect_timeout": BUSY_SECONDS},
        )
        super().__init__(engine)

    @contextmanager
    def upgrading(self) -> Iterator[None]:
        """See Database."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            self._wait_for_turn(connection)
            try:
                yield
            finally:
                connection.execute(text(f"SELECT pg_advisory_unlock({UPGRADE_LOCK})"))

    def _wait_for_turn(self, connection: Connection) -> None:
        """Take the lock by asking again and again.

        A statement that waits for it would be waited for by those of the upgrade that make an index while
        others write (`CREATE INDEX CONCURRENTLY`), for ever.
        """
        ask = text(f"SELECT pg_try_advisory_lock({UPGRADE_LOCK})")
        end = time.monotonic() + UPGRADE_SECONDS
        while not connection.scalar(ask):
            if time.monotonic() > end:
                raise Unavailable("Another process has been upgrading the database for too long.")
            time.sleep(LOOK_SECONDS)

    def _upgrade(self) -> None:
        with self.engine.begin() as connection:
            upgrade(connection)

    def _new_glance(self) -> Glance:
        return NoGlance()

    def _lock(self, session: Session) -> None:
        session.execute(text(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})"))


def open_database(url: str, path: Path) -> Database:
    """The database at `url`, or the SQLite file `path` when it is empty.

    Raises:
        Conflict: a later version of Acorn has used it.
    """
    return PostgresDatabase(url) if url else SqliteDatabase(path)
