"""Uploads that arrive in several requests: how much of each has come, and what came of the whole.

    <data>/uploads/<id>   the bytes of an upload until it is finished
    uploads, a table      how many of them count, then the scene or the error that came of them

A byte counts once it is on the disk and a committed row says so. Of several requests that append to
one upload only the newest may: each takes the next turn, and whoever finds that the turn has passed on
gives up. It is taken only at the end of all that has come, so that no request that brings something is
disturbed by one that knows less. The lock of the file keeps apart single steps, in every process, and goes
with its holder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final
from weakref import WeakValueDictionary

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from acorn_svc.errors import (
    BadInput,
    BadRequest,
    Conflict,
    DigestMismatch,
    InsufficientStorage,
    NotFound,
    TooManyRequests,
    Unavailable,
    WrongOffset,
)
from acorn_svc.store import promises
from acorn_svc.store.blobs import sha256_of, synchronise
from acorn_svc.store.database import Scene, Upload, now
from acorn_svc.store.scenes import Collected, SceneStore, is_id, new_id

__all__ = ["Upload", "UploadStore", "Writer"]

KEEP_BYTES: Final = 4 * 1024 * 1024
"""Often enough that, with what is on its way meanwhile, a crash costs 8 MiB at most."""
KEEP_SECONDS: Final = 1.0
"""Often enough that what a slow client sent counts when another one takes its turn."""
TOO_MANY_SECONDS: Final = 60
OWNERS: Final = 4
"""One owner may take this part of what unfinished uploads may take together."""
STEP_SECONDS: Final = 2
LOOK_SECONDS: Final = 0.02

Also = Callable[[Session, Scene], object]
Make = Callable[[Upload, Path, str, Also], object]


class UploadStore:
    """The uploads beside the scenes of one data folder. Safe to use from several threads and processes."""

    def __init__(self, scenes: SceneStore) -> None:
        settings = scenes.settings
        self._scenes = scenes
        self._database = scenes.database
        self._blobs = scenes.blobs
        self._settings = settings
        self._folder = settings.data / "uploads"
        self._folder.mkdir(exist_ok=True)
        self._writers: WeakValueDictionary[str, Writer] = WeakValueDictionary()

    def create(
        self,
        length: int,
        labels: str,
        options: dict[str, Any],
        digest: str | None,
        owner: str | None = None,
    ) -> Upload:
        """A new upload of `length` bytes; `digest` is the SHA-256 that it is to have, in hexadecimal.

        Raises TooManyRequests when too much is the `owner`'s, and Unavailable or InsufficientStorage when
        there are too many, or no room is left.
        """
        upload = Upload(
            id=new_id(), length=length, labels=labels, options=options, digest=digest, owner=owner
        )
        self._scenes.require_room(length)
        with self._database.write() as session:
            self._require_room(session, length, owner)
            session.add(upload)
        return upload

    def get(self, upload_id: str) -> Upload:
        """The upload; raises NotFound when there is none, or none any more."""
        with self._database.read() as session:
            return self._require(session, upload_id)

    def expires_at(self, upload: Upload) -> datetime:
        """When the upload is forgotten unless more arrives."""
        return promises.expires_at(upload, self._settings)

    def delete(self, upload_id: str) -> None:
        """Forget the upload and remove its bytes; a scene that came of it stays. Raises NotFound."""
        with self._database.write() as session:
            session.delete(self._require(session, upload_id))
        self._path(upload_id).unlink(missing_ok=True)

    def settle(self, upload_id: str) -> None:
        """Let all count that a request has brought until now; one to another process is left alone."""
        writer = self._writers.get(upload_id)
        if writer is not None:
            with suppress(Conflict, NotFound, Unavailable):
                writer.settle()

    def take_over(self, upload_id: str, offset: int, *, as_a_whole: bool = False) -> Writer:
        """Append from `offset` on, which must be where the upload stands; earlier requests lose this right.

        What is appended `as_a_whole` counts when all of it is there, by `Writer.keep`, or not at all.

        Raises NotFound, and WrongOffset.
        """
        self.settle(upload_id)
        with self._database.write() as session:
            upload = self._require(session, upload_id)
            if upload.received != offset:
                at = upload.received
                raise WrongOffset(f"The upload goes on at byte {at}.", offset=at)
            upload.turn = _next_turn(upload)
        writer = Writer(self, upload, partial(self._open, upload_id), as_a_whole=as_a_whole)
        self._writers[upload_id] = writer
        return writer

    def finish(self, upload_id: str, sha256: str | None, make: Make) -> Upload:
        """Let `make(upload, file, sha256, also)` make a scene of the whole, once and never again.

        `make` publishes `file`, a file of the spool, and calls `also` in the transaction that adds the scene.
        `sha256` is computed here unless it is known. What BadInput says of the upload is kept, and its
        bytes aren't; after any other error finishing can be tried again.

        Raises NotFound, Unavailable while another request does the same, and what `make` raises.
        """
        upload = self.get(upload_id)
        if upload.is_finished:
            return upload
        with self._alone(upload_id):
            upload = self._close(upload_id)
            if not upload.is_finished:
                try:
                    self._make(upload, sha256, make)
                except BadInput as error:
                    self._note_error(upload_id, error)
                    raise
                finally:
                    self._remove_if_done(upload_id)
        return self.get(upload_id)

    def left_over(self) -> Sequence[str]:
        """Uploads that arrived as a whole, but nothing came of them yet: somebody has to finish them."""
        query = select(Upload.id).where(promises.unfinished(), Upload.received == Upload.length)
        with self._database.read() as session:
            return session.scalars(query).all()

    def sweep(self) -> Collected:
        """Remove what has expired, and bytes that belong to no unfinished upload. Safe at any time."""
        # Files first: a row is there before its file is.
        found = dict(self._files())
        with self._database.write() as session:
            session.execute(delete(Upload).where(~promises.current(self._settings)))
            newest = select(Upload.id).where(~promises.unfinished()).order_by(Upload.updated_at.desc())
            surplus = session.scalars(newest.offset(self._settings.max_unfinished_uploads)).all()
            session.execute(delete(Upload).where(Upload.id.in_(surplus)))
            kept = set(session.scalars(select(Upload.id).where(promises.unfinished())))
        rubbish = found.keys() - kept
        for name in rubbish:
            self._path(name).unlink(missing_ok=True)
        return Collected(len(rubbish), sum(found[name] for name in rubbish))

    # Steps of a writer

    def require_turn(self, held: Upload) -> None:
        """Raise NotFound or Conflict unless the upload is there, and it's still the turn of `held`."""
        with self._database.read() as session:
            _require_turn(self._require(session, held.id), held)

    def require_room(self, size: int) -> None:
        """Raise InsufficientStorage unless `size` bytes of those that were promised room still find it."""
        self._blobs.require_room(size, self._settings.min_free_disk_bytes)

    def note_received(self, held: Upload, received: int) -> None:
        """Let the first `received` bytes count; raises as `require_turn` does."""
        with self._database.write() as session:
            upload = self._require(session, held.id)
            _require_turn(upload, held)
            upload.received, upload.updated_at = received, now()

    def note_unsent(self, held: Upload) -> None:
        """No byte counts, and `held` sends no more: unless somebody else does, nobody has begun to."""
        with self._database.write() as session:
            upload = session.get(Upload, held.id)
            if upload is not None and upload.turn == held.turn and upload.received == 0:
                upload.turn = -upload.turn

    # Within

    def _path(self, upload_id: str) -> Path:
        return self._folder / upload_id

    def _open(self, upload_id: str, access: int = os.O_RDWR) -> int:
        path = self._path(upload_id)
        is_new = not path.exists()
        file = os.open(path, access | os.O_CREAT, 0o644)
        if is_new:
            synchronise(self._folder)
        return file

    def _files(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of each file."""
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                yield path.name, path.stat().st_size

    def _require(self, session: Session, upload_id: str) -> Upload:
        # Its bytes go when it is finished, and that may be just between a look at its row and one at them.
        upload = self._find(session, upload_id) or self._find(session, upload_id)
        if upload is None:
            raise NotFound("There is no upload with this id, or it has expired.")
        return upload

    def _find(self, session: Session, upload_id: str) -> Upload | None:
        upload = session.get(Upload, upload_id, populate_existing=True) if is_id(upload_id) else None
        if upload is None or promises.has_expired(upload, self._settings) or not self._has_bytes(upload):
            return None
        return upload

    def _has_bytes(self, upload: Upload) -> bool:
        """Whether what arrived is still there; a backup, for example, doesn't hold it."""
        if upload.is_finished or upload.received == 0:
            return True
        try:
            return self._path(upload.id).stat().st_size >= upload.received
        except FileNotFoundError:
            return False

    def _require_room(self, session: Session, length: int, owner: str | None) -> None:
        """Raise unless another `length` bytes may be promised room; what others still lack counts."""
        settings = self._settings
        sums = select(func.count(), func.coalesce(func.sum(Upload.length), 0))
        query = sums.where(promises.unfinished(), promises.current(settings))
        if owner is not None:
            count, promised = session.execute(query.where(Upload.owner == owner)).one()
            self._require_share(count, promised + length)
        count, promised = session.execute(query).one()
        if count >= settings.max_unfinished_uploads:
            raise Unavailable(
                "Too many uploads are not finished; try again later.",
                retry_after=TOO_MANY_SECONDS,
                limit="max_unfinished_uploads",
                value=settings.max_unfinished_uploads,
            )
        if promised + length > settings.max_unfinished_bytes:
            raise InsufficientStorage(
                "Uploads that are not finished take too much room together.",
                limit="max_unfinished_bytes",
                value=settings.max_unfinished_bytes,
            )
        missing = promises.missing_bytes(session, settings)
        self._blobs.require_room(missing + length, settings.min_free_disk_bytes)

    def _require_share(self, count: int, promised: int) -> None:
        """Raise TooManyRequests when `count` uploads of one owner, or `promised` bytes, are too many."""
        settings = self._settings
        most = max(settings.max_unfinished_uploads // OWNERS, 1)
        if count >= most:
            raise TooManyRequests(
                f"{most} uploads of yours are not finished; finish one of them first.",
                limit="max_unfinished_uploads",
                value=most,
            )
        most = max(settings.max_unfinished_bytes // OWNERS, settings.max_upload_bytes)
        if promised > most:
            raise TooManyRequests(
                f"Uploads of yours that are not finished may take {most} bytes; finish one of them first.",
                limit="max_unfinished_bytes",
                value=most,
            )

    @contextmanager
    def _alone(self, upload_id: str) -> Iterator[None]:
        """Hold the lock of the upload's file; raises Unavailable when another request has it."""
        # Only to read: what was published once may not be written any more, even if no scene came of it.
        file = self._open(upload_id, os.O_RDONLY)
        try:
            _lock_soon(file)
            yield
        finally:
            os.close(file)

    def _close(self, upload_id: str) -> Upload:
        """Let nobody append any more."""
        with self._database.write() as session:
            upload = self._require(session, upload_id)
            if not upload.is_complete:
                raise Conflict("This upload has not arrived as a whole.")
            upload.turn = _next_turn(upload)
        return upload

    def _make(self, upload: Upload, sha256: str | None, make: Make) -> None:
        path = self._path(upload.id)
        sha256 = sha256 or sha256_of(path)
        if upload.digest not in (None, sha256):
            raise DigestMismatch("The upload doesn't have the digest that was announced.")
        # Another name for the same file: it may be moved, and the upload is still there after a crash.
        link = self._blobs.spool_file()
        os.link(path, link)
        os.utime(link)  # or it would look as if somebody had left it in the spool long ago
        try:
            make(upload, link, sha256, lambda session, scene: self._note_scene(session, upload.id, scene))
        finally:
            link.unlink(missing_ok=True)

    def _note_scene(self, session: Session, upload_id: str, scene: Scene) -> None:
        upload = self._require(session, upload_id)
        upload.scene_id, upload.updated_at = scene.id, now()

    def _note_error(self, upload_id: str, error: BadInput) -> None:
        with self._database.write() as session:
            upload = self._require(session, upload_id)
            upload.updated_at = now()
            upload.error = error.to_json()

    def _remove_if_done(self, upload_id: str) -> None:
        with self._database.read() as session:
            upload = session.get(Upload, upload_id)
        if upload is None or upload.is_finished:
            self._path(upload_id).unlink(missing_ok=True)


class Writer:
    """What one request appends to an upload, as long as no newer one does."""

    def __init__(
        self, store: UploadStore, upload: Upload, open_file: Callable[[], int], *, as_a_whole: bool
    ) -> None:
        self._store = store
        self._upload = upload
        self._open_file = open_file
        self._as_a_whole = as_a_whole
        self._file: int | None = None
        self._kept = self._position = upload.received
        self._kept_at = time.monotonic()
        self._sha256 = hashlib.sha256() if upload.received == 0 else None
        self._step = Lock()  # a newer request lets count what this one has written
        self._is_closed = False

    @property
    def missing(self) -> int:
        """So many bytes are still to come."""
        return self._upload.length - self._position

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the upload up to here, in hexadecimal, if this request wrote all of it."""
        return None if self._sha256 is None else self._sha256.hexdigest()

    def write(self, piece: bytes) -> None:
        """Write on; it counts soon, or after `keep`.

        Raises NotFound or Conflict when it isn't this request's turn any more, Unavailable when another one
        doesn't let go of the file, and, without writing anything, BadRequest for more bytes than are missing
        and InsufficientStorage where others have filled the disk.
        """
        if len(piece) > self.missing:
            raise BadRequest("There are more bytes than Upload-Length says.")
        self._store.require_room(len(piece))
        with self._step:
            with self._locked() as file:
                self._store.require_turn(self._upload)
                _write_all(file, piece, self._position)
            self._position += len(piece)
            if self._sha256 is not None:
                self._sha256.update(piece)
            if self._is_due() and not self._as_a_whole:
                self._keep()

    def keep(self) -> None:
        """Let everything that was written count: it is on the disk when this returns. Raises as `write`."""
        with self._step:
            self._keep()

    def settle(self) -> None:
        """As `keep`, but for what counts as a whole, and what nobody writes any more."""
        with self._step:
            if not (self._as_a_whole or self._is_closed):
                self._keep()

    def close(self) -> None:
        """Let go of the file."""
        with self._step:
            self._is_closed = True
            if self._file is not None:
                os.close(self._file)

    def withdraw(self) -> None:
        """Unless bytes count by now, leave the upload as one that nobody has begun to send."""
        if self._kept == 0:
            self._store.note_unsent(self._upload)

    def _is_due(self) -> bool:
        """Whether so much was written, or so long ago, that it should count."""
        late = time.monotonic() - self._kept_at >= KEEP_SECONDS
        return late or self._position - self._kept >= KEEP_BYTES

    def _keep(self) -> None:
        if self._position == self._kept:
            return
        with self._locked() as file:
            os.fsync(file)
            self._store.note_received(self._upload, self._position)
        self._kept, self._kept_at = self._position, time.monotonic()

    @contextmanager
    def _locked(self) -> Iterator[int]:
        # Whoever checks the whole has the turn as long as the lock: there is nothing to wait for then.
        self._store.require_turn(self._upload)
        if self._file is None:
            self._file = self._open_file()
        _lock_soon(self._file)
        try:
            yield self._file
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


def _lock_soon(file: int) -> None:
    """Lock the file once another one has ended its step; raises Unavailable when that takes longer."""
    end = time.monotonic() + STEP_SECONDS
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise Unavailable("This upload is in the hands of another request.", retry_after=1) from None
        time.sleep(LOOK_SECONDS)


def _next_turn(upload: Upload) -> int:
    return abs(upload.turn) + 1


def _require_turn(upload: Upload, held: Upload) -> None:
    if upload.turn != held.turn:
        raise Conflict("A newer request appends to this upload.")


def _write_all(file: int, piece: bytes, position: int) -> None:
    rest = memoryview(piece)
    while rest:
        written = os.pwrite(file, rest, position)
        rest, position = rest[written:], position + written
