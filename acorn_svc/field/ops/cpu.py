"""CPU back end: the kernels of ``cuda_ext``, through the native module.

They run on as many threads as PyTorch is set to use; the results do not depend on how many.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from acorn_svc import _native
from acorn_svc.field.geometry import PATCH_SIDE, SLOTS, Geometry
from acorn_svc.field.ops import checks, points
from acorn_svc.field.ops.learning import Layer, Learned, Learner, Loss, PointSampling, Sampling, Schedule

if TYPE_CHECKING:
    from acorn_svc.field.ops import Operations

WIDEST = ""
lanes = WIDEST  # or one of _native.lanes(), for tests and benchmarks


def _threads() -> int:
    return torch.get_num_threads()


def locate(geometry: Geometry, positions: Tensor) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.locate`."""
    checks.positions(geometry, positions)
    out = torch.empty(len(positions), dtype=torch.int32)
    _native.locate(geometry, positions, out)
    return out


def encode_points(
    geometry: Geometry, features: Tensor, positions: Tensor, scale: int, folded: Tensor | None = None
) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.encode_points`."""
    checks.reading(geometry, features, scale, folded)
    checks.positions(geometry, positions)
    out = torch.empty(len(positions), SLOTS * features.shape[1])
    _native.encode_points(geometry, features.detach(), positions, scale, folded, out, lanes, _threads())
    return out


def encode_points_backward(geometry: Geometry, gradient: Tensor, positions: Tensor, scale: int) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.encode_points_backward`."""
    checks.positions(geometry, positions)
    checks.reading_gradient(geometry, gradient, (len(positions),), scale)
    out = torch.zeros(geometry.vertices + 1, gradient.shape[1] // SLOTS)
    _native.encode_points_backward(geometry, out, positions, scale, gradient, lanes)
    return out


def encode_patches(
    geometry: Geometry, features: Tensor, corners: Tensor, scale: int, folded: Tensor | None = None
) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.encode_patches`."""
    checks.reading(geometry, features, scale, folded)
    checks.corners(geometry, corners)
    out = torch.empty(len(corners), PATCH_SIDE**geometry.dimension, SLOTS * features.shape[1])
    _native.encode_patches(geometry, features.detach(), corners, scale, folded, out, lanes, _threads())
    return out


def encode_patches_backward(geometry: Geometry, gradient: Tensor, corners: Tensor, scale: int) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.encode_patches_backward`."""
    checks.corners(geometry, corners)
    samples = (len(corners), PATCH_SIDE**geometry.dimension)
    checks.reading_gradient(geometry, gradient, samples, scale)
    out = torch.zeros(geometry.vertices + 1, gradient.shape[2] // SLOTS)
    _native.encode_patches_backward(geometry, out, corners, scale, gradient, lanes)
    return out


def decode(inputs: Tensor, layers: list[Layer]) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.decode`."""
    checks.inputs(inputs, layers)
    out = torch.empty(len(inputs), len(layers[-1][1]))
    _native.decode(inputs.detach(), _detached(layers), out, lanes, _threads())
    return out


def decode_backward(inputs: Tensor, layers: list[Layer], gradient: Tensor) -> tuple[Tensor, list[Layer]]:
    """See :func:`acorn_svc.field.ops.reference.decode_backward`."""
    checks.inputs(inputs, layers)
    checks.gradient(gradient, (len(inputs),), len(layers[-1][1]))
    out, flat = torch.empty_like(inputs), _flat_like(layers)
    _native.decode_backward(inputs.detach(), _detached(layers), gradient, out, flat, lanes)
    return out, _as_layers(flat, layers)


def render_points(
    geometry: Geometry,
    features: Tensor,
    folded: Tensor | None,
    layers: list[Layer],
    positions: Tensor,
    scale: int,
) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.render_points`."""
    checks.reading(geometry, features, scale, folded)
    checks.positions(geometry, positions)
    checks.layers(layers, SLOTS * features.shape[1])
    out = torch.empty(len(positions), len(layers[-1][1]))
    _native.render_points(
        geometry, features.detach(), folded, _detached(layers), positions, scale, out, lanes, _threads()
    )
    return out


