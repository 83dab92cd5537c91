"""The database: its tables, and transactions that survive a crash at any moment.

SQLite before 3.51.3 can corrupt a file in WAL mode when two connections write and checkpoint at
once, so those versions use a rollback journal that is truncated and fully synchronised. The tables
of the job queue (DBOS) live in the same file, so that a scene and its job appear in one commit.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final

from sqlalchemy import (
    JSON,
    Connection,
    DateTime,
    Engine,
    Enum,
    ForeignKey,
    String,
    bindparam,
    create_engine,
    event,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.types import TypeDecorator

SAFE_WAL = (3, 51, 3)


class Status(StrEnum):
    """Where a scene stands; which changes are allowed is said in `jobs.life`."""

    QUEUED = "queued"
    FITTING = "fitting"
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


def now() -> datetime:
    """The present moment in UTC."""
    return datetime.now(UTC)


def _values(status: type[Status]) -> list[str]:
    return [member.value for member in status]


class Base(DeclarativeBase):
    """The root of the tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON(none_as_null=True),
        datetime: UtcDateTime,
        Status: Enum(Status, native_enum=False, length=16, values_callable=_values),
    }


class Scene(Base):
    """One scene: what was uploaded, what people say about it, and how far its fit has come.

    `kind` is "image" or "shape". `width` to `bit_depth` are an image's, in pixels, and null for a shape;
    `shape` is what is known of a shape, as `jobs.inspection.ShapeFacts` has it, and null for an image.
    `run` counts the jobs of this scene: what an old job writes is refused.
    `attempts` counts starts of the fitting process since its last checkpoint. `version` is the
    newest published snapshot, 0 when there is none. `updated_at` changes with the status and
    with what people write, not with progress.
    """

    __tablename__ = "scenes"

    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    kind: Mapped[str] = mapped_column(default="image")
    status: Mapped[Status] = mapped_column(index=True)
    error_code: Mapped[str | None] = mapped_column(default=None)
    error_message: Mapped[str | None] = mapped_column(default=None)

    title: Mapped[str | None] = mapped_column(default=None)
    description: Mapped[str | None] = mapped_column(default=None)
    attribution: Mapped[str | None] = mapped_column(default=None)
    rights: Mapped[str | None] = mapped_column(default=None)

    width: Mapped[int | None] = mapped_column(default=None)
    height: Mapped[int | None] = mapped_column(default=None)
    channels: Mapped[int | None] = mapped_column(default=None)
    bit_depth: Mapped[int | None] = mapped_column(default=None)
    shape: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    bytes_original: Mapped[int]
    format_original: Mapped[str]

    preset: Mapped[str]
    encoder: Mapped[str]
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)

    run: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column(default=0)
    progress: Mapped[dict[str, Any] | None] = mapped_column(default=None)

    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now)


class ProgressEvent(Base):
    """How far a fit had come at one moment; the ids give the order in which clients are told."""

    __tablename__ = "progress_events"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    scene_id: Mapped[str] = mapped_column(ForeignKey("scenes.id", ondelete="CASCADE"), index=True)
    data: Mapped[dict[str, Any]]


def open_engine(path: Path) -> Engine:
    """An engine on the SQLite file `path`, durable and safe for several processes."""
    engine = create_engine(f"sqlite:///{path}", pool_size=5, max_overflow=20)
    event.listen(engine, "connect", _prepare)
    return engine


def _prepare(connection: sqlite3.Connection, _record: object) -> None:
    # DBOS shares this engine and begins its own transactions in the driver's way.
    connection.isolation_level = "IMMEDIATE"
    journal = "WAL" if sqlite3.sqlite_version_info >= SAFE_WAL else "TRUNCATE"
    connection.execute("PRAGMA busy_timeout = 30000")
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _bring_up_to_date(connection: Connection) -> None:
    """Rebuild the table of scenes of version 0.1, which knew only images; a second call does nothing.

    SQLite cannot let a column become null, so the rows move to a new table of the same name.
    """
    present = {column["name"] for column in inspect(connection).get_columns(Scene.__tablename__)}
    if Scene.shape.key in present:
        return
    table, old, columns = Scene.__tablename__, "scenes_0_1", ", ".join(sorted(present))
    # Else the events would refer to the old table, and go with it.
    connection.execute(text("PRAGMA legacy_alter_table = ON"))
    connection.execute(text(f"ALTER TABLE {table} RENAME TO {old}"))
    connection.execute(text("DROP INDEX IF EXISTS ix_scenes_status"))
    Scene.metadata.tables[table].create(connection)
    connection.execute(text(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {old}"))
    connection.execute(text(f"DROP TABLE {old}"))
    connection.execute(text("PRAGMA legacy_alter_table = OFF"))


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


_HEAD_COLUMNS = [Scene.__table__.c[field.name] for field in fields(SceneHead)]
HEAD_QUERY: Final = str(
    select(*_HEAD_COLUMNS).where(Scene.id == bindparam("id")).compile(dialect=sqlite_dialect())
)


class Glance:
    """Looks up heads of scenes within microseconds, on a connection of its own that never waits.

    A session takes thirty times longer, and one that may wait for a writer has to be in a thread.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA query_only = ON")

    def __call__(self, scene_id: str) -> list[SceneHead]:
        """The scene with this id as it was last committed, or none.

        Raises:
            BlockingIOError: it can't be told without waiting; a session will, or knows what is wrong.
        """
        try:
            with self._lock:
                rows = self._connection.execute(HEAD_QUERY, (scene_id,)).fetchall()
        except sqlite3.OperationalError as error:
            raise BlockingIOError("The database is in use.") from error
        return [SceneHead(id, Status(status), *rest) for id, status, *rest in rows]

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()


class Database:
    """The tables behind short transactions."""

    def __init__(self, path: Path) -> None:
        self.engine = open_engine(path)
        Base.metadata.create_all(self.engine)
        self._upgrade()
        self.glance = Glance(path)

    def _upgrade(self) -> None:
        with self.engine.connect() as connection:
            # Within a transaction this pragma does nothing, and dropping a table would drop its events.
            connection.execute(text("PRAGMA foreign_keys = OFF"))
            connection.commit()
            connection.execute(text("BEGIN IMMEDIATE"))
            _bring_up_to_date(connection)
            connection.commit()
            connection.execute(text("PRAGMA foreign_keys = ON"))
            connection.commit()

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
            session.execute(text("BEGIN IMMEDIATE"))
            yield session

    def close(self) -> None:
        """Close every connection."""
        self.glance.close()
        self.engine.dispose()
