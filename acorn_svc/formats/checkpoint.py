"""The state of a fit as a file, so that it goes on where it stopped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acorn_svc.errors import Conflict
from acorn_svc.formats import envelope
from acorn_svc.formats.files import read_bytes, replace_file
from acorn_svc.training.state import FitState

KEY = "acorn-fit"
MAX_STATE_BYTES = 1 << 36
MAX_STATE_HEADER_BYTES = 1 << 24


def write_state(path: Path, state: FitState) -> None:
    """Replaces `path` at once and for good: after a crash it holds this state or the one before.

    Raises:
        OSError: it cannot be written; `path` is then as it was.
    """
    replace_file(path, envelope.pack(KEY, state.meta, state.arrays))


def read_state(path: Path, max_bytes: int = MAX_STATE_BYTES) -> FitState:
    """The state in `path`, checked against its digest.

    Raises:
        BadModel: the file is cut, damaged or not a checkpoint.
        TooManyBytes: it is larger than `max_bytes`.
        OSError: it cannot be read.
    """
    content = read_bytes(path, max_bytes, "max_state_bytes")
    meta, arrays = envelope.unpack(content, KEY, max_header_bytes=MAX_STATE_HEADER_BYTES)
    return FitState(arrays=arrays, meta=meta)


class Checkpoint:
    """A file that a fit goes on from, tied to what it fits: the arrays of an image or a mesh."""

    def __init__(self, path: Path, *arrays: NDArray[np.generic]) -> None:
        self._path = path
        self._original = _digest(arrays)
        self._written = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since it was written, or since there was nothing to write."""
        return time.monotonic() - self._written

    def exists(self) -> bool:
        """Whether there is a file, good or not."""
        return self._path.exists()

    def write(self, state: FitState) -> None:
        """Replaces the file. Raises as `write_state`."""
        meta = {"original": self._original, "state": state.meta}
        write_state(self._path, FitState(state.arrays, meta))
        self._written = time.monotonic()

    def read(self) -> FitState | None:
        """What was written last, if anything was.

        Raises:
            BadModel: the file is damaged.
            Conflict: it belongs to another original.
        """
        if not self.exists():
            return None
        stored = read_state(self._path)
        if stored.meta.get("original") != self._original:
            raise Conflict("The checkpoint belongs to another original.")
        return FitState(stored.arrays, stored.meta["state"])

    def remove(self) -> None:
        """Removes the file: the fit is done."""
        self._path.unlink(missing_ok=True)


def _digest(arrays: Iterable[NDArray[np.generic]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
