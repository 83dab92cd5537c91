"""The process that meets untrusted bytes, and the one that fits: it computes, reports, may die.

    python -m acorn_svc.jobs.child inspect REQUEST    one answer: what the file is, or an error
    python -m acorn_svc.jobs.child fit REQUEST        progress, snapshots, and how it ended

REQUEST is a JSON object. The child knows no database and no settings: all it needs stands there.
Libraries are imported where they are needed, because checking a picture must not wait for PyTorch.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import signal
import sys
import time
import traceback
from dataclasses import dataclass, fields
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acorn_svc.errors import AcornError, BadModel, InsufficientStorage, LimitExceeded, OutOfMemory
from acorn_svc.jobs import endings
from acorn_svc.jobs.process import Message, give_way, hold_lifeline, limit_resources, say
from acorn_svc.jobs.sandbox import confine

if TYPE_CHECKING:
    from acorn_svc.field.kinds import AnyField
    from acorn_svc.formats.images import Pixels
    from acorn_svc.formats.meshes import MeshReading
    from acorn_svc.formats.originals import Original
    from acorn_svc.training.loop import Progress
    from acorn_svc.training.state import FitState

Limits = dict[str, dict[str, int]]
SNIFF_BYTES = 16
MAX_HEADER_BYTES = 1 << 32
FIRST_SNAPSHOT_SECONDS = 1.0
LEAST_PROGRESS_SECONDS = 0.5
PROGRESS_LINES = 200
CHECKPOINT_SHARE = 10  # a checkpoint may take one tenth of the time


def main() -> None:
    """Do what the command line says."""
    command, request = sys.argv[1], json.loads(sys.argv[2])
    give_way()
    {"inspect": inspect, "fit": fit}[command](request)


def inspect(request: Message) -> None:
    """Say what the file at `path` is, after every byte of it was decoded. No file is written."""
    _ignore_interrupts()
    path = Path(request["path"])
    if looks_like_field(path):
        _import_torch()
    confine(readable=[path])
    hold_lifeline()
    limit_resources(request["memory_bytes"], request["cpu_seconds"])
    say(describe(path, request["limits"], request["memory_bytes"]))


def describe(path: Path, limits: Limits, memory_bytes: int) -> Message:
    """What the file is, or an error; see `jobs.inspection`."""
    try:
        return _describe(path, limits)
    except (AcornError, MemoryError) as error:
        return _error(error, "decode_memory_bytes", memory_bytes)


def fit(request: Message) -> None:
    """Fit the image or mesh at `original` to the end, from the first of `checkpoints` that can be read."""
    _ignore_interrupts()
    job = FitJob.from_request(request)
    _import_torch()
    if job.options.get("device") != "cuda":  # a GPU's driver is a world of files and calls of its own
        confine(readable=[job.original, *job.checkpoints], writable=[job.spool])
    hold_lifeline()
    memory_bytes = request["memory_bytes"]
    # a checkpoint is no larger than what it was made of
    limit_resources(memory_bytes, request["cpu_seconds"], file_bytes=memory_bytes)
    try:
        _run(job)
    except (AcornError, MemoryError, OSError, RuntimeError) as error:
        if _is_gpu_fault(error):
            traceback.print_exc()
            os._exit(endings.GPU_FAULT)  # the driver may never let go of this process
        reason = _lack_of_memory(error, memory_bytes) or error
        say({"say": "failed", **_error(reason, "job_memory_bytes", memory_bytes)})


@dataclass(frozen=True)
class FitJob:
    """Where a fit reads and writes, and what people asked for.

    What it makes, it writes to `spool`; whoever is told of a file takes it away. `checkpoints` are those
    of earlier starts, newest first.
    """

    original: Path
    checkpoints: list[Path]
    spool: Path
    limits: Limits
    options: dict[str, Any]
    checkpoint_seconds: float

    @classmethod
    def from_request(cls, request: Message) -> FitJob:
        """The job of a request made by `jobs.workflow`."""
        known = {field.name: request[field.name] for field in fields(cls)}
        paths = {name: Path(known[name]) for name in ("original", "spool")}
        checkpoints = [Path(path) for path in known["checkpoints"]]
        return cls(**{**known, **paths, "checkpoints": checkpoints})


class Stopping:
    """Becomes true when this process was asked to end."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, *_signal: object) -> None:
        """Remember it; the loop looks between two steps."""
        self.asked = True


