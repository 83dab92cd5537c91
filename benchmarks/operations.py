"""Every operation on every back end that works here, against each other and against the machine's limits.

All that is compared runs in one process and takes turns. The rows of one thread are pinned to one core and
counted in processor time; all others in time that passes.

A limit is the time that the machine needs at least: for the multiply-adds of the operation at the measured
peak, or for reading its arguments and writing its results once at the measured speed of a copy, whichever is
longer. The peak is that of the kernel's own instruction set; for the reference, of the widest.

Counted are the multiply-adds of the default preset alone: its decoder of 20, 64 and 3 units takes
20 * 64 + 64 * 3 = 1472 for a sample, the interpolation of 20 channels between 4 corners takes 80. Training
takes three times the decoder (forward, and back to its inputs and its weights) and twice the interpolation.
Finding blocks, quantising, the optimiser and the sums of gradients are not counted: they are what lies
between a kernel and its limit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from skimage import data
from torch import Tensor

from acorn_svc.field import ops
from acorn_svc.field.base import initial_parameters
from acorn_svc.field.decoder import layer_sizes
from acorn_svc.field.geometry import PATCH_SIDE, SLOTS, Geometry, fold, geometry_of
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.ops.learning import FEATURES, Layer, Learner, Sampling, Schedule
from acorn_svc.field.state import Architecture
from acorn_svc.training.start import initial_tree
from acorn_svc.training.targets import ImageTarget
from benchmarks.measurement import Action, Clock, Measurement, Ratio, Times, interleaved, pinned, ratio
from benchmarks.peaks import COPY, Peak, instruction_sets, peaks

SIDE = 512  # of `astronaut`; larger pictures repeat it
BLOCKS = 319  # for each
RATE = 1e-3
FLOAT, DOUBLE, INDEX = 4, 8, 4
CHANNELS = 3
PIXELS = PATCH_SIDE**2

ARCHITECTURE = Architecture()
INPUTS = SLOTS * ARCHITECTURE.features
INTERPOLATION = 4 * INPUTS
DECODER = sum(i * o for i, o in pairwise(layer_sizes(ARCHITECTURE, CHANNELS)))
LOOKING = INTERPOLATION + DECODER
LEARNING = 2 * INTERPOLATION + 3 * DECODER

TRAIN, RENDER = "train", "render_image"


class Effort(NamedTuple):
    """How much is measured.

    Attributes:
        seconds: for one case, beyond the least number of rounds.
        patches: of the operations on samples, 16 samples each.
        sides: of the rendered pictures.
        rendering: which of them stands for rendering in the summary.
        batch: patches of a training step.
        steps: of one call.
    """

    seconds: float
    patches: int
    sides: tuple[int, ...]
    rendering: int
    batch: int = 512
    steps: int = 8


FULL = Effort(5, 1 << 14, (256, 1024, 4096), 1024)
QUICK = Effort(0, 1 << 9, (256,), 256, steps=2)


class Case(NamedTuple):
    """One operation on some data.

    Attributes:
        name: of the operation, and its size where there are several.
        samples: of one call.
        multiply_adds: for one sample.
        moved: bytes of arguments and results for one sample.
        call: on a back end.
    """

    name: str
    samples: int
    multiply_adds: int
    moved: int
    call: Callable[[ops.Operations], object]


class Variant(NamedTuple):
    """A back end, and for ``cpu`` the instruction set."""

    name: str
    operations: ops.Operations
    lanes: str = ""


class Setting(NamedTuple):
    """Where and with how many threads a part of the rows is measured."""

    name: str
    device: str
    threads: int
    clock: Clock


def measure(quick: bool = False) -> Iterator[Measurement]:
    """All rows; with ``quick`` few samples and rounds, to see that everything runs."""
    effort = QUICK if quick else FULL
    for setting in _settings():
        with _running(setting):
            yield from _measure_setting(setting, effort)
    if len(os.sched_getaffinity(0)) > 1 and instruction_sets():
        yield from _two_threads(effort)


def _settings() -> Iterator[Setting]:
    yield Setting("one thread", "cpu", 1, time.process_time)
    cores = len(os.sched_getaffinity(0))
    if cores > 1:
        yield Setting(f"{cores} threads", "cpu", cores, time.perf_counter)
    if torch.cuda.is_available():
        yield Setting("one GPU", "cuda", cores, _when_gpu_is_done)


def _when_gpu_is_done() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def _running(setting: Setting) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        with pinned() if setting.threads == 1 else nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)


def _variants(device: str) -> list[Variant]:
    found = []
    for row in ops.TABLE:
        if device in row.devices and not row.missing():
            names = instruction_sets() if row.name == "cpu" else [""]
            found += [Variant(f"{row.name} {lanes}".strip(), row.operations(), lanes) for lanes in names]
    return found


def _bound(case: Case, variant: Variant) -> Action:
    if not variant.lanes:
        return lambda: case.call(variant.operations)
    module: Any = variant.operations

    def run() -> None:
        module.lanes = variant.lanes
        try:
            case.call(module)
        finally:
            module.lanes = module.WIDEST

    return run


# --- what is measured on what ---


class Picture(NamedTuple):
    """A field before training, and what it would learn from."""

    geometry: Geometry
    features: Tensor
    folded: Tensor
    layers: list[Layer]
    learner: Learner
    pixels: Tensor


@cache
def _picture(side: int, device: str) -> Picture:
    repeats = -(-side // SIDE)
    target = ImageTarget(np.tile(data.astronaut(), (repeats, repeats, 1)))
    tree = initial_tree(target, ARCHITECTURE.cells, repeats**2 * BLOCKS)
    lattice = Lattice.build(tree, ARCHITECTURE.cells)
    generator = torch.Generator().manual_seed(0)
    parameters = initial_parameters(ARCHITECTURE, target.signal, lattice, generator)
    learner = _learner(lattice, parameters)
    features = parameters[FEATURES]
    picture = Picture(
        geometry_of(lattice),
        features,
        fold(lattice, features),
        [(weight.clone(), bias.clone()) for weight, bias in learner.layers(0)],
        learner,
        target.pyramid(0)[0],
    )
    moved: Picture = _moved(picture, device)
    return moved


def _learner(lattice: Lattice, parameters: dict[str, Tensor]) -> Learner:
    rows, scales = lattice.vertices + 1, lattice.tree.depth + 1
    first, second = ({name: torch.zeros_like(t) for name, t in parameters.items()} for _ in range(2))
    return Learner(
        parameters={name: tensor.clone() for name, tensor in parameters.items()},
        first=first,
        second=second,
        last=torch.zeros(rows),
        scratch=torch.zeros_like(parameters[FEATURES]),
        encoder_steps=torch.zeros(1),
        decoder_steps=torch.zeros(scales),
        drawn=torch.zeros(scales, dtype=torch.int64),
        errors=torch.zeros(2, len(lattice.tree), dtype=torch.float64),
    )


def _moved(value: Any, device: str) -> Any:
    """The same structure with its tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(item, device) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(item, device) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device) for item in value)
    return value


