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
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.metrics import decibels, rounded_squares
from acorn_svc.field.model import Field
from acorn_svc.field.ops.learning import Sampling
from acorn_svc.field.state import FitRecord
from acorn_svc.field.tree import Tree
from acorn_svc.training.evaluation import full_size_psnr
from acorn_svc.training.model import Arrays, TrainableField
from acorn_svc.training.presets import FitConfig
from acorn_svc.training.schedule import (
    LEAST_INTERVAL,
    MEASUREMENTS,
    measurement_interval,
    reallocation_steps,
    schedule,
)
from acorn_svc.training.start import initial_tree
from acorn_svc.training.state import FitState
from acorn_svc.training.targets import ImageTarget

Stage = Literal["measuring", "fitting", "evaluating", "done"]

REPORT_SECONDS = 0.25
SPEED_SHARE = 0.04
SPEED_SECONDS = 0.02
LEARNING_SHARE = 0.3
WARM_UP_STEPS = 3
REALLOCATION_SHARE = 0.3  # of the time that choosing and building the first tree takes
UNKNOWN_STEPS = 1 << 40
SAMPLE_PIXELS = 8192
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
            None until measured.
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
    blocks: int
    parameters: int
    bytes: int
    state: Callable[[], FitState]
    field: Callable[[], Field]

    def preview(self, max_side: int) -> NDArray[np.uint8 | np.uint16]:
        """A picture of the whole, its longer side at most ``max_side`` pixels."""
        field = self.field()
        factor = min(1.0, max_side / max(field.width, field.height))
        return field.render(size=(max(1, round(field.width * factor)), max(1, round(field.height * factor))))

    def to_json(self) -> dict[str, Any]:
        """The plain values."""
        names = ("stage", "step", "steps", "seconds", "psnr", "blocks", "parameters", "bytes")
        return {name: getattr(self, name) for name in names}


def fit(target: ImageTarget, config: FitConfig, state: FitState | None = None) -> Iterator[Progress]:
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


def _fit(target: ImageTarget, config: FitConfig, state: FitState | None) -> Iterator[Progress]:
    begin = time.perf_counter()
    run = _Run.resume(target, config, state) if state is not None else _Run.start(target, config)
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

    def __init__(self, target: ImageTarget, config: FitConfig, model: TrainableField) -> None:
        self.target = target
        self.config = config
        self.model = model
        self.depth = model.lattice.tree.depth
        pyramid = [picture.to(config.device) for picture in target.pyramid(self.depth)]
        self.sampling = Sampling(pyramid, config.patches, config.coarse_patches, config.seed)
        self.step = 0
        self.steps = 0 if config.seconds else config.steps
        self.seconds = 0.0
        self.psnr: float | None = None
        self.chunk = 1

    @staticmethod
    def start(target: ImageTarget, config: FitConfig) -> _Run:
        tree = initial_tree(target, config.architecture.cells, config.blocks)
        lattice = Lattice.build(tree, config.architecture.cells)
        generator = torch.Generator().manual_seed(config.seed)
        arrays = TrainableField.start(target.signal, config.architecture, lattice, generator)
        return _Run(target, config, _trainable(target, config, lattice, arrays))

    @staticmethod
    def resume(target: ImageTarget, config: FitConfig, state: FitState) -> _Run:
        arrays, meta = state.arrays, state.meta
        tree = Tree(
            len(meta["extent"]),
            meta["depth"],
            tuple(meta["extent"]),
            np.asarray(arrays["tree.levels"], np.uint8),
            np.asarray(arrays["tree.indices"], np.uint64),
        )
        lattice = Lattice.build(tree, config.architecture.cells)
        run = _Run(target, config, _trainable(target, config, lattice, arrays))
        run.step, run.steps = meta["step"], meta["steps"]
        run.seconds, run.psnr = meta["seconds"], meta["psnr"]
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
            "psnr": self.psnr,
        }
        return FitState(arrays, meta)

    def field(self) -> Field:
        record = FitRecord(self.config.preset, self.step, self.config.seed, self.psnr)
        return self.model.to_field(record)

    def progress(self, stage: Stage) -> Progress:
        return Progress(
            stage,
            self.step,
            self.steps,
            self.seconds,
            self.psnr,
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
            if now - reported >= REPORT_SECONDS or (self.psnr is not None and not told):
                told = self.psnr is not None
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
            self.psnr = self._sample_psnr()
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
        self.psnr = self._sample_psnr()
        measurement = time.perf_counter() - start
        self.seconds = time.perf_counter() - begin
        left = max(self.config.seconds - self.seconds - measurement, LEARNING_SHARE * self.config.seconds)
        # both become rarer with fewer steps
        reallocation, interval = REALLOCATION_SHARE * set_up, self.config.reallocation_interval
        few = left / (per_step + measurement / LEAST_INTERVAL + reallocation / interval)
        many = (left - MEASUREMENTS * measurement - self.config.reallocations * reallocation) / per_step
        self.steps = self.step + max(1, int(max(few, many)))

    def measure_everything(self) -> None:
        """Replaces the estimate of the quality by that of every pixel."""
        self.psnr = full_size_psnr(self.field(), self.target)

    def _good_enough(self) -> bool:
        return self.config.psnr is not None and self.psnr is not None and self.psnr >= self.config.psnr

    def _reallocate(self) -> None:
        """Re-decides the tree by the errors seen since the last time, which are then forgotten."""
        tree = self.model.lattice.tree
        config = self.config
        better = allocate(tree, self._leaf_errors(), config.blocks, alpha=config.alpha, beta=config.beta)
        if not np.array_equal(better.levels, tree.levels) or not np.array_equal(better.indices, tree.indices):
            self.model.move_to(better)
        else:
            self.model.forget_errors()

    def _leaf_errors(self) -> NDArray[np.float64]:
        """Squared error of every leaf, summed over its area; unseen leaves count as average ones."""
        tree = self.model.lattice.tree
        squares, counts = self.model.errors[:, tree.leaf_rows]
        average = squares.sum() / max(counts.sum(), 1.0)
        mean = np.divide(squares, counts, out=np.full(len(counts), average), where=counts > 0)
        area = _areas_inside(tree, self.config.architecture.cells, self.target.signal.size)
        errors: NDArray[np.float64] = mean * area
        return errors

    def _sample_psnr(self) -> float:
        """PSNR over a fixed sample of pixels."""
        width, height = self.target.signal.size
        chosen = np.random.default_rng(0).integers(0, width * height, SAMPLE_PIXELS)
        pixels = np.stack([chosen % width, chosen // width], axis=1)
        truth = self.target.at(pixels)
        values = self.model.render_points(torch.from_numpy(pixels + 0.5))
        return decibels(rounded_squares(values.numpy(), truth) / truth.size)


def _trainable(target: ImageTarget, config: FitConfig, lattice: Lattice, arrays: Arrays) -> TrainableField:
    return TrainableField(target.signal, config.architecture, lattice, arrays, config.device, config.mlp)


def _areas_inside(tree: Tree, cells: int, size: tuple[int, ...]) -> NDArray[np.float64]:
    """Full-size pixels of each leaf that lie inside the image."""
    rows = tree.leaf_rows
    side = cells << (tree.depth - tree.levels[rows].astype(np.int64))
    low = tree.coordinates[rows] * side[:, None]
    high = np.minimum(low + side[:, None], np.array(size))
    area: NDArray[np.float64] = np.prod(high - low, axis=1, dtype=np.float64)
    return area