def _run(job: FitJob) -> None:
    from acorn_svc.formats.originals import target_of
    from acorn_svc.training.loop import fit
    from acorn_svc.training.presets import configure

    target = target_of(_read(job.original, job.limits))
    config = configure(target, **job.options)
    state, stopping = _checkpoint(job), Stopping()
    course = fit(target, config, state)  # the checkpoint holds the configuration that this job was begun with
    first = next(course)
    # Until now there was nothing to keep, and SIGTERM ended this process at once.
    signal.signal(signal.SIGTERM, stopping.ask)
    say({"say": "started", "step": first.step})
    pace = Pace(job.checkpoint_seconds, kept=state.meta["step"] if state else 0)
    for progress in chain([first], course):
        asked = stopping.asked  # once: what is asked from here on is for the next report
        _report(job, progress, pace, asked)
        if asked:
            return


def _report(job: FitJob, progress: Progress, pace: Pace, asked: bool) -> None:
    """Keep and say what is due now."""
    if progress.stage == "done":
        say({"say": "done", "file": _snapshot(job, progress), "progress": progress.to_json()})
    elif pace.checkpoint_is_due(progress.step, asked):
        _keep(job, progress)
        pace.checkpoint_was_made(progress.step)
    elif pace.progress_is_due():
        say({"say": "progress", "progress": progress.to_json()})


def _keep(job: FitJob, progress: Progress) -> None:
    """A checkpoint to go on from, then a snapshot to look at."""
    from acorn_svc.formats.checkpoint import write_state

    state = job.spool / secrets.token_hex(16)
    write_state(state, progress.state())
    made = {"file": _snapshot(job, progress), "checkpoint": str(state)}
    say({"say": "snapshot", **made, "progress": progress.to_json()})


def _snapshot(job: FitJob, progress: Progress) -> str:
    from acorn_svc.formats.container import write_field

    path = job.spool / secrets.token_hex(16)
    write_field(path, progress.field())
    return str(path)


class Pace:
    """When progress and checkpoints are due: soon at first, seldom later.

    A checkpoint passes for progress, and a fit that always dies at its end must be given up: so none is made
    of the step that was `kept` last, here or by an earlier start, nor of the first step after that because
    the set-up took long. This begins after the set-up.
    """

    def __init__(self, checkpoint_seconds: float, kept: int) -> None:
        self._begin = time.monotonic()
        self._longest = checkpoint_seconds
        self._next_progress = self._begin
        self._next_checkpoint = self._begin + min(FIRST_SNAPSHOT_SECONDS, checkpoint_seconds)
        self._started = self._begin
        self._kept = kept

    def progress_is_due(self) -> bool:
        """Whether to say something; the longer the fit, the fewer lines a minute."""
        now = time.monotonic()
        if now < self._next_progress:
            return False
        self._next_progress = now + max(LEAST_PROGRESS_SECONDS, (now - self._begin) / PROGRESS_LINES)
        return True

    def checkpoint_is_due(self, step: int, asked: bool) -> bool:
        """Whether to keep a checkpoint of `step`, at once when `asked`; remembers when it was begun."""
        self._started = time.monotonic()
        return step > self._kept and (asked or self._started >= self._next_checkpoint)

    def checkpoint_was_made(self, step: int) -> None:
        """Set the next one: after twice the time so far, but never dearer than its share."""
        now = time.monotonic()
        self._kept = step
        wait = min(self._longest, now - self._begin)
        self._next_checkpoint = now + max(wait, CHECKPOINT_SHARE * (now - self._started))


def _ignore_interrupts() -> None:
    """Ctrl-C reaches the whole group; whoever started this process decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _import_torch() -> None:
    """Before the sandbox is shut: with CUDA's packages beside it, PyTorch starts programs to find them."""
    import_module("torch")


def _read(path: Path, limits: Limits) -> Original:
    from acorn_svc.formats.images import ImageLimits
    from acorn_svc.formats.mesh_pieces import MeshLimits
    from acorn_svc.formats.originals import read_original

    return read_original(path, ImageLimits(**limits["image"]), MeshLimits(**limits["mesh"]))


