"""The check of an upload, done by a short-lived child so that a hostile file hurts nobody else."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from acorn_svc.errors import AcornError, BadInput, LimitExceeded, Unavailable
from acorn_svc.field.state import EncoderName
from acorn_svc.formats.images import Format as ImageFormat
from acorn_svc.formats.mesh_pieces import MeshFormat
from acorn_svc.jobs.process import ORPHANED, Message, end, spawn_child
from acorn_svc.jobs.words import EXACT, Count, Course, Reason, Words
from acorn_svc.settings import Settings

MAX_ANSWER_BYTES = 1 << 20
ABNORMAL = "The file cannot be decoded; decoding it ended abnormally."
# What libraries do when memory is refused: they give up by these signals.
OUT_OF_MEMORY = (signal.SIGABRT, signal.SIGTRAP, signal.SIGKILL)
# How the child ends when somebody stops the service, all its processes at once; the file is not to blame.
INTERRUPTED = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, ORPHANED)


Pixels = Annotated[int, Field(ge=1, lt=1 << 31)]
Corner = tuple[float, float, float]


@dataclass(frozen=True, config=EXACT)
class _Refusal:
    error: Reason


@dataclass(frozen=True, config=EXACT)
class Shape:
    """What is known of a shape.

    Attributes:
        vertices, faces: of a mesh; None of a field.
        colours: whether there are any.
        bounds: the lowest and the highest corner, in the units of the mesh.
        repairs: sentences on what was mended.
    """

    vertices: Count | None
    faces: Count | None
    colours: bool
    bounds: tuple[Corner, Corner]
    repairs: list[Words]

    def to_json(self) -> dict[str, Any]:
        """The plain values."""
        return asdict(self)


@dataclass(frozen=True, config=EXACT)
class Finished(Course):
    """How the fit ended of which a field came; a file doesn't say how long it took."""

    stage: Literal["done"]
    seconds: None


@dataclass(frozen=True, config=EXACT)
class Inspection:
    """What an upload is.

    Attributes:
        format: of the file; "acorn" is a field of that kind.
        width, height, channels, bit_depth: of an image alone, in pixels, as seen.
        shape: of a shape alone.
        encoder, preset, progress: of a field alone.
    """

    kind: Literal["image", "shape"]
    format: ImageFormat | MeshFormat | Literal["acorn"]
    width: Pixels | None = None
    height: Pixels | None = None
    channels: Literal[1, 2, 3, 4] | None = None
    bit_depth: Literal[8, 16] | None = None
    shape: Shape | None = None
    encoder: EncoderName | None = None
    preset: Words | None = None
    progress: Finished | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        is_image, is_field = self.kind == "image", self.format == "acorn"
        formats = (*get_args(ImageFormat if is_image else MeshFormat), "acorn")
        of_images = (self.width, self.height, self.channels, self.bit_depth)
        of_fields = (self.encoder, self.preset, self.progress)
        is_whole = (
            self.format in formats
            and {part is not None for part in of_images} == {is_image}
            and {part is not None for part in of_fields} == {is_field}
            and (self.shape is None) == is_image
        )
        if not is_whole:
            raise ValueError("parts are missing, or are those of another kind")
        return self


class Inspector:
    """Checks uploads, at most `max_decodes` at the same time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._places = threading.BoundedSemaphore(settings.max_decodes)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_stopped = False
        self._lock = threading.Lock()

    def inspect(self, path: Path) -> Inspection:
        """Decode the whole file `path` in a child; raises BadInput or a class below it, or Unavailable."""
        if not self._places.acquire(timeout=self._settings.decode_wall_seconds):
            raise Unavailable(
                "Too many uploads are being checked; try again later.",
                limit="max_decodes",
                value=self._settings.max_decodes,
            )
        try:
            return self._inspect(path)
        finally:
            self._places.release()

    def stop(self) -> None:
        """End every check, and begin none any more: all raise Unavailable, also those that wait."""
        with self._lock:
            self._is_stopped = True
            for process in self._running:
                process.kill()

    def _inspect(self, path: Path) -> Inspection:
        with self._child(path) as process:
            answer, timed_out = _listen(process, self._settings.decode_wall_seconds)
        if process.returncode != 0:
            raise self._reason(process.returncode, timed_out)
        return _read_answer(answer)

    @contextmanager
    def _child(self, path: Path) -> Iterator[subprocess.Popen[bytes]]:
        with self._lock:  # no child begins after `stop` has looked for those that run
            if self._is_stopped:
                raise _interrupted()
            process = spawn_child("inspect", self._request(path))
            self._running.add(process)
        try:
            yield process
        finally:
            with self._lock:
                self._running.remove(process)
            end(process)

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
        if self._is_stopped or code in INTERRUPTED:
            return _interrupted()
        if timed_out:
            return _too_costly("time", "decode_wall_seconds", settings.decode_wall_seconds)
        if code == -signal.SIGXCPU:
            return _too_costly("time", "decode_cpu_seconds", settings.decode_cpu_seconds)
        if -code in OUT_OF_MEMORY:
            return _too_costly("memory", "decode_memory_bytes", settings.decode_memory_bytes)
        return BadInput(ABNORMAL)


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
    answer = process.stdout.read(MAX_ANSWER_BYTES)
    if len(answer) == MAX_ANSWER_BYTES:
        process.kill()
    process.wait()
    timer.cancel()
    return answer, late.is_set()


def file_limits(settings: Settings) -> dict[str, dict[str, int]]:
    """The limits of the readers, as keywords of `ImageLimits`, `MeshLimits` and `ModelLimits`."""
    return {
        "image": {
            "max_pixels": settings.max_image_pixels,
            "max_side": settings.max_image_side,
            "max_channels": settings.max_image_channels,
            "max_frames": settings.max_image_frames,
        },
        "mesh": {
            "max_vertices": settings.max_mesh_vertices,
            "max_faces": settings.max_mesh_faces,
            "max_parts": settings.max_mesh_parts,
            "max_textures": settings.max_mesh_textures,
            "max_texture_pixels": settings.max_texture_pixels,
            "max_gltf_json_bytes": settings.max_gltf_json_bytes,
        },
        "model": {
            "max_bytes": settings.max_model_bytes,
            "max_header_bytes": settings.max_model_header_bytes,
            "max_cells": settings.max_model_cells,
            "max_memory_bytes": settings.max_model_memory_bytes,
        },
    }


def _interrupted() -> Unavailable:
    return Unavailable("The check was interrupted; try again.", retry_after=1)


def _too_costly(what: str, limit: str, value: int) -> LimitExceeded:
    return LimitExceeded(f"Decoding the file takes too much {what}.", limit=limit, value=value)


def _read_answer(text: bytes) -> Inspection:
    """The child's answer, which is suspected as the file is: it may have taken the child over."""
    try:
        answer = _ANSWER.validate_json(text)
    except ValidationError as error:
        raise BadInput(ABNORMAL) from error
    if isinstance(answer, Inspection):
        return answer
    told = answer.error
    raise _ERRORS.get(told.code, BadInput)(told.message, limit=told.limit, value=told.value)


def _tree(root: type[AcornError]) -> dict[str, type[AcornError]]:
    found = {root.code: root}
    for below in root.__subclasses__():
        found |= _tree(below)
    return found


_ERRORS = _tree(BadInput)
_ANSWER: TypeAdapter[Inspection | _Refusal] = TypeAdapter(Inspection | _Refusal)
