"""Who changed what, and when: the newest entries, in the database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import String, delete, select
from sqlalchemy.orm import Mapped, mapped_column

from acorn_svc.store.database import Base, Database, Number, now


class AuditEntry(Base):
    """One thing that somebody did, or tried to do.

    `caller` is `key:<id>`, `user:<name>` of a proxy, `local` where no key is asked for, or `command line`;
    `name` is what people call it. `action` is a method and the template of an address. `status` is that
    of the answer.
    """

    __tablename__ = "audit"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    at: Mapped[datetime] = mapped_column(default=now)
    caller: Mapped[str] = mapped_column(String(300))
    name: Mapped[str] = mapped_column(String(300))
    action: Mapped[str] = mapped_column(String(300))
    target: Mapped[str | None] = mapped_column(String(300))
    address: Mapped[str | None] = mapped_column(String(64))
    status: Mapped[int]


class AuditLog:
    """The audit log in one database; at most `limit` entries are kept."""

    def __init__(self, database: Database, limit: int) -> None:
        self._database = database
        self._limit = limit

    def add(self, entry: AuditEntry) -> None:
        """Keep `entry`, and drop the oldest one where there are too many."""
        with self._database.write() as session:
            session.add(entry)
            session.flush()
            session.execute(delete(AuditEntry).where(AuditEntry.id <= entry.id - self._limit))

    def newest(self, limit: int, before: int | None = None) -> Sequence[AuditEntry]:
        """At most `limit` entries, newest first; those before the entry `before`."""
        query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
        if before is not None:
            query = query.where(AuditEntry.id < before)
        with self._database.read() as session:
            return session.scalars(query).all()
