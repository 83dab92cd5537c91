"""API keys, and the secret that signs links and sessions.

A key is shown once, when it is made; what is kept is its SHA-256. A key has 256 random bits, so that its
digest cannot be guessed from, and needs no slow hash as a password does. It is looked up by that digest:
how long a wrong key takes says nothing about a right one.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from sqlalchemy import LargeBinary, String, func, or_, select
from sqlalchemy.orm import Mapped, mapped_column

from acorn_svc.errors import Conflict, LimitExceeded, NotFound
from acorn_svc.store.database import Base, Database, enumerated, now
from acorn_svc.store.scenes import ALPHABET, is_id

ID_CHARACTERS: Final = 12
SECRET_CHARACTERS: Final = 52
SECRET_BYTES: Final = 32
USED_EVERY: Final = timedelta(hours=1)
SIGNING: Final = "signing"


class Scope(StrEnum):
    """What a key is for; each scope includes those before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def includes(self, other: Scope) -> bool:
        """Whether who has this scope may do what `other` is for."""
        order = list(Scope)
        return order.index(self) >= order.index(other)


class Key(Base):
    """One key: what is known of it, but not the key itself.

    `digest` is the SHA-256 of the key, in hexadecimal. `used_at` is when it was last used, to the hour.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(ID_CHARACTERS), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    scope: Mapped[Scope] = mapped_column(enumerated(Scope))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None] = mapped_column(default=None)
    revoked_at: Mapped[datetime | None] = mapped_column(default=None)
    used_at: Mapped[datetime | None] = mapped_column(default=None)

    @property
    def counts(self) -> bool:
        """Whether the key opens anything at this moment."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now())


class Secret(Base):
    """A secret of the service, by its name."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[bytes] = mapped_column(LargeBinary)


def digest_of(text: str) -> str:
    """What is kept of the key `text`."""
    return hashlib.sha256(text.encode()).hexdigest()


def _random_text(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


class KeyStore:
    """The keys in one database. Safe to use from several threads and processes."""

    def __init__(self, database: Database, limit: int) -> None:
        self._database = database
        self._limit = limit

    def create(self, name: str, scope: Scope, lifetime: timedelta | None = None) -> tuple[Key, str]:
        """A new key, and its text, `acorn_<id>_<secret>`, which is told only now.

        Raises LimitExceeded when too many keys count.
        """
        identity = _random_text(ID_CHARACTERS)
        text = f"acorn_{identity}_{_random_text(SECRET_CHARACTERS)}"
        expires_at = None if lifetime is None else now() + lifetime
        key = Key(id=identity, name=name, scope=scope, digest=digest_of(text), expires_at=expires_at)
        with self._database.write() as session:
            in_time = or_(Key.expires_at.is_(None), Key.expires_at > now())
            counting = select(func.count()).select_from(Key).where(Key.revoked_at.is_(None), in_time)
            if (session.scalar(counting) or 0) >= self._limit:
                message = f"There are {self._limit} keys that count; revoke one first."
                raise LimitExceeded(message, limit="max_keys", value=self._limit)
            session.add(key)
        return key, text

    def all(self) -> Sequence[Key]:
        """Every key there ever was, oldest first."""
        with self._database.read() as session:
            return session.scalars(select(Key).order_by(Key.created_at, Key.id)).all()

    def exist(self) -> bool:
        """Whether a key was ever made: from then on, keys are asked for."""
        with self._database.read() as session:
            return session.scalar(select(Key.id).limit(1)) is not None

    def find(self, digest: str) -> Key | None:
        """The key with this digest, whether it counts or not."""
        with self._database.read() as session:
            return session.scalar(select(Key).where(Key.digest == digest))

    def get(self, key_id: str) -> Key | None:
        """The key with this id, whether it counts or not."""
        with self._database.read() as session:
            return session.get(Key, key_id)

    def note_use(self, key: Key) -> None:
        """Remember that the key is in use, unless it is known already."""
        if key.used_at is not None and now() - key.used_at < USED_EVERY:
            return
        with self._database.write() as session:
            stored = session.get(Key, key.id)
            if stored is not None:
                stored.used_at = key.used_at = now()

    def revoke(self, key_id: str) -> Key:
        """Let the key open nothing any more. Raises NotFound, or Conflict when it was revoked before."""
        with self._database.write() as session:
            key = session.get(Key, key_id) if is_id(key_id, ID_CHARACTERS) else None
            if key is None:
                raise NotFound("There is no key with this id.")
            if key.revoked_at is not None:
                raise Conflict("This key was revoked before.")
            key.revoked_at = now()
            return key

    def signing_secret(self) -> bytes:
        """What links and sessions are signed with; made when it is first asked for."""
        with self._database.read() as session:
            known = session.get(Secret, SIGNING)
        return known.value if known is not None else self._first_signing_secret()

    def _first_signing_secret(self) -> bytes:
        with self._database.write() as session:
            known = session.get(Secret, SIGNING)  # another process may have been faster
            if known is None:
                known = Secret(name=SIGNING, value=secrets.token_bytes(SECRET_BYTES))
                session.add(known)
            return known.value

    def renew_signing_secret(self) -> bytes:
        """Another secret: what was signed before counts no more."""
        value = secrets.token_bytes(SECRET_BYTES)
        with self._database.write() as session:
            session.merge(Secret(name=SIGNING, value=value))
        return value