def _checkpoint(job: FitJob) -> FitState | None:
    from acorn_svc.formats.checkpoint import read_state

    for path in job.checkpoints:
        try:
            return read_state(path)
        except (BadModel, FileNotFoundError):
            continue
    return None


def looks_like_field(path: Path) -> bool:
    """Whether the file begins as an `.acorn` does: the length of a header, then a JSON object."""
    with path.open("rb") as file:
        start = file.read(SNIFF_BYTES)
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < MAX_HEADER_BYTES


def _describe(path: Path, limits: Limits) -> Message:
    """What the file is, by its content alone, and what it holds."""
    if looks_like_field(path):
        return _describe_field(path, limits)
    import numpy as np

    original = _read(path, limits)
    return _describe_image(path, original) if isinstance(original, np.ndarray) else _describe_mesh(original)


def _describe_image(path: Path, pixels: Pixels) -> Message:
    from acorn_svc.formats.images import inspect_image

    height, width, channels = pixels.shape
    header = inspect_image(path)
    size = {"width": width, "height": height, "channels": channels, "bit_depth": 8 * pixels.itemsize}
    return {"kind": "image", "format": header.format, **size}


def _describe_mesh(reading: MeshReading) -> Message:
    mesh = reading.mesh
    shape = {
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "colours": mesh.colours is not None or mesh.texture is not None,
        "bounds": [mesh.vertices.min(axis=0).tolist(), mesh.vertices.max(axis=0).tolist()],
        "repairs": reading.repairs,
    }
    return {"kind": "shape", "format": reading.format, "shape": shape}


def _describe_field(path: Path, limits: Limits) -> Message:
    from acorn_svc.formats.container import ModelLimits, read_field

    field = read_field(path, ModelLimits(**limits["model"]))
    info = field.info()
    told = {
        "stage": "done",
        "step": info.steps,
        "steps": info.steps,
        "seconds": None,  # a file doesn't say how long it took
        "bytes": path.stat().st_size,
        "psnr": field.record.psnr,
        "iou": field.record.iou,
        "blocks": info.blocks,
        "parameters": info.parameters,
    }
    known = {"format": "acorn", "encoder": info.encoder, "preset": info.preset, "progress": told}
    return {"kind": info.kind, **known, **_facts(field)}


def _facts(field: AnyField) -> Message:
    """What is known of an image, or of a shape whose mesh isn't known."""
    import numpy as np

    from acorn_svc.field.shape import ShapeField

    if not isinstance(field, ShapeField):
        return {name: getattr(field, name) for name in ("width", "height", "channels", "bit_depth")}
    box = [[0.0, 0.0, 0.0], [float(length) for length in field.signal.size]]
    shape = {
        "vertices": None,
        "faces": None,
        "colours": field.signal.has_colour,
        "bounds": field.to_mesh_units(np.array(box)).tolist(),
        "repairs": [],
    }
    return {"shape": shape}


def _lack_of_memory(error: Exception, memory_bytes: int) -> OutOfMemory | None:
    """The error as people are told it, if there was not enough memory; PyTorch says so in words alone."""
    words = str(error) if isinstance(error, RuntimeError) else ""
    if "CUDA out of memory" in words or "CUDA error: out of memory" in words:
        return endings.out_of_gpu_memory()
    if isinstance(error, MemoryError) or "can't allocate memory" in words or "bad_alloc" in words:
        return endings.out_of_memory(memory_bytes)
    return None


def _is_gpu_fault(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not _lack_of_memory(error, 0)


def _error(error: Exception, limit: str, value: int) -> Message:
    """The error as a message; `limit` is what bounds the memory. What isn't foreseen is raised."""
    return {"error": _foreseen(error, limit, value).to_json()}


def _foreseen(error: Exception, limit: str, value: int) -> AcornError:
    if isinstance(error, AcornError):
        return error
    if isinstance(error, MemoryError):
        return LimitExceeded("This takes too much memory.", limit=limit, value=value)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return InsufficientStorage("The disk is full.")
    raise error


if __name__ == "__main__":
    main()
