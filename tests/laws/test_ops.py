"""One law for every operation over all back ends: equal to the plain reference, or refused.

How far a result may lie from the reference's: both round, and every term of a sum is off by at most as many
roundings as lie on its way. The same operation on absolute values adds up the magnitudes of all terms, so
the tolerance is that result times epsilon times the number of roundings (Higham 2002, section 3.1). Of ``n``
additions one after the other about ``4 sqrt(n)`` count, for rounding errors are as good as independent
(Higham and Mary 2019).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from _pytest.mark import ParameterSet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_fields import random_features, random_tree, trees
from torch import Tensor

from acorn_svc.field import ops
from acorn_svc.field.geometry import PATCH_SIDE, SLOTS, Geometry, fold, geometry_of
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.ops import reference
from acorn_svc.field.ops.learning import (
    BETAS,
    FEATURES,
    LONGEST_GAP,
    RUN,
    Layer,
    Learned,
    Learner,
    PointSampling,
    Samples,
    Sampling,
    Schedule,
)
from acorn_svc.field.ops.shuffle import mixed, shuffled
from acorn_svc.field.tree import Tree

CELLS = 4
EPSILON = torch.finfo(torch.float32).eps
TILE = 256  # samples that kernels work on together
COUNTS = [0, 1, 7, TILE - 1, TILE, TILE + 1]
CHANNELS = [1, 2, 4, 8]
HIDDEN = [[], [1], [13, 7], [16, 5, 64]]
INTEGERS = {torch.uint8: 255, torch.uint16: 65535}
OPERATIONS = [name for name in vars(ops.Operations) if not name.startswith("_")]

LAWS = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


# --- who is held to the law ---


class Subject(NamedTuple):
    """A back end on a device; of the CPU kernels, one instruction set."""

    row: ops.BackEnd
    device: str
    lanes: str

    def call(self, name: str, *arguments: Any) -> Any:
        """Runs an operation on this device, and brings the result back."""
        return moved(self.function(name)(*moved(arguments, self.device)), "cpu")

    def function(self, name: str) -> Callable[..., Any]:
        return getattr(self.row.operations(), name)

    def train(
        self, geometry: Geometry, learner: Learner, sampling: Sampling | PointSampling, *schedules: Schedule
    ) -> Learner:
        """What becomes of a copy of ``learner``."""
        here = moved(learner, self.device, copy=True)
        name = "train_points" if isinstance(sampling, PointSampling) else "train"
        for schedule in schedules:
            self.function(name)(
                moved(geometry, self.device), here, moved(sampling, self.device), moved(schedule, self.device)
            )
        return moved(here, "cpu")


def moved(value: Any, device: str, copy: bool = False) -> Any:
    """Tensors on a device, in whatever holds them."""
    if isinstance(value, Tensor):
        return value.to(device, copy=copy)
    if isinstance(value, dict):
        return {name: moved(part, device, copy) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(part, device, copy) for part in value))
    if isinstance(value, (list, tuple)):
        return type(value)(moved(part, device, copy) for part in value)
    return value


def _missing(row: ops.BackEnd, device: str) -> str:
    no_device = device == "cuda" and not torch.cuda.is_available()
    return "PyTorch sees no CUDA device" if no_device else row.missing()


def _lanes(row: ops.BackEnd) -> list[str]:
    if row.name != "cpu" or row.missing():
        return [""]
    from acorn_svc import _native

    return _native.lanes()


def _parameters(row: ops.BackEnd, device: str) -> list[ParameterSet]:
    missing = _missing(row, device)
    marks = [pytest.mark.skipif(bool(missing), reason=f"{row.name}: {missing}")]
    marks += [pytest.mark.gpu] if device == "cuda" else []
    return [
        pytest.param(
            Subject(row, device, lanes), id="-".join(filter(None, (row.name, device, lanes))), marks=marks
        )
        for lanes in _lanes(row)
    ]


EVERYONE = [
    parameter for row in ops.TABLE for device in sorted(row.devices) for parameter in _parameters(row, device)
]
COMPARED = [parameter for parameter in EVERYONE if parameter.id != "reference-cpu"]
KERNELS_ON_CPU = [parameter for parameter in EVERYONE if parameter.id.startswith("cpu-")]

everyone = pytest.mark.parametrize("subject", EVERYONE, indirect=True)
compared = pytest.mark.parametrize("subject", COMPARED, indirect=True)
kernels_on_cpu = pytest.mark.parametrize("subject", KERNELS_ON_CPU, indirect=True)


@pytest.fixture
def subject(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Subject:
    if request.param.row.name == "cpu":
        monkeypatch.setattr(request.param.row.operations(), "lanes", request.param.lanes)
    return request.param


@pytest.fixture
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# --- random arguments ---


class Scene(NamedTuple):
    """A lattice and its features."""

    geometry: Geometry
    features: Tensor
    folded: Tensor

    @property
    def dimension(self) -> int:
        return self.geometry.dimension

    @property
    def vertices(self) -> int:
        return len(self.features) - 1

    def size(self, scale: int) -> list[int]:
        """Pixels of a scale per axis, x first."""
        return [-(-blocks * self.geometry.cells >> scale) for blocks in self.geometry.extent]


def scene(tree: Tree, channels: int = 4, seed: int = 0) -> Scene:
    lattice = Lattice.build(tree, CELLS)
    features = random_features(lattice, channels, seed)
    return Scene(geometry_of(lattice), features, fold(lattice, features))


@cache
def flat_scene(channels: int = 4) -> Scene:
    return scene(random_tree((13, 9), 14, seed=3, spare_levels=1), channels)


@cache
def solid_scene(channels: int = 4) -> Scene:
    return scene(random_tree((5, 17, 4), 12, seed=3), channels)


SCENES = {"2D": flat_scene, "3D": solid_scene}
each_dimension = pytest.mark.parametrize("dimension", SCENES)
each_channels = pytest.mark.parametrize("channels", CHANNELS)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_positions(of: Scene, count: int, seed: int = 0) -> Tensor:
    """Positions inside and a little outside; every second one where cells and blocks meet."""
    far = torch.tensor(of.geometry.extent, dtype=torch.float64) * of.geometry.cells
    unit = torch.rand(count, of.dimension, generator=source(seed), dtype=torch.float64)
    positions = (unit * 1.2 - 0.1) * far
    positions[::2] = positions[::2].round()
    positions[::4] = torch.nextafter(positions[::4], torch.zeros(1, dtype=torch.float64))
    return positions


def random_corners(of: Scene, count: int, scale: int, seed: int = 0) -> Tensor:
    """Patches inside the extent, with repeats, and one patch beyond it."""
    axes = [
        torch.randint(0, -(-side // PATCH_SIDE) + 1, (count,), generator=source(seed + axis)) * PATCH_SIDE
        for axis, side in enumerate(of.size(scale))
    ]
    return torch.stack(axes, dim=1)


def random(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Numbers between 0 and 1."""
    return torch.rand(shape, generator=source(seed))


