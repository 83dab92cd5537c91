"""Files that appear whole or not at all.

A file is written in the spool, which lies on the same disk, and then moved to its name: before that
its bytes are on the disk, afterwards the folder is. A published file never changes.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import obstore
from obstore.store import LocalStore

from acorn_svc.errors import InsufficientStorage

SPOOL = "spool"


class Blobs:
    """Published files under keys such as `scenes/<id>/original`, in one local folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / SPOOL).mkdir(parents=True, exist_ok=True)
        self._store = LocalStore(prefix=folder)

    @property
    def spool(self) -> Path:
        """The folder for files that are not published yet."""
        return self._folder / SPOOL

    def spool_file(self) -> Path:
        """A new name in the spool; nobody else has it."""
        return self.spool / secrets.token_hex(16)

    def path(self, key: str) -> Path:
        """Where the published file `key` is; `key` is made by the server, never by a client."""
        return self._folder / key

    def publish(self, source: Path, key: str) -> None:
        """Move `source`, a file of the spool, to `key`; durable when this returns.

        Publishing the same key again replaces the file in one step.
        """
        _synchronise(source)
        source.chmod(0o444)
        obstore.rename(self._store, str(source.relative_to(self._folder)), key)
        for folder in self.path(key).parents:
            _synchronise(folder)
            if folder == self._folder:
                return

    def delete(self, key: str) -> None:
        """Remove one published file; nothing happens when there is none."""
        self.path(key).unlink(missing_ok=True)

    def delete_folder(self, prefix: str) -> None:
        """Remove every file under `prefix`, and the folder."""
        shutil.rmtree(self.path(prefix), ignore_errors=True)

    def folders(self, prefix: str) -> list[str]:
        """The names of the folders under `prefix`."""
        parent = self.path(prefix)
        return sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []

    def empty_spool(self) -> None:
        """Remove what an earlier process left behind; only while nobody writes."""
        for leftover in self.spool.iterdir():
            leftover.unlink()

    def require_room(self, size: int, keep_free: int) -> None:
        """Raise InsufficientStorage when `size` more bytes leave less than `keep_free` bytes."""
        if shutil.disk_usage(self._folder).free - size < keep_free:
            raise InsufficientStorage(
                "There isn't enough free disk space left for this upload.",
                limit="min_free_disk_bytes",
                value=keep_free,
            )


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
