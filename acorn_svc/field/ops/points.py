"""Learning from points, put together from the other operations of a back end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from acorn_svc.field.geometry import Geometry
from acorn_svc.field.ops.cells import vertices_under
from acorn_svc.field.ops.learning import (
    FEATURES,
    RUN,
    Layer,
    Learned,
    Learner,
    Loss,
    PointSampling,
    Schedule,
)
from acorn_svc.field.ops.shuffle import turns
from acorn_svc.field.ops.steps import update

if TYPE_CHECKING:
    from acorn_svc.field.ops import Operations


def errors_of(output: Tensor, truth: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """What each point adds to the loss ``float64 [n]``, and the gradient of the output ``[n, out]``.

    ``"distance"``: absolute differences. Where the true distance saturates (the first channel is -1 or 1), an
    output beyond it is no error.

    ``"occupancy"``: the sign of the first channel alone is true, and its output is a logit of being outside:
    binary cross-entropy (ACORN, section 4.2). Further channels as above.
    """
    difference = output - truth
    if loss == "occupancy":
        side = torch.where(truth[:, 0] < 0, -1.0, 1.0)
        margin = side * output[:, 0]
        first, slope = torch.nn.functional.softplus(-margin), -side * torch.sigmoid(-margin)
    else:
        outward = difference[:, 0] * truth[:, 0].sign()
        saturated = (truth[:, 0].abs() >= 1) & (outward > 0)
        error = torch.where(saturated, 0.0, difference[:, 0])
        first, slope = error.abs(), error.sign()
    errors = first.double() + difference[:, 1:].abs().double().sum(dim=1)
    gradient = torch.cat([slope[:, None], difference[:, 1:].sign()], dim=1)
    return errors, gradient / max(len(truth), 1)


def learn(
    operations: Operations,
    geometry: Geometry,
    features: Tensor,
    layers: list[Layer],
    positions: Tensor,
    scale: int,
    truth: Tensor,
    loss: Loss,
) -> Learned:
    """See :func:`acorn_svc.field.ops.reference.learn_points`."""
    places = positions.double()
    inputs = operations.encode_points(geometry, features, places, scale)
    errors, gradient = errors_of(operations.decode(inputs, layers), truth, loss)
    inputs_gradient, layers_gradient = operations.decode_backward(inputs, layers, gradient.contiguous())
    read = operations.encode_points_backward(geometry, inputs_gradient.contiguous(), places, scale)
    return Learned(errors, read, layers_gradient)


def train(
    operations: Operations,
    geometry: Geometry,
    learner: Learner,
    sampling: PointSampling,
    schedule: Schedule,
) -> None:
    """See :func:`acorn_svc.field.ops.reference.train_points`."""
    rates = zip(schedule.scales.tolist(), schedule.encoder_rates, schedule.decoder_rates, strict=True)
    for scale, encoder_rate, decoder_rate in rates:
        positions, truth = draw_points(learner, sampling, scale)
        features, layers = learner.parameters[FEATURES], learner.layers(scale)
        learned = operations.learn_points(geometry, features, layers, positions, scale, truth, sampling.loss)
        learner.drawn[scale] += len(positions) // RUN
        read = rows_under(geometry, positions, scale)
        update(learner, scale, read, learned.features, learned.layers, encoder_rate, decoder_rate)
        if scale == 0:
            note_errors(operations, geometry, learner, positions, learned.errors)


def draw_points(learner: Learner, sampling: PointSampling, scale: int) -> tuple[Tensor, Tensor]:
    """Positions and truth of the next runs of one scale."""
    positions, truth = sampling.samples[scale]
    available = len(positions) // RUN
    count = min(sampling.coarse_runs if scale else sampling.runs, 2 * available)
    runs = turns(int(learner.drawn[scale]), count, available, sampling.seed, scale)
    rows = (runs[:, None] * RUN + torch.arange(RUN)).reshape(-1).to(positions.device)
    return positions[rows], truth[rows]


def note_errors(
    operations: Operations, geometry: Geometry, learner: Learner, positions: Tensor, errors: Tensor
) -> None:
    """Adds the errors of points of full size to those of the leaves under them."""
    leaves = operations.locate(geometry, positions.double()).long()
    learner.errors[0].index_add_(0, leaves, errors)
    learner.errors[1].index_add_(0, leaves, torch.ones_like(errors))


def rows_under(geometry: Geometry, positions: Tensor, scale: int) -> Tensor:
    """Rows of the features, without repeats and without the zero row, that points read."""
    rows = torch.unique(vertices_under(geometry, positions.double(), scale))
    read: Tensor = rows[rows != 0]
    return read