def render_image(
    geometry: Geometry,
    features: Tensor,
    folded: Tensor | None,
    layers: list[Layer],
    scale: int,
    region: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.render_image`."""
    checks.picture(geometry, layers, dtype)
    checks.reading(geometry, features, scale, folded)
    checks.layers(layers, SLOTS * features.shape[1])
    x, y, width, height = checks.region(region)
    out = torch.empty(height, width, len(layers[-1][1]), dtype=dtype)
    _native.render_image(
        geometry, features.detach(), folded, _detached(layers), scale, x, y, out, lanes, _threads()
    )
    return out


def learn(
    geometry: Geometry,
    features: Tensor,
    layers: list[Layer],
    corners: Tensor,
    scale: int,
    truth: Tensor,
    weights: Tensor,
) -> Learned:
    """See :func:`acorn_svc.field.ops.reference.learn`."""
    checks.reading(geometry, features, scale, None)
    checks.corners(geometry, corners)
    checks.layers(layers, SLOTS * features.shape[1])
    checks.truth(geometry, corners, layers, truth, weights)
    squares, flat = torch.empty(len(corners), dtype=torch.float64), _flat_like(layers)
    gradient = torch.zeros_like(features)
    factor = 2 / max(truth.numel(), 1)
    _native.learn(
        geometry,
        features.detach(),
        _detached(layers),
        corners,
        scale,
        truth,
        weights,
        factor,
        gradient,
        flat,
        squares,
        lanes,
        _threads(),
    )
    return Learned(squares, gradient, _as_layers(flat, layers))


def train(geometry: Geometry, learner: Learner, sampling: Sampling, schedule: Schedule) -> None:
    """See :func:`acorn_svc.field.ops.reference.train`."""
    checks.training(geometry, learner, sampling, schedule)
    _native.train(
        geometry,
        learner.parameters,
        learner.first,
        learner.second,
        learner.last,
        learner.scratch,
        learner.encoder_steps,
        learner.decoder_steps,
        learner.drawn,
        sampling.pyramid,
        sampling.patches,
        sampling.coarse_patches,
        sampling.seed,
        schedule.scales,
        schedule.encoder_rates,
        schedule.decoder_rates,
        learner.errors,
        lanes,
        _threads(),
    )


def learn_points(
    geometry: Geometry,
    features: Tensor,
    layers: list[Layer],
    positions: Tensor,
    scale: int,
    truth: Tensor,
    loss: Loss,
) -> Learned:
    """See :func:`acorn_svc.field.ops.reference.learn_points`."""
    checks.learning_points(geometry, features, layers, positions, scale, truth, loss)
    return points.learn(THIS, geometry, features, layers, positions, scale, truth, loss)


def train_points(geometry: Geometry, learner: Learner, sampling: PointSampling, schedule: Schedule) -> None:
    """See :func:`acorn_svc.field.ops.reference.train_points`."""
    checks.training_points(geometry, learner, sampling, schedule)
    _native.train_points(
        geometry,
        learner.parameters,
        learner.first,
        learner.second,
        learner.last,
        learner.scratch,
        learner.encoder_steps,
        learner.decoder_steps,
        learner.drawn,
        [(part.positions, part.truth) for part in sampling.samples],
        sampling.runs,
        sampling.coarse_runs,
        sampling.seed,
        sampling.loss,
        schedule.scales,
        schedule.encoder_rates,
        schedule.decoder_rates,
        learner.errors,
        lanes,
        _threads(),
    )


THIS = cast("Operations", sys.modules[__name__])


def _detached(layers: list[Layer]) -> list[Layer]:
    return [(weight.detach(), bias.detach()) for weight, bias in layers]


def _flat_like(layers: list[Layer]) -> Tensor:
    return torch.zeros(sum(weight.numel() + bias.numel() for weight, bias in layers))


def _as_layers(flat: Tensor, layers: list[Layer]) -> list[Layer]:
    """Views of ``flat`` with the shapes of ``layers``, each weight before its bias."""
    sizes = [tensor.numel() for layer in layers for tensor in layer]
    parts = iter(torch.split(flat, sizes))
    return [(next(parts).reshape(weight.shape), next(parts)) for weight, _ in layers]
