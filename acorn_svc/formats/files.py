"""Whole files: read under a limit, replaced at once."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from acorn_svc.errors import TooManyBytes

Buffer = bytes | bytearray | memoryview


def read_bytes(path: Path, max_bytes: int, limit: str) -> bytearray:
    """The content of `path`, in memory of its own; `limit` is the name of `max_bytes`.

    Never mapped: the process dies when a mapped file shrinks.

    Raises:
        TooManyBytes: the file is larger than `max_bytes`.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            message = f"The file has {size} bytes; at most {max_bytes} are allowed."
            raise TooManyBytes(message, limit=limit, value=max_bytes)
        content = bytearray(size)
        del content[file.readinto(content) :]
        return content


def replace_file(path: Path, parts: Iterable[Buffer]) -> None:
    """Writes `parts` to `path` so that a crash leaves the old file or the new one, never a piece.

    Raises:
        OSError: the disk is full, or the folder cannot be written; `path` is then as it was.
    """
    prefix = f".{path.name}."
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