def random_layers(widths: list[int], seed: int = 0) -> list[Layer]:
    generator = source(seed)
    return [
        (
            torch.randn(a, b, generator=generator) / math.sqrt(a),
            0.3 * torch.randn(b, generator=generator) + 0.2,
        )
        for a, b in pairwise(widths)
    ]


def decoder(channels: int, hidden: list[int], outputs: int) -> list[Layer]:
    return random_layers([SLOTS * channels, *hidden, outputs])


# --- how far apart results may be ---


def absolute(value: Any) -> Any:
    """Magnitudes of floating-point tensors, in whatever holds them."""
    if isinstance(value, Tensor):
        return value.abs() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(absolute(part) for part in value)
    return value


def additions(count: int) -> float:
    return min(count, 4 * math.sqrt(count))


def reading_roundings(geometry: Geometry) -> float:
    """Two interpolations along each axis, of three roundings; then the levels are added up."""
    return 6 * geometry.dimension + geometry.depth + 1


def decoding_roundings(layers: list[Layer]) -> float:
    return sum(additions(len(weight) + 1) + 1 for weight, _ in layers)


def agree(actual: Tensor, expected: Tensor, magnitudes: Tensor, roundings: float) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    excess = (actual - expected).abs() - EPSILON * roundings * magnitudes
    assert actual.isfinite().all()
    assert excess.numel() == 0 or float(excess.max()) <= 0, f"{float(excess.max()):.3g} too far"


def clear(inputs: Tensor, magnitudes: Tensor, layers: list[Layer], roundings: float = 0) -> Tensor:
    """``bool [n]``: samples all of whose hidden units are surely active or surely not.

    The gradient of others depends on how their zero was rounded.
    """
    result = torch.ones(len(inputs), dtype=torch.bool)
    for count in range(1, len(layers)):
        below = layers[:count]
        error = (
            EPSILON * (roundings + decoding_roundings(below)) * reference.decode(magnitudes, absolute(below))
        )
        result &= (reference.decode(inputs, below).abs() > error).all(dim=1)
    return result


def clear_pixels(of: Scene, layers: list[Layer], corners: Tensor, scale: int) -> Tensor:
    """``bool [n, pixels]`` for the pixels of patches; see :func:`clear`."""
    inputs = reference.encode_patches(of.geometry, of.features, corners, scale)
    magnitudes = reference.encode_patches(of.geometry, of.features.abs(), corners, scale)
    rows = clear(inputs.flatten(0, 1), magnitudes.flatten(0, 1), layers, reading_roundings(of.geometry))
    return rows.reshape(inputs.shape[:2])


# --- where a point lies, and what is read there ---


@compared
@LAWS
@given(trees(), st.sampled_from(CHANNELS), st.sampled_from(COUNTS), st.integers(0, 2**32))
def test_points(subject: Subject, tree: Tree, channels: int, count: int, seed: int) -> None:
    of = scene(tree, channels, seed)
    positions = random_positions(of, count, seed)
    leaves = subject.call("locate", of.geometry, positions)
    assert torch.equal(leaves, reference.locate(of.geometry, positions))
    for scale in range(tree.depth + 1):
        for folded in (None, of.folded):
            check_encoding(subject, "encode_points", of, positions, scale, folded)


@compared
@LAWS
@given(trees(), st.sampled_from(CHANNELS), st.sampled_from([0, 1, 3, 16, 17, 33]), st.integers(0, 2**32))
def test_patches(subject: Subject, tree: Tree, channels: int, count: int, seed: int) -> None:
    of = scene(tree, channels, seed)
    for scale in range(tree.depth + 1):
        for folded in (None, of.folded):
            corners = random_corners(of, count, scale, seed)
            check_encoding(subject, "encode_patches", of, corners, scale, folded)


def check_encoding(
    subject: Subject, name: str, of: Scene, places: Tensor, scale: int, folded: Tensor | None
) -> None:
    arguments = (of.geometry, of.features, places, scale, folded)
    expected = getattr(reference, name)(*arguments)
    magnitudes = encoded_magnitudes(name, of, places, scale, folded)
    agree(subject.call(name, *arguments), expected, magnitudes, reading_roundings(of.geometry))


def encoded_magnitudes(name: str, of: Scene, places: Tensor, scale: int, folded: Tensor | None) -> Tensor:
    """Of points the largest feature too: where in a cell they lie, and so every weight, is rounded."""
    positive = None if folded is None else folded.abs()
    magnitudes = getattr(reference, name)(of.geometry, of.features.abs(), places, scale, positive)
    return magnitudes + of.features.abs().max() * (name == "encode_points")


