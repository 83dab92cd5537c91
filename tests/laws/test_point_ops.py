"""The law of all operations (``test_ops.py``), for learning from points.

The gradient of an absolute difference is its sign, which jumps where output equals truth: no truth of these
tests lies within the roundings of the output, as no hidden unit lies within those of zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import pytest
import test_ops as law
import torch
from test_ops import CHANNELS, HIDDEN, TILE, Noise, Scene, Subject, decoder, source
from torch import Tensor

from acorn_svc.field.ops import reference
from acorn_svc.field.ops.learning import (
    FEATURES,
    RUN,
    Layer,
    Learned,
    Learner,
    Loss,
    PointSampling,
    Samples,
    Schedule,
)
from acorn_svc.field.ops.points import draw_points, errors_of, rows_under
from acorn_svc.field.ops.reference import _decode, _points

subject = law.subject
restored_threads = law.restored_threads

LOSSES: tuple[Loss, ...] = ("distance", "occupancy")
COUNTS = [TILE + 1, TILE, 33, 5, 1, 0]
AVAILABLE = [40, 3, 9, 1, 13, 2]  # runs of each scale
RUNS, COARSE_RUNS = 37, 9

each_loss = pytest.mark.parametrize("loss", LOSSES)


# --- random points with truth ---


def near_points(of: Scene, count: int, seed: int = 0) -> Tensor:
    """Runs of points ``float32 [count, dimension]`` that lie near each other, as in training.

    Some runs stay in a cell, some do not; with repeats, points of the lattice, and points outside the extent.
    """
    far = torch.tensor(of.geometry.extent) * float(of.geometry.cells)
    runs, generator = -(-count // RUN), source(seed)
    centres = (torch.rand(runs, 1, of.dimension, generator=generator) * 1.2 - 0.1) * far
    spread = torch.tensor([0.2, 1.0, 30.0])[torch.arange(runs) % 3].reshape(-1, 1, 1)
    points = centres + spread * torch.randn(runs, RUN, of.dimension, generator=generator)
    points[:, 1::8] = points[:, ::8]
    points[:, 2::8] = points[:, 2::8].round()
    points[:, 3::8] = points[:, 2::8]
    points[:1, :2] = torch.stack([torch.zeros_like(far), far])
    return points.reshape(-1, of.dimension)[:count].contiguous()


class Outputs(NamedTuple):
    """What points read and a decoder makes of it, and the magnitudes of both."""

    inputs: Tensor
    values: Tensor
    input_magnitudes: Tensor
    magnitudes: Tensor


def outputs_of(of: Scene, layers: list[Layer], positions: Tensor, scale: int) -> Outputs:
    places = positions.double()
    inputs = reference.encode_points(of.geometry, of.features, places, scale)
    magnitudes = law.encoded_magnitudes("encode_points", of, places, scale, None)
    return Outputs(
        inputs,
        reference.decode(inputs, layers),
        magnitudes,
        reference.decode(magnitudes, law.absolute(layers)),
    )


def forward_roundings(of: Scene, layers: list[Layer]) -> float:
    return law.reading_roundings(of.geometry) + law.decoding_roundings(layers)


def clear_samples(of: Scene, layers: list[Layer], count: int, scale: int, seed: int = 0) -> Samples:
    """Points all of whose gradients are certain: away from zeros of hidden units and from the truth."""
    positions = near_points(of, count + count // 4 + RUN, seed)
    output = outputs_of(of, layers, positions, scale)
    certain = law.clear(
        output.inputs, output.input_magnitudes, layers, law.reading_roundings(of.geometry)
    ).nonzero()[:, 0]
    assert len(certain) >= count
    kept = certain[:count]
    truth = 2 * law.random((count, len(layers[-1][1])), seed + 1) - 1
    truth[::5, 0] = 1
    truth[1::5, 0] = -1
    values = output.values[kept]
    band = 4 * law.EPSILON * forward_roundings(of, layers) * (output.magnitudes[kept] + truth.abs())
    truth = torch.where((values - truth).abs() <= band, values + 2 * band, truth)
    assert ((values - truth).abs() > band / 2).all()
    return Samples(positions[kept].contiguous(), truth)


# --- how far apart results may be ---


def learning_bound(
    of: Scene, layers: list[Layer], samples: Samples, scale: int, loss: Loss
) -> tuple[Learned, float]:
    """Magnitudes of what learning from points sums up, and the roundings.

    Slopes are exact, 1 or -1, but that of the cross-entropy, which moves by a quarter at most of what its
    output does.
    A weight of reading is off by a rounding of 1, however small it is; hence the largest gradient is added.
    """
    output, count = outputs_of(of, layers, samples.positions, scale), len(samples.positions)
    slopes = torch.ones_like(output.magnitudes)
    if loss == "occupancy":
        slopes[:, 0] += output.magnitudes[:, 0] / 4
    inputs, gradients = reference.decode_backward(
        output.input_magnitudes, law.absolute(layers), slopes / max(count, 1)
    )
    features = reference.encode_points_backward(of.geometry, inputs, samples.positions.double(), scale)
    features += inputs.amax() if count else 0.0
    errors = (output.magnitudes + samples.truth.abs() + 1).double().sum(dim=1)
    roundings = 2 * forward_roundings(of, layers) + law.additions(count) + 8
    roundings += sum(law.additions(len(bias)) for _, bias in layers)
    return Learned(errors, features, gradients), roundings


# --- learning ---


@cache
def lesson(
    dimension: str, channels: int, loss: Loss, scale: int
) -> tuple[tuple[Any, ...], Learned, Learned, float]:
    """Arguments, what the reference learns from them, and how far others may be off."""
    of = law.SCENES[dimension](channels)
    layers = decoder(channels, HIDDEN[scale % len(HIDDEN)], 1 + scale % 4)
    samples = clear_samples(of, layers, COUNTS[scale % len(COUNTS)], scale)
    arguments = (of.geometry, of.features, layers, samples.positions, scale, samples.truth, loss)
    return arguments, reference.learn_points(*arguments), *learning_bound(of, layers, samples, scale, loss)


@law.compared
@law.each_dimension
@law.each_channels
@each_loss
def test_loss_and_gradients_of_points(subject: Subject, dimension: str, channels: int, loss: Loss) -> None:
    of = law.SCENES[dimension](channels)
    for scale in range(of.geometry.depth + 1):
        arguments, expected, bound, roundings = lesson(dimension, channels, loss, scale)
        actual = subject.call("learn_points", *arguments)
        law.agree(actual.errors, expected.errors, bound.errors, roundings)
        law.agree(actual.features, expected.features, bound.features, roundings)
        law.compare_layers(actual.layers, expected.layers, bound.layers, roundings)
        assert not actual.features[0].any()


# --- the fused training step ---


def sampling(
    of: Scene, learner: Learner, loss: Loss = "distance", seed: int = 5, only: int | None = None
) -> PointSampling:
    """Samples of all scales, or of one only, that are certain for what the learner is now."""
    samples = [
        clear_samples(of, learner.layers(scale), RUN * AVAILABLE[scale % len(AVAILABLE)], scale, scale)
        if only in (None, scale)
        else Samples(torch.zeros(RUN, of.dimension), torch.zeros(RUN, learner.layers(0)[-1][1].numel()))
        for scale in range(of.geometry.depth + 1)
    ]
    return PointSampling(samples, RUNS, COARSE_RUNS, seed, loss)


def step_noise(of: Scene, learner: Learner, sampled: PointSampling, scale: int) -> Noise:
    layers, drawn = learner.layers(scale), Samples(*draw_points(learner, sampled, scale))
    bound, roundings = learning_bound(of, layers, drawn, scale, sampled.loss)
    factor = law.EPSILON * roundings
    gradients = {FEATURES: bound.features * factor}
    for number, (weight, bias) in enumerate(bound.layers):
        gradients[f"decoder.{number}.weight"] = weight * factor
        gradients[f"decoder.{number}.bias"] = bias * factor
    return Noise(bound.errors * factor, gradients)


class Step(NamedTuple):
    """What one step starts from, what the reference makes of it, and how far others may be off."""

    learner: Learner
    sampled: PointSampling
    plan: Schedule
    expected: Learner
    noise: Noise


@cache
def one_step(dimension: str, channels: int, loss: Loss, scale: int) -> Step:
    of = law.SCENES[dimension](channels)
    learner = law.old_learner(of, HIDDEN[scale % len(HIDDEN)], 1 + scale % 4)
    sampled, plan = sampling(of, learner, loss, only=scale), law.schedule(scale)
    expected = law.moved(learner, "cpu", copy=True)
    reference.train_points(of.geometry, expected, sampled, plan)
    return Step(learner, sampled, plan, expected, step_noise(of, learner, sampled, scale))


@law.compared
@law.each_dimension
@law.each_channels
@each_loss
def test_one_step_of_training_from_points(
    subject: Subject, dimension: str, channels: int, loss: Loss
) -> None:
    of = law.SCENES[dimension](channels)
    for scale in range(of.geometry.depth + 1):
        learner, sampled, plan, expected, noise = one_step(dimension, channels, loss, scale)
        actual = subject.train(of.geometry, learner, sampled, plan)
        law.same_counters(actual, expected)
        for name, of_gradient in noise.gradients.items():
            check_moved(actual, expected, name, of_gradient, scale, plan)
        total = float(noise.squares.sum()) + 1e-12
        assert (actual.errors[0] - expected.errors[0]).abs().max() <= total
        assert (actual.errors[0] != learner.errors[0]).any() == (scale == 0)


def check_moved(
    actual: Learner, expected: Learner, name: str, noise: Tensor, scale: int, plan: Schedule
) -> None:
    if name == FEATURES:
        rate, count = float(plan.encoder_rates[0]), expected.encoder_steps
        law.check_moved(actual, expected, name, slice(None), noise, rate, count)
    else:
        rate, count = float(plan.decoder_rates[0]), expected.decoder_steps[scale]
        law.check_moved(actual, expected, name, scale, noise, rate, count)


@law.compared
def test_one_step_leaves_other_scales_and_rows_alone(subject: Subject) -> None:
    of = law.solid_scene()
    learner = law.old_learner(of, [13], 3)
    sampled = sampling(of, learner, only=2)
    positions, _ = draw_points(learner, sampled, 2)
    read = rows_under(of.geometry, positions, 2)
    actual = subject.train(of.geometry, learner, sampled, law.schedule(2))
    others = torch.ones(len(of.features), dtype=torch.bool).index_fill(0, read, value=False)
    assert 0 < len(read) < len(of.features) - 1
    assert torch.equal(actual.parameters[FEATURES][others], learner.parameters[FEATURES][others])
    assert torch.equal(actual.second[FEATURES][others], learner.second[FEATURES][others])
    assert torch.equal(actual.last[others], learner.last[others])
    assert (actual.last[read] == law.STEPS + 1).all()
    scales = torch.arange(of.geometry.depth + 1)
    for name in learner.first:
        for table, before in zip(actual.tables, learner.tables, strict=True):
            assert torch.equal(table[name][scales != 2], before[name][scales != 2])
            assert not torch.equal(table[name][2], before[name][2])


def far_sampling(of: Scene, learner: Learner, loss: Loss) -> PointSampling:
    """Truth so far from the outputs that some steps do not reach it, on either side.

    Points lie inside the extent and off the borders of cells: a weight that is 0 to one back end and tiny to
    another moves a fresh row not at all, or by a whole step.
    """
    last = torch.tensor(of.geometry.extent) * float(of.geometry.cells) - 1
    sampled = sampling(of, learner, loss)
    samples = []
    for scale, (places, truth) in enumerate(sampled.samples):
        positions = torch.minimum(places.clamp(min=0), last).mul(8).floor().div(8) + 1 / 16
        values = outputs_of(of, learner.layers(scale), positions, scale).values
        samples.append(Samples(positions, values + torch.where(values < truth, 3.0, -3.0)))
    return sampled._replace(samples=samples)


@law.compared
@law.each_dimension
@each_loss
@pytest.mark.parametrize("start", [law.old_learner, law.new_learner], ids=["old", "new"])
def test_several_steps_of_training_from_points(
    subject: Subject, start: Callable[..., Learner], loss: Loss, dimension: str
) -> None:
    """Loosely, as for patches."""
    of = law.SCENES[dimension]()
    learner = start(of, [13, 7], 3)
    sampled = far_sampling(of, learner, loss)
    actual = subject.train(of.geometry, learner, sampled, law.SEVERAL)
    expected = law.moved(learner, "cpu", copy=True)
    reference.train_points(of.geometry, expected, sampled, law.SEVERAL)
    law.same_counters(actual, expected)
    torch.testing.assert_close(actual.errors[0], expected.errors[0], rtol=1e-4, atol=1e-6)
    for table, plain, before in zip(actual.tables, expected.tables, learner.tables, strict=True):
        for name in plain:
            way = (plain[name] - before[name]).double().norm()
            assert way > 0
            assert (table[name] - plain[name]).double().norm() <= 1e-3 * way, name


@law.compared
def test_no_steps_change_nothing(subject: Subject) -> None:
    of = law.solid_scene()
    learner = law.old_learner(of, [13], 3)
    law.same_learners(
        subject.train(of.geometry, learner, sampling(of, learner, only=0), law.schedule()), learner
    )


@law.everyone
@law.each_dimension
def test_one_call_equals_two(subject: Subject, dimension: str) -> None:
    of = law.SCENES[dimension]()
    learner = law.new_learner(of, [13, 7], 3)
    sampled = sampling(of, learner)
    halves = [Schedule(*(part[piece] for part in law.SEVERAL)) for piece in (slice(3), slice(3, None))]
    once = subject.train(of.geometry, learner, sampled, law.SEVERAL)
    law.same_learners(subject.train(of.geometry, learner, sampled, *halves), once)


@law.kernels_on_cpu
@law.each_dimension
@pytest.mark.usefixtures("restored_threads")
def test_results_do_not_depend_on_how_many_threads_there_are(subject: Subject, dimension: str) -> None:
    of = law.SCENES[dimension]()
    learner = law.new_learner(of, [13], 3)
    sampled = sampling(of, learner)
    torch.set_num_threads(1)
    alone = subject.train(of.geometry, learner, sampled, law.SEVERAL)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        law.same_learners(subject.train(of.geometry, learner, sampled, law.SEVERAL), alone)


@law.everyone
def test_every_run_comes_once_before_any_comes_again(subject: Subject) -> None:
    of = law.solid_scene()
    learner = law.new_learner(of, [], 3)
    sampled = sampling(of, learner, only=0)._replace(runs=8)
    positions = sampled.samples[0].positions
    assert len(positions) % (8 * RUN) == 0
    leaves = reference.locate(of.geometry, positions.double()).long()
    counts = torch.bincount(leaves, minlength=of.geometry.nodes).double()
    turn = law.schedule(*[0] * (len(positions) // (8 * RUN)))
    for turns in (1, 2):
        learner = subject.train(of.geometry, learner, sampled, turn)
        assert torch.equal(learner.errors[1], turns * counts)
        assert int(learner.drawn[0]) == turns * len(positions) // RUN


@law.everyone
def test_another_seed_draws_other_runs(subject: Subject) -> None:
    of = law.solid_scene()
    learner = law.new_learner(of, [], 3)
    sampled = sampling(of, learner, only=0)._replace(runs=2)
    counts = [
        subject.train(of.geometry, learner, sampled._replace(seed=seed), law.schedule(0))
        for seed in (0, 0, 1)
    ]
    law.same_learners(counts[0], counts[1])
    assert not torch.equal(counts[0].errors, counts[2].errors)


# --- the reference, by its definition ---


def error_by_definition(output: list[float], truth: list[float], loss: Loss) -> float:
    """Of one point."""
    rest = sum(abs(o - t) for o, t in zip(output[1:], truth[1:], strict=True))
    if loss == "occupancy":
        outside = 1 / (1 + math.exp(-output[0]))
        return -math.log(1 - outside if truth[0] < 0 else outside) + rest
    beyond = (truth[0] >= 1 and output[0] > truth[0]) or (truth[0] <= -1 and output[0] < truth[0])
    return rest + (0.0 if beyond else abs(output[0] - truth[0]))


VALUES = [-3.0, -1.25, -0.75, -0.25, 0.25, 0.75, 1.25, 3.0]
TRUTHS = [-1.0, -0.5, 0.0, 0.5, 1.0]


@each_loss
@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_errors_and_slopes_are_as_defined(loss: Loss, outputs: int) -> None:
    pairs = torch.tensor([*product(VALUES, TRUTHS)], dtype=torch.float64)
    output = torch.stack([pairs[:, 0].roll(7 * c) for c in range(outputs)], dim=1)
    truth = torch.stack([pairs[:, 1].roll(11 * c) for c in range(outputs)], dim=1)
    assert (output - truth).abs().min() >= 0.2, "a difference across the jump says nothing"
    errors, gradient = errors_of(output, truth, loss)
    assert errors.dtype == torch.float64
    step = 1e-6
    for row in range(len(output)):
        values, true = output[row].tolist(), truth[row].tolist()
        assert float(errors[row]) == pytest.approx(
            error_by_definition(values, true, loss), rel=1e-9, abs=1e-12
        )
        for channel in range(outputs):
            up, down = values.copy(), values.copy()
            up[channel] += step
            down[channel] -= step
            difference = error_by_definition(up, true, loss) - error_by_definition(down, true, loss)
            slope = difference / (2 * step) / len(output)
            assert float(gradient[row, channel]) == pytest.approx(slope, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_far_off_gives_finite_errors(loss: Loss) -> None:
    output, truth = torch.tensor([[1e4], [-1e4], [1e4], [-1e4]]), torch.tensor([[0.5], [-0.5], [-0.5], [0.5]])
    errors, gradient = errors_of(output, truth, loss)
    assert errors.isfinite().all()
    assert gradient.tolist()[2:] == [[0.25], [-0.25]]
    if loss == "occupancy":
        assert errors.tolist() == [0, 0, 1e4, 1e4]


@each_loss
@law.each_dimension
def test_gradients_of_the_reference_are_those_of_its_loss(loss: Loss, dimension: str) -> None:
    """By automatic differentiation of the definition, in double precision."""
    of = law.SCENES[dimension](2)
    for scale in range(of.geometry.depth + 1):
        layers = decoder(2, [13], 2)
        positions, truth = clear_samples(of, layers, 100, scale)
        learned = reference.learn_points(of.geometry, of.features, layers, positions, scale, truth, loss)
        leaves = [of.features, *(tensor for layer in layers for tensor in layer)]
        features, *flat = [leaf.double().requires_grad_() for leaf in leaves]
        inputs = _points(of.geometry, features, positions.double(), scale, None)
        output = _decode(inputs, list(zip(flat[::2], flat[1::2], strict=True)))
        errors = (output - truth).abs()
        if loss == "occupancy":
            outside = (truth[:, 0] >= 0).double()
            first = torch.nn.functional.binary_cross_entropy_with_logits(
                output[:, 0], outside, reduction="none"
            )
        else:
            low = torch.where(truth[:, 0] <= -1, output[:, 0].detach().clamp(max=-1), truth[:, 0])
            high = torch.where(truth[:, 0] >= 1, output[:, 0].detach().clamp(min=1), truth[:, 0])
            first = (output[:, 0] - high).relu() + (low - output[:, 0]).relu()
        errors = torch.cat([first[:, None], errors[:, 1:]], dim=1).sum(dim=1)
        gradients = torch.autograd.grad(errors.mean(), [features, *flat])
        gradients[0][0] = 0
        torch.testing.assert_close(learned.errors, errors.detach(), rtol=1e-5, atol=1e-5)
        mine = [learned.features, *(tensor for layer in learned.layers for tensor in layer)]
        for actual, expected in zip(mine, gradients, strict=True):
            torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-6)


def test_the_points_of_these_tests_are_as_varied_as_they_claim() -> None:
    shares = []
    for name, channels in product(law.SCENES, CHANNELS):
        of = law.SCENES[name](channels)
        assert (of.geometry.ancestors[:-1] == of.geometry.nodes).any(), "no block is absent"
        layers = decoder(channels, [13], 1)
        samples = clear_samples(of, layers, 1000, 0)
        points = samples.positions
        far = torch.tensor(of.geometry.extent) * of.geometry.cells
        assert ((points < 0) | (points > far)).any(dim=1).float().mean() > 0.05
        assert (points == points.round()).all(dim=1).float().mean() > 0.1
        assert (points[1:] == points[:-1]).all(dim=1).float().mean() > 0.1
        output = outputs_of(of, layers, points, 0).values[:, 0]
        truth = samples.truth[:, 0]
        saturated = (truth.abs() >= 1) & ((output - truth) * truth > 0)
        shares.append(float(saturated.float().mean()))
    assert 0.02 < sum(shares) / len(shares) < 0.2
