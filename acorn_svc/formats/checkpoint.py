"""The state of a fit as a file, so that it goes on where it stopped."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from acorn_svc.errors import Conflict
from acorn_svc.formats import envelope
from acorn_svc.formats.files import read_bytes, replace_file
from acorn_svc.formats.images import Pixels
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
    content = read_bytes(path, max_bytes)
    meta, arrays = envelope.unpack(content, KEY, max_header_bytes=MAX_STATE_HEADER_BYTES)
    return FitState(arrays=arrays, meta=meta)


class Checkpoint:
    """A file that a fit goes on from, tied to the image that it fits."""

    def __init__(self, path: Path, pixels: Pixels) -> None:
        self._path = path
        self._image = _digest(pixels)
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
        meta = {"image": self._image, "state": state.meta}
        write_state(self._path, FitState(state.arrays, meta))
        self._written = time.monotonic()

    def read(self) -> FitState | None:
        """What was written last, if anything was.

        Raises:
            BadModel: the file is damaged.
            Conflict: it belongs to another image.
        """
        if not self.exists():
            return None
        stored = read_state(self._path)
        if stored.meta.get("image") != self._image:
            raise Conflict("The checkpoint belongs to another image.")
        return FitState(stored.arrays, stored.meta["state"])

    def remove(self) -> None:
        """Removes the file: the fit is done."""
        self._path.unlink(missing_ok=True)


def _digest(pixels: Pixels) -> str:
    description = f"{pixels.shape} {pixels.dtype}".encode()
    return hashlib.sha256(description + pixels.tobytes()).hexdigest()
