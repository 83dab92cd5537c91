"""The fit: target, configuration and state in, progress out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from acorn_svc.field.allocation import allocate
from acorn_svc.field.kinds import AnyField, as_image
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.state import FitRecord
from acorn_svc.field.tree import Tree
from acorn_svc.training.images import ImageTask
from acorn_svc.training.model import Arrays, TrainableField
from acorn_svc.training.presets import FitConfig
from acorn_svc.training.schedule import (
    LEAST_INTERVAL,
    MEASUREMENTS,
    measurement_interval,
    reallocation_steps,
    schedule,
)
from acorn_svc.training.shapes import ShapeTask
from acorn_svc.training.state import FitState
from acorn_svc.training.targets import ImageTarget, ShapeTarget
from acorn_svc.training.tasks import Quality, Task

Target = ImageTarget | ShapeTarget
Stage = Literal["measuring", "fitting", "evaluating", "done"]

REPORT_SECONDS = 0.25
SPEED_SHARE = 0.04
SPEED_SECONDS = 0.02
LEARNING_SHARE = 0.3
WARM_UP_STEPS = 3
REALLOCATION_SHARE = 0.3  # of the time that choosing and building the first tree takes
UNKNOWN_STEPS = 1 << 40
CHUNK_SECONDS = 0.05


@dataclass(frozen=True)
class Progress:
    """Where a fit stands.

    Attributes:
        stage: ``"measuring"`` the speed, ``"fitting"``, ``"evaluating"`` the whole picture or ``"done"``.
        step: optimiser steps done.
        steps: steps to do; 0 while measuring.
        seconds: time spent fitting, over all runs.
        psnr: decibels at full size: of a fixed sample of blocks while fitting, of every pixel when done;
            None until measured, and for shapes.
        iou: intersection over union of the insides, likewise, for shapes.
        blocks: leaves of the tree.
        parameters: learned numbers.
        bytes: about how large the file will be.
        state: a copy of the state; valid until the next progress is asked for.
        field: a snapshot of the field; likewise.
    """

    stage: Stage
    step: int
    steps: int
    seconds: float
    psnr: float | None
    iou: float | None
    blocks: int
    parameters: int
    bytes: int
    state: Callable[[], FitState]
    field: Callable[[], AnyField]

    def preview(self, max_side: int) -> NDArray[np.uint8 | np.uint16]:
        """A picture of the whole, its longer side at most ``max_side`` pixels.

        Raises:
            BadRequest: a shape is fitted.
        """
        field = as_image(self.field())
        factor = min(1.0, max_side / max(field.width, field.height))
        return field.render(size=(max(1, round(field.width * factor)), max(1, round(field.height * factor))))

    def to_json(self) -> dict[str, Any]:
        """The plain values."""
        names = ("stage", "step", "steps", "seconds", "psnr", "iou", "blocks", "parameters", "bytes")
        return {name: getattr(self, name) for name in names}


def fit(target: Target, config: FitConfig, state: FitState | None = None) -> Iterator[Progress]:
    """Fits a field, or goes on from ``state``.

    A fit that was stopped and resumed equals one that was not, bit for bit, with the same number of threads:
    all that happens depends on the configuration and the step alone. A time limit becomes a number of
    steps once, by measuring the speed, and is part of the state from then on. Closing the iterator cancels.

    Args:
        target: what to fit.
        config: how; ignored when there is a state, which holds its own.
        state: where an earlier fit stopped.

    Yields:
        progress a few times a second; the last one has stage ``"done"``.
    """
    if state is not None:
        config = FitConfig.from_json(state.meta["config"])
    with _threads(config.threads):
        yield from _fit(target, config, state)


def _fit(target: Target, config: FitConfig, state: FitState | None) -> Iterator[Progress]:
    begin = time.perf_counter()
    task: Task = ImageTask(target, config) if isinstance(target, ImageTarget) else ShapeTask(target, config)
    run = _Run.resume(task, config, state) if state is not None else _Run.start(task, config)
    if run.steps == 0:
        yield run.progress("measuring")
        run.fix_steps(begin)
    yield from run.train()
    yield run.progress("evaluating")
    run.measure_everything()
    yield run.progress("done")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads for each operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    """One fit in progress."""

    def __init__(self, task: Task, config: FitConfig, model: TrainableField, start: Tree) -> None:
        self.task = task
        self.config = config
        self.model = model
        self.depth = model.lattice.tree.depth
        self.sampling = task.sampling(start)
        self.step = 0
        self.steps = 0 if config.seconds else config.steps
        self.seconds = 0.0
        self.quality = Quality()
        self.chunk = 1

    @staticmethod
    def start(task: Task, config: FitConfig) -> _Run:
        tree = task.initial_tree()
        lattice = Lattice.build(tree, config.architecture.cells)
        generator = torch.Generator().manual_seed(config.seed)
        arrays = TrainableField.start(task.signal, config.architecture, lattice, generator)
        return _Run(task, config, _trainable(config, lattice, arrays), tree)

    @staticmethod
    def resume(task: Task, config: FitConfig, state: FitState) -> _Run:
        arrays, meta = state.arrays, state.meta
        tree = Tree(
            len(meta["extent"]),
            meta["depth"],
            tuple(meta["extent"]),
            np.asarray(arrays["tree.levels"], np.uint8),
            np.asarray(arrays["tree.indices"], np.uint64),
        )
        lattice = Lattice.build(tree, config.architecture.cells)
        run = _Run(task, config, _trainable(config, lattice, arrays), task.initial_tree())
        run.step, run.steps = meta["step"], meta["steps"]
        run.seconds, run.quality = meta["seconds"], Quality(meta["psnr"], meta["iou"])
        return run

    def state(self) -> FitState:
        tree = self.model.lattice.tree
        arrays = self.model.to_arrays()
        arrays["tree.levels"], arrays["tree.indices"] = tree.levels, tree.indices
        meta = {
            "config": self.config.to_json(),
            "depth": tree.depth,
            "extent": list(tree.extent),
            "step": self.step,
            "steps": self.steps,
            "seconds": self.seconds,
            **self.quality._asdict(),
        }
        return FitState(arrays, meta)

    def field(self) -> AnyField:
        record = FitRecord(self.config.preset, self.step, self.config.seed, *self.quality)
        return self.task.field(self.model, record)

    def progress(self, stage: Stage) -> Progress:
        return Progress(
            stage,
            self.step,
            self.steps,
            self.seconds,
            *self.quality,
            len(self.model.lattice.tree.leaf_rows),
            self.model.parameter_count,
            self.model.byte_count,
            self.state,
            self.field,
        )

    def train(self) -> Iterator[Progress]:
        """Steps until one of the limits is reached; the first measured quality is told at once."""
        before = reported = time.perf_counter()
        told = False
        while self.step < self.steps and not self._good_enough():
            self.advance()
            now = time.perf_counter()
            self.seconds += now - before
            before = now
            if now - reported >= REPORT_SECONDS or (any(self.quality) and not told):
                told = any(self.quality)
                yield self.progress("fitting")
                before = reported = time.perf_counter()

    def advance(self) -> None:
        """Some steps, up to the next one after which something is due; and that.

        How many are taken together follows the clock and changes nothing in what they do.
        """
        interval = measurement_interval(self.steps)
        reallocations = reallocation_steps(self.config, self.steps)
        due = [step for step in reallocations if step > self.step]
        due.append(self.step - self.step % interval + interval)
        self._learn(min(self.step + self.chunk, self.steps, *due))
        if self.step in reallocations:
            self._reallocate()
        if self.step % interval == 0:
            self.quality = self.task.estimate(self.model)
            if self._good_enough():  # the sample may flatter
                self.measure_everything()

    def _learn(self, stop: int) -> float:
        """Goes on to step ``stop``; returns the seconds that a step took."""
        start, first = time.perf_counter(), self.step
        steps = self.steps or UNKNOWN_STEPS
        self.model.train(self.sampling, schedule(self.config, first, stop, steps, self.depth))
        self.step = stop
        per_step = (time.perf_counter() - start) / (stop - first)
        self.chunk = max(1, min(2 * self.chunk, int(CHUNK_SECONDS / per_step)))
        return per_step

    def fix_steps(self, begin: float) -> None:
        """Turns the time limit into a number of steps, by the speed of the first ones.

        These learn at full rates: where the schedule begins, it falls by very little.
        """
        assert self.config.seconds is not None
        set_up = time.perf_counter() - begin
        self._learn(self.step + WARM_UP_STEPS)
        start = time.perf_counter()
        while time.perf_counter() - start < max(SPEED_SECONDS, SPEED_SHARE * self.config.seconds):
            per_step = self._learn(self.step + self.chunk)  # the last and largest chunk counts
        start = time.perf_counter()
        self.quality = self.task.estimate(self.model)
        measurement = time.perf_counter() - start
        self.seconds = time.perf_counter() - begin
        left = max(self.config.seconds - self.seconds - measurement, LEARNING_SHARE * self.config.seconds)
        # both become rarer with fewer steps
        reallocation, interval = REALLOCATION_SHARE * set_up, self.config.reallocation_interval
        few = left / (per_step + measurement / LEAST_INTERVAL + reallocation / interval)
        many = (left - MEASUREMENTS * measurement - self.config.reallocations * reallocation) / per_step
        self.steps = self.step + max(1, int(max(few, many)))

    def measure_everything(self) -> None:
        """Replaces the estimate of the quality by that of the whole."""
        self.quality = self.task.measure(self.field())

    def _good_enough(self) -> bool:
        return self.quality.reaches(self.config)

    def _reallocate(self) -> None:
        """Re-decides the tree by the errors seen since the last time, which are then forgotten."""
        tree = self.model.lattice.tree
        config = self.config
        errors = self.task.leaf_errors(tree, self.model.errors[:, tree.leaf_rows])
        better = allocate(tree, errors, config.blocks, alpha=config.alpha, beta=config.beta)
        if not np.array_equal(better.levels, tree.levels) or not np.array_equal(better.indices, tree.indices):
            self.model.move_to(better)
        else:
            self.model.forget_errors()


def _trainable(config: FitConfig, lattice: Lattice, arrays: Arrays) -> TrainableField:
    return TrainableField(config.architecture, lattice, arrays, config.device, config.mlp)