@compared
@each_dimension
@each_channels
def test_gradients_of_reading(subject: Subject, dimension: str, channels: int) -> None:
    of = SCENES[dimension](channels)
    for scale in range(of.geometry.depth + 1):
        count = COUNTS[scale % len(COUNTS)]
        check_gradient(subject, "encode_points", of, random_positions(of, count), scale)
        check_gradient(subject, "encode_patches", of, random_corners(of, count // 4, scale), scale)


def check_gradient(subject: Subject, name: str, of: Scene, places: Tensor, scale: int) -> None:
    shape = getattr(reference, name)(of.geometry, of.features, places, scale).shape
    gradient = torch.randn(shape, generator=source())
    backward = getattr(reference, f"{name}_backward")
    expected = backward(of.geometry, gradient, places, scale)
    actual = subject.call(f"{name}_backward", of.geometry, gradient, places, scale)
    magnitudes = backward(of.geometry, gradient.abs(), places, scale)
    if name == "encode_points" and len(gradient):
        magnitudes += gradient.abs().max()
    roundings = reading_roundings(of.geometry) + additions(math.prod(shape[:-1]))
    agree(actual, expected, magnitudes, roundings)
    assert not actual[0].any()


# --- the decoder ---


@compared
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_decoder(subject: Subject, hidden: list[int], count: int) -> None:
    for inputs, outputs in ((5, 1), (10, 2), (20, 3), (40, 4), (3, 9)):
        layers = random_layers([inputs, *hidden, outputs])
        values = torch.randn(count, inputs, generator=source())
        expected = reference.decode(values, layers)
        magnitudes = reference.decode(values.abs(), absolute(layers))
        agree(subject.call("decode", values, layers), expected, magnitudes, decoding_roundings(layers))
        check_decoder_gradient(subject, values, layers)


def check_decoder_gradient(subject: Subject, values: Tensor, layers: list[Layer]) -> None:
    certain = clear(values, values.abs(), layers)
    assert len(values) == 0 or certain.float().mean() > 0.9
    gradient = torch.randn(len(values), len(layers[-1][1]), generator=source(1)) * certain[:, None]
    expected = reference.decode_backward(values, layers, gradient)
    actual = subject.call("decode_backward", values, layers, gradient)
    magnitudes = reference.decode_backward(values.abs(), absolute(layers), gradient.abs())
    roundings = 2 * decoding_roundings(layers) + additions(len(values))
    backwards = sum(additions(len(bias)) for _, bias in layers)
    agree(actual[0], expected[0], magnitudes[0], roundings + backwards)
    compare_layers(actual[1], expected[1], magnitudes[1], roundings + backwards)


def compare_layers(
    actual: list[Layer], expected: list[Layer], magnitudes: list[Layer], roundings: float
) -> None:
    assert len(actual) == len(expected)
    for mine, plain, bound in zip(actual, expected, magnitudes, strict=True):
        agree(mine[0], plain[0], bound[0], roundings)
        agree(mine[1], plain[1], bound[1], roundings)


# --- looking ---


@compared
@each_dimension
@each_channels
def test_values_at_points(subject: Subject, dimension: str, channels: int) -> None:
    of = SCENES[dimension](channels)
    for scale in range(of.geometry.depth + 1):
        layers = decoder(channels, HIDDEN[scale % len(HIDDEN)], 1 + scale % 4)
        positions = random_positions(of, COUNTS[-1 - scale % len(COUNTS)])
        for folded in (None, of.folded):
            arguments = [of.geometry, of.features, folded, layers, positions, scale]
            expected = reference.render_points(*arguments)
            encoded = encoded_magnitudes("encode_points", of, positions, scale, folded)
            magnitudes = reference.decode(encoded, absolute(layers))
            roundings = reading_roundings(of.geometry) + decoding_roundings(layers)
            agree(subject.call("render_points", *arguments), expected, magnitudes, roundings)


REGIONS = [(0, 0, 1, 1), (3, 2, 21, 30), (15, 1, 19, 34), (16, 16, 16, 16), (0, 0, 52, 36), (50, 33, 9, 8)]


@compared
@pytest.mark.parametrize("region", REGIONS, ids=str)
def test_pictures(subject: Subject, region: tuple[int, int, int, int]) -> None:
    for number, scale in enumerate(range(flat_scene().geometry.depth + 1)):
        of = flat_scene(CHANNELS[number % len(CHANNELS)])
        layers = decoder(CHANNELS[number % len(CHANNELS)], HIDDEN[number % len(HIDDEN)], 1 + number % 4)
        for folded in (None, of.folded):
            arguments = (of.geometry, of.features, folded, layers, scale, region)
            expected = reference.render_image(*arguments)
            assert expected.shape == (region[3], region[2], 1 + number % 4)
            magnitudes = reference.render_image(of.geometry, *absolute(arguments[1:4]), scale, region)
            roundings = reading_roundings(of.geometry) + decoding_roundings(layers)
            agree(subject.call("render_image", *arguments), expected, magnitudes, roundings)


@everyone
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("outputs", [1, 2, 3, 4])
def test_pictures_of_integers_are_clipped_and_of_straight_alpha(
    subject: Subject, outputs: int, dtype: torch.dtype
) -> None:
    of, layers, region = flat_scene(), decoder(4, [12], outputs), (3, 2, 45, 31)
    exact = reference.render_image(of.geometry, of.features, of.folded, layers, 0, region)
    positive = absolute([of.features, of.folded, layers])
    magnitudes = reference.render_image(of.geometry, *positive, 0, region)
    tolerance = EPSILON * (reading_roundings(of.geometry) + decoding_roundings(layers)) * magnitudes.double()
    values, certain = exact.double().clamp(0, 1), torch.ones(exact.shape[:2], dtype=torch.bool)
    if outputs in (2, 4):
        opacity = values[..., -1:].clone()
        visible = opacity > reference.LEAST_ALPHA
        certain = ((opacity - reference.LEAST_ALPHA).abs() > 2 * tolerance[..., -1:])[..., 0]
        tolerance[..., :-1] += tolerance[..., -1:]
        tolerance[..., :-1] /= opacity.clamp(min=reference.LEAST_ALPHA)
        values[..., :-1] = torch.where(visible, values[..., :-1] / opacity, 0.0).clamp(0, 1)
        assert 0.05 < visible.double().mean() < 0.95
    assert certain.double().mean() > 0.9
    top = INTEGERS[dtype]
    arguments = (of.geometry, of.features, of.folded, layers, 0, region, dtype)
    actual = subject.call("render_image", *arguments)
    assert actual.dtype == dtype
    difference = (actual.double() - values * top).abs()[certain]
    assert (difference <= 0.5 + top * tolerance[certain]).all()
    assert len(actual.unique()) > 50


# --- learning ---


@compared
@each_dimension
@each_channels
def test_loss_and_gradients_of_patches(subject: Subject, dimension: str, channels: int) -> None:
    of = SCENES[dimension](channels)
    for scale in range(of.geometry.depth + 1):
        hidden, outputs = HIDDEN[scale % len(HIDDEN)], 1 + scale % 4
        count = [33, 17, 16, 4, 1, 0][scale % 6]
        check_learning(
            subject, of, decoder(channels, hidden, outputs), random_corners(of, count, scale), scale
        )


def check_learning(subject: Subject, of: Scene, layers: list[Layer], corners: Tensor, scale: int) -> None:
    pixels = (len(corners), PATCH_SIDE**of.dimension)
    truth = random((*pixels, len(layers[-1][1])))
    weights = (random(pixels, 1) > 0.2) * random(pixels, 2)
    weights = weights * clear_pixels(of, layers, corners, scale)
    expected = reference.learn(of.geometry, of.features, layers, corners, scale, truth, weights)
    actual = subject.call("learn", of.geometry, of.features, layers, corners, scale, truth, weights)
    bound = learning_bound(of, layers, corners, scale, truth, weights)
    roundings = learning_roundings(of, layers, math.prod(pixels))
    agree(actual.errors, expected.errors, bound.errors, roundings)
    agree(actual.features, expected.features, bound.features, roundings)
    compare_layers(actual.layers, expected.layers, bound.layers, roundings)
    assert not actual.features[0].any()


def learning_bound(
    of: Scene, layers: list[Layer], corners: Tensor, scale: int, truth: Tensor, weights: Tensor
) -> Learned:
    """Magnitudes of what :func:`reference.learn` sums up: its differences become sums."""
    features, layers = of.features.abs(), absolute(layers)
    return reference.learn(of.geometry, features, layers, corners, scale, -truth.abs(), weights)


def learning_roundings(of: Scene, layers: list[Layer], samples: int) -> float:
    there_and_back = 2 * reading_roundings(of.geometry) + 2 * decoding_roundings(layers)
    return there_and_back + sum(additions(len(bias)) for _, bias in layers) + additions(samples) + 4


# --- the fused training step ---

SIZE = (51, 35)
PATCHES, COARSE_PATCHES = 37, 5
STEPS = 47  # so far


def picture(width: int, height: int, channels: int, dtype: torch.dtype, seed: int) -> Tensor:
    image = random((height, width, channels), seed)
    return (image * INTEGERS[dtype]).to(dtype) if dtype in INTEGERS else image


def pyramid(size: tuple[int, int], scales: int, outputs: int, dtypes: list[torch.dtype]) -> list[Tensor]:
    """A picture for each scale, whose sides are no multiples of a patch's."""
    sides = [tuple(-(-side >> scale) for side in size) for scale in range(scales)]
    return [
        picture(width, height, outputs, dtypes[scale % len(dtypes)], scale)
        for scale, (width, height) in enumerate(sides)
    ]


MIXED = [torch.uint8, torch.uint16, torch.float32]


def sampling(of: Scene, outputs: int, size: tuple[int, int] = SIZE, seed: int = 5) -> Sampling:
    images = pyramid(size, of.geometry.depth + 1, outputs, MIXED)
    return Sampling(images, PATCHES, COARSE_PATCHES, seed)


def new_learner(of: Scene, hidden: list[int], outputs: int) -> Learner:
    scales, widths = of.geometry.depth + 1, [SLOTS * of.features.shape[1], *hidden, outputs]
    parameters = {FEATURES: of.features.clone()}
    for scale in range(scales):
        for number, (weight, bias) in enumerate(random_layers(widths, scale)):
            for name, values in ((f"decoder.{number}.weight", weight), (f"decoder.{number}.bias", bias)):
                parameters.setdefault(name, torch.empty(scales, *values.shape))[scale] = values
    return Learner(
        parameters,
        {name: torch.zeros_like(values) for name, values in parameters.items() if name != FEATURES},
        {name: torch.zeros_like(values) for name, values in parameters.items()},
        torch.zeros(len(of.features)),
        torch.zeros_like(of.features),
        torch.zeros(1),
        torch.zeros(scales),
        torch.zeros(scales, dtype=torch.int64),
        torch.zeros(2, of.geometry.nodes, dtype=torch.float64),
    )


def old_learner(of: Scene, hidden: list[int], outputs: int) -> Learner:
    """One that has learned for a while: its moments are not small, so steps depend smoothly on gradients."""
    learner, generator = new_learner(of, hidden, outputs), source(7)
    for name, second in learner.second.items():
        second += 1e-2 * (0.5 + torch.rand(second.shape, generator=generator))
        if name in learner.first:
            learner.first[name] += 5e-2 * (torch.rand(second.shape, generator=generator) - 0.5)
    learner.second[FEATURES][0] = 0
    learner.last.copy_(torch.randint(0, STEPS + 1, learner.last.shape, generator=generator))
    learner.encoder_steps.fill_(STEPS)
    learner.decoder_steps.copy_(torch.randint(0, STEPS, learner.decoder_steps.shape, generator=generator))
    learner.drawn.copy_(torch.randint(0, 1000, learner.drawn.shape, generator=generator))
    learner.errors.copy_(random(learner.errors.shape))
    return learner


def schedule(*scales: int) -> Schedule:
    rates = torch.linspace(1e-2, 5e-3, len(scales))
    return Schedule(torch.tensor(scales, dtype=torch.int32), rates, rates / 2)


def same_counters(actual: Learner, expected: Learner) -> None:
    assert torch.equal(actual.encoder_steps, expected.encoder_steps)
    assert torch.equal(actual.decoder_steps, expected.decoder_steps)
    assert torch.equal(actual.drawn, expected.drawn)
    assert torch.equal(actual.last, expected.last)
    assert torch.equal(actual.errors[1], expected.errors[1])
    assert not actual.scratch.any()


def same_learners(actual: Learner, expected: Learner) -> None:
    for mine, other in zip(flat_tensors(actual), flat_tensors(expected), strict=True):
        assert torch.equal(mine, other)


def flat_tensors(learner: Learner) -> list[Tensor]:
    tables = [table[name] for table in learner.tables for name in sorted(table)]
    return [*tables, *(part for part in learner if isinstance(part, Tensor))]


class Noise(NamedTuple):
    """How far the gradients of one step may be off, by the name of the parameter."""

    squares: Tensor
    gradients: dict[str, Tensor]


def step_noise(of: Scene, learner: Learner, sampled: Sampling, scale: int) -> Noise:
    corners = reference.draw_patches(learner, sampled, scale)
    truth, weights = reference.read_patches(sampled.pyramid[scale], corners)
    layers = learner.layers(scale)
    assert clear_pixels(of, layers, corners, scale).all()
    bound = learning_bound(of, layers, corners, scale, truth, weights)
    factor = EPSILON * learning_roundings(of, layers, weights.numel())
    gradients = {FEATURES: bound.features * factor}
    for number, (weight, bias) in enumerate(bound.layers):
        gradients[f"decoder.{number}.weight"] = weight * factor
        gradients[f"decoder.{number}.bias"] = bias * factor
    return Noise(bound.errors * factor, gradients)


def check_moved(
    actual: Learner, expected: Learner, name: str, part: Any, noise: Tensor, rate: float, count: Tensor
) -> None:
    """One parameter after one step whose gradient was off by ``noise``.

    The second moment ``m`` moves by ``(1 - b) 2 g`` of it, at most ``2 sqrt((1 - b) m)``; the step by less
    than twice ``rate / root``.
    """
    value, second = expected.parameters[name][part], expected.second[name][part]
    root = (second / (1 - BETAS[1] ** count)).sqrt() + 1e-12
    of_second = 2 * ((1 - BETAS[1]) * second).sqrt() * noise + (LONGEST_GAP + 4) * EPSILON * second
    of_value = 2 * rate * noise / root + 2 * EPSILON * value.abs() + (LONGEST_GAP + 8) * EPSILON * rate
    assert ((actual.second[name][part] - second).abs() <= of_second + 1e-30).all(), name
    assert ((actual.parameters[name][part] - value).abs() <= of_value).all(), name
    if name in expected.first:
        first = expected.first[name][part]
        of_first = (1 - BETAS[0]) * noise + 4 * EPSILON * first.abs()
        assert ((actual.first[name][part] - first).abs() <= of_first + 1e-30).all(), name


@compared
@each_channels
@pytest.mark.parametrize("scale", range(5))
def test_one_step_of_training(subject: Subject, channels: int, scale: int) -> None:
    of, hidden, outputs = flat_scene(channels), HIDDEN[scale % 3], 1 + scale % 4
    learner, sampled, plan = old_learner(of, hidden, outputs), sampling(of, outputs), schedule(scale)
    noise = step_noise(of, learner, sampled, scale)
    actual = subject.train(of.geometry, learner, sampled, plan)
    expected = moved(learner, "cpu", copy=True)
    reference.train(of.geometry, expected, sampled, plan)
    same_counters(actual, expected)
    for name, gradient_noise in noise.gradients.items():
        features = name == FEATURES
        part = slice(None) if features else scale
        rates, counts = (
            (plan.encoder_rates, expected.encoder_steps)
            if features
            else (plan.decoder_rates, expected.decoder_steps[scale])
        )
        check_moved(actual, expected, name, part, gradient_noise, float(rates[0]), counts)
    total = float(noise.squares.sum()) + 1e-12
    assert (actual.errors[0] - expected.errors[0]).abs().max() <= total
    assert (actual.errors[0] != learner.errors[0]).any() == (scale == 0)


@compared
def test_one_step_leaves_other_scales_and_rows_alone(subject: Subject) -> None:
    of = flat_scene()
    learner, sampled = old_learner(of, [13], 3), sampling(of, 3)
    actual = subject.train(of.geometry, learner, sampled, schedule(2))
    read = reference.learn_rows(of.geometry, reference.draw_patches(learner, sampled, 2), 2)
    others = torch.ones(len(of.features), dtype=torch.bool).index_fill(0, read, value=False)
    assert 0 < len(read) < len(of.features) - 1
    assert torch.equal(actual.parameters[FEATURES][others], learner.parameters[FEATURES][others])
    assert torch.equal(actual.second[FEATURES][others], learner.second[FEATURES][others])
    assert (actual.last[read] == STEPS + 1).all()
    for name in learner.first:
        for table, before in zip(actual.tables, learner.tables, strict=True):
            assert torch.equal(table[name][[0, 1, 3]], before[name][[0, 1, 3]])
            assert not torch.equal(table[name][2], before[name][2])


SEVERAL = schedule(0, 3, 1, 0, 0, 2, 5, 1)


@compared
@pytest.mark.parametrize("start", [old_learner, new_learner], ids=["old", "new"])
@pytest.mark.parametrize("size", [SIZE, (3, 2), (1, 9)], ids=str)
def test_several_steps_of_training(
    subject: Subject, size: tuple[int, int], start: Callable[..., Learner]
) -> None:
    """Loosely: steps of a fresh learner are as long for a tiny gradient as for a large one."""
    of = flat_scene()
    learner, sampled = start(of, [13, 7], 3), sampling(of, 3, size)
    actual = subject.train(of.geometry, learner, sampled, SEVERAL)
    expected = moved(learner, "cpu", copy=True)
    reference.train(of.geometry, expected, sampled, SEVERAL)
    same_counters(actual, expected)
    torch.testing.assert_close(actual.errors[0], expected.errors[0], rtol=1e-4, atol=1e-6)
    for table, plain, before in zip(actual.tables, expected.tables, learner.tables, strict=True):
        for name in plain:
            way = (plain[name] - before[name]).double().norm()
            assert way > 0
            assert (table[name] - plain[name]).double().norm() <= 1e-3 * way, name


@compared
def test_no_steps_change_nothing(subject: Subject) -> None:
    of = flat_scene()
    learner = old_learner(of, [13], 3)
    same_learners(subject.train(of.geometry, learner, sampling(of, 3), schedule()), learner)


@everyone
def test_one_call_equals_two(subject: Subject) -> None:
    of = flat_scene()
    learner, sampled = new_learner(of, [13, 7], 3), sampling(of, 3)
    halves = [Schedule(*(part[piece] for part in SEVERAL)) for piece in (slice(3), slice(3, None))]
    once = subject.train(of.geometry, learner, sampled, SEVERAL)
    same_learners(subject.train(of.geometry, learner, sampled, *halves), once)


@kernels_on_cpu
@pytest.mark.usefixtures("restored_threads")
def test_results_do_not_depend_on_how_many_threads_there_are(subject: Subject) -> None:
    of = flat_scene()
    layers, corners = decoder(4, [13], 3), random_corners(of, 100, 0)
    learner, sampled = new_learner(of, [13], 3), sampling(of, 3)
    truth = random((100, 16, 3))

    def everything() -> list[Tensor]:
        positions = random_positions(of, 1500)
        encoded = subject.call("encode_points", of.geometry, of.features, positions, 0)
        learned = subject.call(
            "learn", of.geometry, of.features, layers, corners, 0, truth, torch.ones(100, 16)
        )
        return [
            encoded,
            subject.call("encode_patches", of.geometry, of.features, corners, 0),
            subject.call("decode", encoded, layers),
            subject.call("render_points", of.geometry, of.features, None, layers, positions, 0),
            subject.call("render_image", of.geometry, of.features, None, layers, 0, (1, 1, 50, 33)),
            learned.errors,
            learned.features,
            *(tensor for layer in learned.layers for tensor in layer),
            *flat_tensors(subject.train(of.geometry, learner, sampled, SEVERAL)),
        ]

    torch.set_num_threads(1)
    alone = everything()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for mine, other in zip(everything(), alone, strict=True):
            assert torch.equal(mine, other)


# --- the order of patches ---


@pytest.mark.parametrize("key", [0, 1, 0x9E3779B97F4A7C15])
def test_shuffled_is_a_permutation(key: int) -> None:
    for count in (*range(1, 70), 255, 256, 257, 1000, 4096, 4097):
        places = shuffled(torch.arange(count), count, key)
        assert torch.equal(places.sort().values, torch.arange(count))


def test_another_key_is_another_order() -> None:
    orders = [tuple(shuffled(torch.arange(100), 100, mixed(key)).tolist()) for key in range(20)]
    assert len(set(orders)) == 20
    assert tuple(range(100)) not in orders


def test_the_mixer_is_splitmix64() -> None:
    # the first numbers of the published generator, seeded with 0
    gamma = 0x9E3779B97F4A7C15
    assert [mixed(0), mixed(gamma)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@everyone
def test_every_patch_comes_once_before_any_comes_again(subject: Subject) -> None:
    of = flat_scene()
    width, height = SIZE
    available = -(-width // PATCH_SIDE) * -(-height // PATCH_SIDE)
    assert available % 9 == 0
    learner = new_learner(of, [], 3)
    sampled = sampling(of, 3)._replace(patches=9)
    turn = schedule(*[0] * (available // 9))
    pixels = torch.zeros(of.geometry.nodes, dtype=torch.float64)
    for y in range(height):
        row = torch.stack([torch.arange(width) + 0.5, torch.full((width,), y + 0.5)], dim=1).double()
        pixels += torch.bincount(reference.locate(of.geometry, row).long(), minlength=of.geometry.nodes)
    for turns in (1, 2):
        learner = subject.train(of.geometry, learner, sampled, turn)
        assert torch.equal(learner.errors[1], turns * pixels)
        assert int(learner.drawn[0]) == turns * available


# --- what is refused ---


def some_points(count: int, dimension: int = 2) -> Samples:
    """For where the values do not matter."""
    return Samples(30 * random((count, dimension)), random((count, 3), 1))


def valid_arguments(name: str) -> dict[str, Any]:
    """Arguments that an operation takes."""
    of = flat_scene()
    layers, corners = decoder(4, [13], 3), random_corners(of, 6, 1)
    choices: dict[str, Any] = {
        "geometry": of.geometry,
        "features": of.features,
        "folded": of.folded,
        "positions": random_positions(of, 6),
        "corners": corners,
        "scale": 1,
        "vertices": of.vertices,
        "layers": layers,
        "inputs": random((6, 20)),
        "region": (1, 2, 5, 4),
        "dtype": torch.uint8,
        "truth": random((6, 16, 3)),
        "weights": torch.ones(6, 16),
        "learner": old_learner(of, [13], 3),
        "sampling": sampling(of, 3),
        "schedule": schedule(0, 1),
        "gradient": {
            "encode_points_backward": random((6, 20)),
            "encode_patches_backward": random((6, 16, 20)),
            "decode_backward": random((6, 3)),
        }.get(name),
        "loss": "distance",
    }
    if name == "learn_points":
        choices |= some_points(6)._asdict()
    if name == "train_points":
        choices["sampling"] = PointSampling([some_points(3 * RUN), some_points(RUN)], 2, 1, 5, "distance")
    return {
        argument: choices[argument] for argument in inspect.signature(getattr(reference, name)).parameters
    }


def strided(values: Tensor) -> Tensor:
    return torch.stack([values, values], dim=-1)[..., 0]


def other_dtype(values: Tensor) -> Tensor:
    return values.to(
        {torch.float32: torch.float64, torch.float64: torch.float32}.get(values.dtype, torch.int16)
    )


TENSORS = [
    (name, argument)
    for name in OPERATIONS
    for argument, value in valid_arguments(name).items()
    if isinstance(value, Tensor)
]
UNFIT = {
    "dtype": (other_dtype, TypeError, "expected"),
    "strides": (strided, ValueError, "contiguous"),
    "list": (Tensor.tolist, TypeError, "expected"),
    "numpy": (Tensor.numpy, TypeError, "expected"),
}


@everyone
@pytest.mark.parametrize("name", OPERATIONS)
def test_valid_arguments_are_taken(subject: Subject, name: str) -> None:
    subject.call(name, *valid_arguments(name).values())


@everyone
@pytest.mark.parametrize(("name", "argument"), TENSORS)
def test_unfit_tensors_are_refused(subject: Subject, name: str, argument: str) -> None:
    for change, error, message in UNFIT.values():
        arguments = moved(valid_arguments(name), subject.device)
        arguments[argument] = (
            change(arguments[argument].cpu()) if change is Tensor.numpy else change(arguments[argument])
        )
        with pytest.raises(error, match=f"{argument}: .*{message}"):
            subject.function(name)(**arguments)


def wider(values: Tensor) -> Tensor:
    return torch.cat([values, values[..., -1:]], dim=-1).contiguous()


def longer(values: Tensor) -> Tensor:
    return torch.cat([values, values[-1:]])


def each_part(*names: str) -> list[tuple[str, str]]:
    return [
        (name, argument) for name in OPERATIONS for argument in names if argument in valid_arguments(name)
    ]


def changed(**parts: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Changes fields of a named tuple."""
    return lambda value: value._replace(
        **{name: change(getattr(value, name)) for name, change in parts.items()}
    )


def in_table(
    name: str, change: Callable[[Tensor], Tensor]
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda table: {**table, name: change(table[name])}


def always(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def in_samples(**parts: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Changes fields of the samples of the coarser scale."""
    return changed(samples=lambda samples: [samples[0], changed(**parts)(samples[1])])


TRAINING = ("train", "train_points")
NOTHING_THERE = "scales: there is nothing to learn from at that scale"
BEYOND = ((0, 6), (-1, 0))

MISSHAPEN: list[tuple[str, str, Callable[[Any], Any], str]] = [
    *((*where, always(-1), "scale") for where in each_part("scale")),
    *((*where, always(99), "scale: expected 0 to 5, got 99") for where in each_part("scale")),
    *((*where, wider, f"{where[1]}: expected") for where in each_part("positions", "corners", "folded")),
    *(
        (*where, Tensor.flatten, f"{where[1]}: expected")
        for where in each_part("features", "positions", "corners")
    ),
    *((*where, wider, "layers: expected") for where in each_part("inputs")),
    *((*where, always([]), "layers: expected 1 to 8, got 0") for where in each_part("layers")),
    *((*where, lambda pairs: pairs[1:], "layers: expected") for where in each_part("layers")),
    *(
        (
            *where,
            lambda pairs: [pairs[0], *[(torch.ones(13, 13), torch.ones(13))] * 7, pairs[1]],
            "1 to 8, got 9",
        )
        for where in each_part("layers")
    ),
    *(
        (*where, change, f"{where[1]}: expected")
        for where in each_part("gradient", "truth", "weights")
        for change in (wider, longer, Tensor.flatten)
    ),
    ("render_image", "region", always((-1, 0, 3, 3)), "region"),
    ("render_image", "region", always((0, -1, 3, 3)), "region"),
    ("render_image", "region", always((0, 0, 0, 3)), "region"),
    ("render_image", "region", always((0, 0, 3, -3)), "region"),
    ("render_image", "geometry", always(solid_scene().geometry), "pictures"),
    ("render_image", "layers", always(decoder(4, [], 5)), "1 to 4"),
    ("train", "geometry", always(solid_scene().geometry), "pictures"),
    *(
        (name, "learner", change, message)
        for name in TRAINING
        for change, message in (
            (changed(last=longer), "last: expected"),
            (changed(last=strided), "last: expected a contiguous"),
            (changed(scratch=wider), "scratch: expected"),
            (changed(encoder_steps=longer), "encoder_steps: expected"),
            (changed(decoder_steps=longer), "decoder_steps: expected"),
            (changed(drawn=longer), "drawn: expected"),
            (changed(errors=wider), "errors: expected"),
            (changed(second=in_table(FEATURES, longer)), "encoder.features: "),
            (changed(first=in_table("decoder.1.bias", longer)), "decoder.1.bias: "),
            (changed(parameters=in_table("decoder.0.weight", strided)), "decoder.0.weight: "),
        )
    ),
    ("train", "sampling", changed(patches=always(0)), "patches"),
    ("train", "sampling", changed(coarse_patches=always(-1)), "patches"),
    ("train", "sampling", changed(seed=always(-1)), "seed"),
    ("train", "sampling", changed(pyramid=always([torch.rand(8, 8, 4)])), "pyramid: expected"),
    ("train", "sampling", changed(pyramid=always([torch.rand(0, 8, 3)])), "pyramid: expected"),
    ("train", "sampling", changed(pyramid=lambda images: images[:1]), NOTHING_THERE),
    ("train_points", "geometry", always(solid_scene().geometry), "expected"),
    ("train_points", "sampling", changed(runs=always(0)), "runs"),
    ("train_points", "sampling", changed(coarse_runs=always(-1)), "runs"),
    ("train_points", "sampling", changed(seed=always(-1)), "seed"),
    ("train_points", "sampling", changed(loss=always("squares")), "loss: expected one of distance, occ"),
    ("train_points", "sampling", changed(samples=lambda samples: samples[:1]), NOTHING_THERE),
    *(
        ("train_points", "sampling", in_samples(**{part: change}), message)
        for part, change, message in (
            ("positions", wider, "positions: expected"),
            ("positions", strided, "positions: expected a contiguous"),
            ("positions", longer, "truth: expected"),
            ("truth", wider, "truth: expected"),
            ("truth", longer, "truth: expected"),
            ("truth", strided, "truth: expected a contiguous"),
        )
    ),
    *(
        ("train_points", "sampling", changed(samples=always([some_points(count)] * 2)), "a multiple of 32")
        for count in (0, 1, RUN - 1, RUN + 1)
    ),
    ("train_points", "sampling", changed(samples=always([some_points(RUN, 3)])), "positions: expected"),
    *((name, "schedule", always(schedule(*scales)), NOTHING_THERE) for name in TRAINING for scales in BEYOND),
    *((name, "schedule", changed(decoder_rates=longer), "scales and rates") for name in TRAINING),
    ("learn_points", "loss", always("squares"), "loss: expected one of distance, occupancy"),
    ("learn_points", "layers", always(decoder(4, [13], 2)), "truth: expected"),
    ("learn_points", "geometry", always(solid_scene().geometry), "expected"),
]

MISTYPED: list[tuple[str, str, Callable[[Any], Any], str]] = [
    *(("render_image", "dtype", always(dtype), "dtype: expected") for dtype in (torch.float64, torch.int32)),
    *(
        (operation, "learner", changed(**{name: other_dtype}), f"{name}: expected")
        for operation in TRAINING
        for name in ("last", "scratch", "encoder_steps", "decoder_steps", "drawn", "errors")
    ),
    *(
        (name, argument, change, message)
        for name in TRAINING
        for argument, change, message in (
            ("learner", changed(second=in_table("decoder.0.bias", other_dtype)), "decoder.0.bias: expected"),
            ("schedule", changed(scales=Tensor.long), "scales: expected"),
            ("schedule", changed(encoder_rates=Tensor.double), "encoder_rates: expected"),
        )
    ),
    ("train", "sampling", changed(pyramid=always([torch.rand(8, 8, 3).double()])), "pyramid: expected"),
    ("train_points", "sampling", in_samples(positions=Tensor.double), "positions: expected float32"),
    ("train_points", "sampling", in_samples(truth=Tensor.double), "truth: expected float32"),
    ("train_points", "sampling", in_samples(truth=Tensor.tolist), "truth: expected a tensor"),
]


REFUSED = [
    pytest.param(*case, error, id=f"{case[0]}-{case[1]}-{number}")
    for error, cases in ((ValueError, MISSHAPEN), (TypeError, MISTYPED))
    for number, case in enumerate(cases)
]


@everyone
@pytest.mark.parametrize(("name", "argument", "change", "message", "error"), REFUSED)
def test_what_does_not_fit_is_refused(
    subject: Subject,
    name: str,
    argument: str,
    change: Callable[[Any], Any],
    message: str,
    error: type[Exception],
) -> None:
    arguments = moved(valid_arguments(name), subject.device)
    arguments[argument] = change(arguments[argument])
    with pytest.raises(error, match=message):
        subject.call(name, *arguments.values())


# --- which back end does the work ---


def test_every_back_end_has_the_signatures_of_the_reference() -> None:
    assert set(OPERATIONS) <= set(ops.__all__)
    for module in [ops, *(row.operations() for row in ops.TABLE if not row.missing())]:
        for name in OPERATIONS:
            expected = inspect.signature(getattr(reference, name))
            assert inspect.signature(getattr(module, name)) == expected, name


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_the_chosen_back_end(name: str) -> None:
    mine, chosen = valid_arguments(name), valid_arguments(name)
    result = getattr(ops, name)(**mine)
    expected = getattr(ops.choose("cpu"), name)(**chosen)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    torch.testing.assert_close(mine.get("learner"), chosen.get("learner"), rtol=0, atol=0)


def test_availability_gives_a_reason_for_everything_absent() -> None:
    records = ops.available()
    assert [record.name for record in records] == ["cuda", "cpu", "reference"]
    assert records[-1].available
    assert all(record.available == (record.reason == "") for record in records)


def test_without_a_native_module_the_reference_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_installed", lambda module: False)
    assert ops.choose.__wrapped__("cpu") is ops.TABLE[-1].operations()
    (record,) = [record for record in ops.available() if record.name == "cpu"]
    assert not record.available
    assert "compiler" in record.reason


def test_an_unknown_device_gets_the_reference() -> None:
    assert ops.choose.__wrapped__("mps") is ops.TABLE[-1].operations()
