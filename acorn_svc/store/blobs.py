"""Published files: there whole or not at all, and never changed.

A file is written in the spool and then published under a key. A key stands for one content for ever:
it holds the content's digest, or a random part. So publishing may be repeated, two who publish the
same key cannot harm each other, and nobody ever overwrites what another one has published.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from acorn_svc.errors import InsufficientStorage, Unavailable
from acorn_svc.store.file_cache import FileCache

if TYPE_CHECKING:
    from obstore.store import RetryConfig

SPOOL = "spool"
RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=15)}


@dataclass(frozen=True)
class Blob:
    """A published file: its key, its size in bytes, and the seconds since it was written."""

    key: str
    bytes: int
    age: float


class Blobs(ABC):
    """Published files under keys made by the server, such as `originals/<digest>`, and the spool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / SPOOL).mkdir(parents=True, exist_ok=True)

    @property
    def spool(self) -> Path:
        """The folder for files that are not published yet."""
        return self.folder / SPOOL

    def spool_file(self) -> Path:
        """A new name in the spool; nobody else has it."""
        return self.spool / secrets.token_hex(16)

    @contextmanager
    def spool_folder(self) -> Iterator[Path]:
        """A new folder in the spool; it is gone afterwards, with what was not published."""
        with tempfile.TemporaryDirectory(dir=self.spool, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def sweep_spool(self, age: float) -> None:
        """Remove what nobody has written to for `age` seconds: whoever began it has died."""
        for leftover in self.spool.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - _last_written(leftover) < age:
                    continue
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink()

    def require_room(self, size: int, keep_free: int) -> None:
        """Raise InsufficientStorage when `size` more bytes leave less than `keep_free` bytes."""
        if shutil.disk_usage(self.folder).free - size < keep_free:
            raise InsufficientStorage(
                "There isn't enough free disk space left for this upload.",
                limit="min_free_disk_bytes",
                value=keep_free,
            )

    @abstractmethod
    def publish(self, source: Path, key: str) -> None:
        """Keep the content of `source`, a file of the spool, under `key`; durable when this returns.

        `source` stays where it is, and must not be changed any more. When there is something under
        `key` already, it is the same, and stays.
        """

    @abstractmethod
    def has(self, key: str) -> bool:
        """Whether there is a published file `key`."""

    @abstractmethod
    def local(self, key: str) -> Path:
        """A file of this machine with the content of `key`, only to be read.

        Raises:
            FileNotFoundError: there is no `key`.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove one published file; nothing happens when there is none."""

    @abstractmethod
    def listing(self) -> Iterator[Blob]:
        """Every published file."""


class FolderBlobs(Blobs):
    """Published files in a folder of this machine, on the same disk as the spool."""

    def publish(self, source: Path, key: str) -> None:
        """See Blobs: first the bytes are on the disk, then they get their name, then the folder is."""
        synchronise(source)
        source.chmod(0o444)
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.hardlink_to(source)
        for folder in path.parents:
            synchronise(folder)
            if folder == self.folder:
                return

    def has(self, key: str) -> bool:
        """See Blobs."""
        return (self.folder / key).exists()

    def local(self, key: str) -> Path:
        """See Blobs: the published file itself."""
        path = self.folder / key
        path.stat()
        return path

    def delete(self, key: str) -> None:
        """See Blobs."""
        path = self.folder / key
        path.unlink(missing_ok=True)
        if len(path.relative_to(self.folder).parts) > 2:  # version 0.1 had a folder for each scene
            with suppress(OSError):
                path.parent.rmdir()

    def listing(self) -> Iterator[Blob]:
        """See Blobs."""
        for parent, folders, names in os.walk(self.folder):
            if Path(parent) == self.folder:
                folders.remove(SPOOL)
            for name in names:
                path = Path(parent, name)
                with suppress(FileNotFoundError):
                    facts = path.stat()
                    key = path.relative_to(self.folder).as_posix()
                    yield Blob(key, facts.st_size, time.time() - facts.st_mtime)


class RemoteBlobs(Blobs):
    """Published files in an object store, such as S3; those in use are also in a cache on this machine.

    Credentials and regions come from the environment, as obstore reads them. Everything raises
    Unavailable when the store cannot be reached.
    """

    def __init__(self, folder: Path, url: str, cache: FileCache) -> None:
        super().__init__(folder)
        self._store = from_url(url, retry_config=RETRIES)
        self._cache = cache

    def publish(self, source: Path, key: str) -> None:
        """See Blobs: object stores show a file when it has arrived as a whole."""
        if not self.has(key):
            with _answering():
                obstore.put(self._store, key, source)

    def has(self, key: str) -> bool:
        """See Blobs."""
        with _answering(), suppress(FileNotFoundError):
            obstore.head(self._store, key)
            return True
        return False

    def local(self, key: str) -> Path:
        """See Blobs: a copy in the cache; whoever opens it at once will find it there."""
        return self._cache.get(key, lambda path: self._download(key, path))

    def _download(self, key: str, path: Path) -> None:
        with _answering(), path.open("wb") as file:
            for chunk in obstore.get(self._store, key).stream():
                file.write(chunk)

    def delete(self, key: str) -> None:
        """See Blobs."""
        with _answering(), suppress(FileNotFoundError):
            obstore.delete(self._store, key)

    def listing(self) -> Iterator[Blob]:
        """See Blobs."""
        now = datetime.now(UTC)
        with _answering():
            for batch in obstore.list(self._store):
                for item in batch:
                    yield Blob(item["path"], item["size"], (now - item["last_modified"]).total_seconds())


@contextmanager
def _answering() -> Iterator[None]:
    """Raises Unavailable when the object store doesn't answer, or refuses to."""
    try:
        yield
    except BaseError as error:
        raise Unavailable("The object store doesn't do what it should; try again.") from error


def _last_written(path: Path) -> float:
    inside = path.rglob("*") if path.is_dir() else ()
    return max(float(one.stat().st_mtime) for one in (path, *inside))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def synchronise(path: Path) -> None:
    """Wait until the file, or the list of names in the folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
