"""The fit: target, configuration and state in, progress out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acorn_svc.field.allocation import allocate
from acorn_svc.field.conventions import scaled_size
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.metrics import decibels, rounded_squares
from acorn_svc.field.model import Field
from acorn_svc.field.state import FitRecord
from acorn_svc.field.tree import Tree
from acorn_svc.training.evaluation import full_size_psnr
from acorn_svc.training.model import Rates, TrainableField
from acorn_svc.training.presets import PATCH_SIDE, FitConfig
from acorn_svc.training.schedule import MEASUREMENTS, measures_at, rate_factor, reallocates_at
from acorn_svc.training.start import initial_tree
from acorn_svc.training.state import FitState
from acorn_svc.training.targets import ImageTarget

Stage = Literal["measuring", "fitting", "evaluating", "done"]

REPORT_SECONDS = 0.25
SPEED_SHARE = 0.04
SPEED_SECONDS = 0.3
LEARNING_SHARE = 0.5
WARM_UP_STEPS = 3
SAMPLE_BLOCKS = 128


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
    with _alone():
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
def _alone() -> Iterator[None]:
    """One thread for each operation of PyTorch: the fit shares its steps between threads of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    """One fit in progress."""

    def __init__(
        self, target: ImageTarget, config: FitConfig, model: TrainableField, generator: torch.Generator
    ) -> None:
        self.target = target
        self.config = config
        self.model = model
        self.generator = generator
        self.step = 0
        self.steps = 0 if config.seconds else config.steps
        self.seconds = 0.0
        self.psnr: float | None = None
        self.errors = np.zeros((2, len(model.lattice.tree)))

    @staticmethod
    def start(target: ImageTarget, config: FitConfig) -> _Run:
        generator = torch.Generator().manual_seed(config.seed)
        tree = initial_tree(target, config.architecture.cells, config.blocks)
        lattice = Lattice.build(tree, config.architecture.cells)
        model = TrainableField.start(target.signal, config.architecture, lattice, generator, config.threads)
        return _Run(target, config, model, generator)

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
        model = TrainableField(target.signal, config.architecture, lattice, arrays, config.threads)
        generator = torch.Generator()
        generator.set_state(torch.from_numpy(np.array(arrays["random"], np.uint8)))
        run = _Run(target, config, model, generator)
        run.step, run.steps = meta["step"], meta["steps"]
        run.seconds, run.psnr = meta["seconds"], meta["psnr"]
        run.errors = np.array(arrays["errors"], np.float64)
        return run

    def state(self) -> FitState:
        tree = self.model.lattice.tree
        arrays = self.model.to_arrays()
        arrays["tree.levels"], arrays["tree.indices"] = tree.levels, tree.indices
        arrays["errors"] = self.errors.copy()
        arrays["random"] = self.generator.get_state().numpy()
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
        """Steps until one of the limits is reached."""
        before = reported = time.perf_counter()
        while self.step < self.steps and not self._good_enough():
            self.advance()
            now = time.perf_counter()
            self.seconds += now - before
            before = now
            if now - reported >= REPORT_SECONDS:
                yield self.progress("fitting")
                before = reported = time.perf_counter()

    def advance(self) -> None:
        """One step, and what is due after it."""
        self._learn(self._draw_scale())
        self.step += 1
        if reallocates_at(self.config, self.step, self.steps):
            self._reallocate()
        if measures_at(self.step, self.steps):
            self.psnr = self._sample_psnr()
            if self._good_enough():  # the sample may flatter
                self.measure_everything()

    def fix_steps(self, begin: float) -> None:
        """Turns the time limit into a number of steps: measures the speed on a copy of the run."""
        assert self.config.seconds is not None
        copy = _Run.resume(self.target, replace(self.config, seconds=None), self.state())
        copy.steps = 1 << 40
        for _ in range(WARM_UP_STEPS):
            copy._learn(copy._draw_scale())
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < max(SPEED_SECONDS, SPEED_SHARE * self.config.seconds):
            copy._learn(copy._draw_scale())
            count += 1
        per_step = (time.perf_counter() - start) / count
        start = time.perf_counter()
        copy._sample_psnr()
        measurements = MEASUREMENTS * (time.perf_counter() - start)
        start = time.perf_counter()
        copy._reallocate()
        reallocations = self.config.reallocations * (time.perf_counter() - start)
        self.seconds = time.perf_counter() - begin
        left = self.config.seconds - self.seconds
        learning = max(left - measurements - reallocations, LEARNING_SHARE * left)
        self.steps = max(1, int(learning / per_step))

    def measure_everything(self) -> None:
        """Replaces the estimate of the quality by that of every pixel."""
        self.psnr = full_size_psnr(self.field(), self.target)

    def _good_enough(self) -> bool:
        return self.config.psnr is not None and self.psnr is not None and self.psnr >= self.config.psnr

    def _draw_scale(self) -> int:
        """Mostly full size; else a coarser scale, the finer ones more often."""
        chance, place = torch.rand(2, generator=self.generator).tolist()
        depth = self.model.lattice.tree.depth
        if depth == 0 or chance < self.config.full_size_share:
            return 0
        return 1 + min(int(place**2 * depth), depth - 1)

    def _draw_patches(self, scale: int) -> Tensor:
        """Corners of random patches of one scale, uniform over the image."""
        counts = [-(-scaled_size(side, scale) // PATCH_SIDE) for side in self.target.signal.size]
        wanted = self.config.coarse_patches if scale else self.config.patches
        count = min(wanted, 2 * counts[0] * counts[1])
        axes = [torch.randint(0, number, (count,), generator=self.generator) for number in counts]
        return torch.stack(axes, dim=1) * PATCH_SIDE

    def _learn(self, scale: int) -> None:
        corners = self._draw_patches(scale)
        truth, weights = self.target.patches(corners, scale, PATCH_SIDE)
        factor = rate_factor(self.config, self.step, self.steps)
        rates = Rates(self.config.encoder_rate * factor, self.config.decoder_rate * factor)
        squares = self.model.step(corners, truth, weights, scale, rates)
        if scale == 0:
            self._record(corners, squares, weights.sum(dim=0))

    def _record(self, corners: Tensor, squares: Tensor, pixels: Tensor) -> None:
        """Adds squared errors and pixel counts to the statistics of the leaves they fell in."""
        rows = self.model.reader.leaves(corners // self.config.architecture.cells).numpy()
        np.add.at(self.errors[0], rows, squares.numpy())
        np.add.at(self.errors[1], rows, pixels.numpy())

    def _reallocate(self) -> None:
        """Re-decides the tree by the errors seen since the last time, which are then forgotten."""
        tree = self.model.lattice.tree
        config = self.config
        better = allocate(tree, self._leaf_errors(), config.blocks, alpha=config.alpha, beta=config.beta)
        if not np.array_equal(better.levels, tree.levels) or not np.array_equal(better.indices, tree.indices):
            self.model.move_to(better)
        self.errors = np.zeros((2, len(better)))

    def _leaf_errors(self) -> NDArray[np.float64]:
        """Squared error of every leaf, summed over its area; unseen leaves count as average ones."""
        tree = self.model.lattice.tree
        squares, counts = self.errors[:, tree.leaf_rows]
        average = squares.sum() / max(counts.sum(), 1.0)
        mean = np.divide(squares, counts, out=np.full(len(counts), average), where=counts > 0)
        area = _areas_inside(tree, self.config.architecture.cells, self.target.signal.size)
        errors: NDArray[np.float64] = mean * area
        return errors

    def _sample_psnr(self) -> float:
        """PSNR over a fixed sample of finest-level blocks; does not touch the random state."""
        cells = self.config.architecture.cells
        extent = self.model.lattice.tree.extent
        chosen = np.random.default_rng(0).permutation(extent[0] * extent[1])[:SAMPLE_BLOCKS]
        corners = torch.from_numpy(np.stack([chosen % extent[0], chosen // extent[0]], axis=1) * cells)
        truth, weights = self.target.patches(corners, 0, cells)
        values = self.model.render_patches(corners, cells)
        inside = weights.numpy() > 0
        squares = rounded_squares(values.numpy()[inside], truth.numpy()[inside])
        return decibels(squares / (inside.sum() * truth.shape[2]))


def _areas_inside(tree: Tree, cells: int, size: tuple[int, ...]) -> NDArray[np.float64]:
    """Full-size pixels of each leaf that lie inside the image."""
    rows = tree.leaf_rows
    side = cells << (tree.depth - tree.levels[rows].astype(np.int64))
    low = tree.coordinates[rows] * side[:, None]
    high = np.minimum(low + side[:, None], np.array(size))
    area: NDArray[np.float64] = np.prod(high - low, axis=1, dtype=np.float64)
    return area
