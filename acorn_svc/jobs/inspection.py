"""The check of an upload, done by a short-lived child so that a hostile file hurts nobody else."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from acorn_svc.errors import AcornError, BadInput, LimitExceeded, Unavailable
from acorn_svc.jobs.process import Message, end, spawn
from acorn_svc.settings import Settings

CHILD = "acorn_svc.jobs.child"
# Each thread of these libraries would take memory of its own before there is any work.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1"}
# What libraries do when memory is refused: they give up by these signals.
OUT_OF_MEMORY = (signal.SIGABRT, signal.SIGTRAP, signal.SIGKILL)


@dataclass(frozen=True)
class Inspection:
    """What an upload is.

    Attributes:
        kind: "image" or "shape".
        format: of the file; "acorn" is a field of that kind.
        width, height, channels, bit_depth: of an image, in pixels, as seen.
        shape: of a shape, a JSON object: `vertices` and `faces` (null for a field), `colours` (whether
            there are any), `bounds` (lowest and highest corner, in the units of the mesh) and `repairs`
            (sentences on what was mended).
        encoder, preset, progress: of a field.
    """

    kind: str
    format: str
    width: int | None = None
    height: int | None = None
    channels: int | None = None
    bit_depth: int | None = None
    shape: Message | None = None
    encoder: str | None = None
    preset: str | None = None
    progress: Message | None = None


class Inspector:
    """Checks uploads, at most `max_decodes` at the same time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._places = threading.BoundedSemaphore(settings.max_decodes)

    def inspect(self, path: Path) -> Inspection:
        """Decode the whole file `path` in a child; raises BadInput or a class below it."""
        if not self._places.acquire(timeout=self._settings.decode_wall_seconds):
            raise Unavailable("Too many uploads are being checked; try again later.")
        try:
            return self._inspect(path)
        finally:
            self._places.release()

    def _inspect(self, path: Path) -> Inspection:
        process = spawn(CHILD, "inspect", json.dumps(self._request(path)), environment=ONE_THREAD)
        try:
            answer, timed_out = _listen(process, self._settings.decode_wall_seconds)
        finally:
            end(process)
        if process.returncode != 0:
            raise self._reason(process.returncode, timed_out)
        return _read_answer(json.loads(answer))

    def _request(self, path: Path) -> Message:
        settings = self._settings
        return {
            "path": str(path),
            "memory_bytes": settings.decode_memory_bytes,
            "cpu_seconds": settings.decode_cpu_seconds,
            "limits": file_limits(settings),
        }

    def _reason(self, code: int, timed_out: bool) -> AcornError:
        settings = self._settings
        if timed_out:
            return _too_costly("time", "decode_wall_seconds", settings.decode_wall_seconds)
        if code == -signal.SIGXCPU:
            return _too_costly("time", "decode_cpu_seconds", settings.decode_cpu_seconds)
        if -code in OUT_OF_MEMORY:
            return _too_costly("memory", "decode_memory_bytes", settings.decode_memory_bytes)
        return BadInput("The file cannot be decoded; decoding it ended abnormally.")


def _listen(process: subprocess.Popen[bytes], seconds: float) -> tuple[bytes, bool]:
    """What the process says until it ends, and whether it was ended because it took too long."""
    # Not communicate(): that would close the lifeline.
    assert process.stdout is not None
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, give_up)
    timer.start()
    answer = process.stdout.read()
    process.wait()
    timer.cancel()
    return answer, late.is_set()


def file_limits(settings: Settings) -> dict[str, dict[str, int]]:
    """The limits of the readers, as keywords of `ImageLimits` and `MeshLimits`."""
    return {
        "image": {"max_pixels": settings.max_image_pixels, "max_side": settings.max_image_side},
        "mesh": {"max_vertices": settings.max_mesh_vertices, "max_faces": settings.max_mesh_faces},
    }


def _too_costly(what: str, limit: str, value: int) -> LimitExceeded:
    return LimitExceeded(f"Decoding the file takes too much {what}.", limit=limit, value=value)


def _read_answer(answer: Message) -> Inspection:
    error = answer.get("error")
    if error is None:
        return Inspection(**answer)
    kind = _ERRORS.get(error["code"], BadInput)
    raise kind(error["message"], limit=error["limit"], value=error["value"])


def _tree(root: type[AcornError]) -> dict[str, type[AcornError]]:
    found = {root.code: root}
    for below in root.__subclasses__():
        found |= _tree(below)
    return found


_ERRORS = _tree(AcornError)
