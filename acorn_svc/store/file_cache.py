"""Copies of remote files, bounded in bytes; any number of processes may share the folder."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path


class FileCache:
    """Files by key in `folder`, at most `capacity` bytes; those not used for longest go first.

    A file that is larger than the capacity is kept until the next one comes.
    """

    def __init__(self, folder: Path, capacity: int) -> None:
        self._folder = folder
        self._capacity = capacity
        self._fetching = threading.Lock()

    def get(self, key: str, fetch: Callable[[Path], None]) -> Path:
        """The file of `key`; `fetch` writes it to the path it is given, when it isn't here yet."""
        path = self._folder / key
        if self._use(path):
            return path
        with self._fetching:  # those who want the same file at once fetch it once
            if not self._use(path):
                self._fetch(path, fetch)
        return path

    def _use(self, path: Path) -> bool:
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _fetch(self, path: Path, fetch: Callable[[Path], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.parent / f".{secrets.token_hex(16)}"
        try:
            fetch(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self._trim(path)

    def _trim(self, newest: Path) -> None:
        """Remove files until the rest fits; pieces left by a process that died count as files."""
        found = sorted(self._files())
        used = sum(size for _, size, _ in found)
        for _, size, path in found:
            if used <= self._capacity:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                used -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        for parent, _, names in os.walk(self._folder):
            for name in names:
                path = Path(parent, name)
                with suppress(FileNotFoundError):
                    facts = path.stat()
                    yield facts.st_mtime, facts.st_size, path