def _cases(effort: Effort, device: str) -> Iterator[Case]:
    yield from _reading(effort, device)
    yield from _decoding(effort, device)
    yield from _looking(effort, device)
    yield from _learning(effort, device)


def _random(seed: int, *shape: int, device: str) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _positions(count: int, device: str) -> Tensor:
    return SIDE * _random(1, count, 2, device=device).double()


def _corners(count: int, device: str) -> Tensor:
    across = SIDE // PATCH_SIDE
    numbers = torch.randperm(across**2, generator=torch.Generator().manual_seed(2))[:count]
    return (torch.stack([numbers % across, numbers // across], dim=1) * PATCH_SIDE).to(device)


def _reading(effort: Effort, device: str) -> Iterator[Case]:
    geometry, features, folded, *_ = _picture(SIDE, device)
    count = PIXELS * effort.patches
    positions, corners = _positions(count, device), _corners(effort.patches, device)
    yield Case("locate", count, 0, 2 * DOUBLE + INDEX, lambda o: o.locate(geometry, positions))
    yield Case(
        "encode_points",
        count,
        INTERPOLATION,
        2 * DOUBLE + FLOAT * INPUTS,
        lambda o: o.encode_points(geometry, features, positions, 0, folded),
    )
    yield Case(
        "encode_patches",
        count,
        INTERPOLATION,
        2 * DOUBLE // PIXELS + FLOAT * INPUTS,
        lambda o: o.encode_patches(geometry, features, corners, 0, folded),
    )


def _decoding(effort: Effort, device: str) -> Iterator[Case]:
    layers, count = _picture(SIDE, device).layers, PIXELS * effort.patches
    inputs = _random(3, count, INPUTS, device=device) - 0.5
    gradient = _random(4, count, CHANNELS, device=device) - 0.5
    moved = FLOAT * (INPUTS + CHANNELS)
    yield Case("decode", count, DECODER, moved, lambda o: o.decode(inputs, layers))
    yield Case(
        "decode_backward",
        count,
        3 * DECODER,
        moved + FLOAT * INPUTS,
        lambda o: o.decode_backward(inputs, layers, gradient),
    )


def _looking(effort: Effort, device: str) -> Iterator[Case]:
    geometry, features, folded, layers, *_ = _picture(SIDE, device)
    count = PIXELS * effort.patches
    positions = _positions(count, device)
    yield Case(
        "render_points",
        count,
        LOOKING,
        2 * DOUBLE + FLOAT * CHANNELS,
        lambda o: o.render_points(geometry, features, folded, layers, positions, 0),
    )
    for side in effort.sides:
        yield rendering(side, device)


def rendering(side: int, device: str) -> Case:
    """Of a whole picture."""
    geometry, features, folded, layers, *_ = _picture(side, device)
    region = (0, 0, side, side)
    return Case(
        f"{RENDER} {side}",
        side**2,
        LOOKING,
        CHANNELS,
        lambda o: o.render_image(geometry, features, folded, layers, 0, region, torch.uint8),
    )


def _learning(effort: Effort, device: str) -> Iterator[Case]:
    geometry, features, _, layers, *_ = _picture(SIDE, device)
    corners = _corners(effort.batch, device)
    truth = _random(5, effort.batch, PIXELS, CHANNELS, device=device)
    weights = torch.ones(effort.batch, PIXELS, device=device)
    yield Case(
        "learn",
        PIXELS * effort.batch,
        LEARNING,
        2 * DOUBLE // PIXELS + FLOAT * (CHANNELS + 1),
        lambda o: o.learn(geometry, features, layers, corners, 0, truth, weights),
    )
    yield _training(effort, device)


def _training(effort: Effort, device: str) -> Case:
    """Steps at full size; every back end goes on with the learner as the one before left it."""
    geometry, _, _, _, learner, pixels = _picture(SIDE, device)
    sampling = Sampling([pixels], effort.batch, effort.batch, seed=0)
    scales, rates = torch.zeros(effort.steps, dtype=torch.int32), torch.full((effort.steps,), RATE)
    schedule = Schedule(scales, rates, rates)
    return Case(
        TRAIN,
        effort.steps * PIXELS * effort.batch,
        LEARNING,
        CHANNELS,
        lambda o: o.train(geometry, learner, sampling, schedule),
    )


# --- what comes of it ---


def _measure_setting(setting: Setting, effort: Effort) -> Iterator[Measurement]:
    limits = peaks(setting.device, setting.threads)
    variants = _variants(setting.device)
    named = {TRAIN: "training step", f"{RENDER} {effort.rendering}": "rendering"}
    for number, case in enumerate(_cases(effort, setting.device)):
        actions = [peak.action for peak in limits] + [_bound(case, variant) for variant in variants]
        times = interleaved(actions, effort.seconds, setting.clock)
        shortest = dict(zip((peak.name for peak in limits), times, strict=False))
        found = dict(zip((variant.name for variant in variants), times[len(limits) :], strict=True))
        if number == 0:
            yield from _limits(limits, shortest, setting)
        least = {v.name: least_seconds(case, limits, shortest, v.lanes) for v in variants}
        for variant in variants:
            yield from _row(case, variant, setting, found[variant.name], least[variant.name])
        if setting.threads == 1 and case.name in named:
            yield from _summary(named[case.name], variants, found, least)


def least_seconds(case: Case, limits: list[Peak], times: dict[str, Times], lanes: str) -> Times:
    """The times ``[rounds]`` below which no call of a case can stay, from those of the limits' actions.

    Args:
        case: what is called.
        limits: of the machine.
        times: of each limit's action.
        lanes: the instruction set; the first limit of multiply-adds if there is none of that name.
    """
    work = {peak.name: peak.work for peak in limits}
    name = lanes if lanes in work else next(name for name in work if name != COPY)
    computing = case.samples * case.multiply_adds * times[name] / work[name]
    moving = case.samples * case.moved * times[COPY] / work[COPY]
    return np.maximum(computing, moving)


def _limits(limits: list[Peak], times: dict[str, Times], setting: Setting) -> Iterator[Measurement]:
    for peak in limits:
        factor, unit = peak.unit
        speed = factor * peak.work / times[peak.name].min()
        name = peak.name if peak.name == COPY else f"multiply-adds, {peak.name}"
        yield Measurement(f"{name}, {setting.name}", "limit", speed, unit)


def _row(case: Case, variant: Variant, setting: Setting, times: Times, least: Times) -> Iterator[Measurement]:
    name = f"{case.name}, {variant.name}, {setting.name}"
    yield Measurement(name, "throughput", 1e-6 * case.samples / times.min(), "Msamples/s")
    yield Measurement(name, "share of the limit", ratio(least, times).best, "")


def _summary(
    name: str, variants: list[Variant], found: dict[str, Times], least: dict[str, Times]
) -> Iterator[Measurement]:
    """The widest kernel against the reference and against the peak."""
    kernels = [variant.name for variant in variants if variant.lanes]
    if kernels:
        times = found[kernels[0]]
        yield from _ratio_rows(f"{name}, cpu / reference", ratio(found["reference"], times))
        yield from _ratio_rows(f"{name}, fraction of peak", ratio(least[kernels[0]], times))


def _ratio_rows(case: str, found: Ratio) -> Iterator[Measurement]:
    yield Measurement(case, "best", found.best, "")
    yield Measurement(case, "median", found.median, "")


def _two_threads(effort: Effort) -> Iterator[Measurement]:
    case = _training(effort, "cpu")
    kernels = import_module("acorn_svc.field.ops.cpu")

    def on(threads: int) -> Action:
        def run() -> None:
            torch.set_num_threads(threads)
            case.call(kernels)

        return run

    threads = torch.get_num_threads()
    one, two = interleaved([on(1), on(2)], effort.seconds)
    torch.set_num_threads(threads)
    yield from _ratio_rows("training step, two threads / one", ratio(one, two))
