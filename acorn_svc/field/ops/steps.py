"""Steps of the optimisers, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from acorn_svc.field.ops.learning import BETAS, EPSILON, FEATURES, LONGEST_GAP, Layer, Learner


def update(
    learner: Learner,
    scale: int,
    read: Tensor,
    features: Tensor,
    layers: list[Layer],
    encoder_rate: Tensor,
    decoder_rate: Tensor,
) -> None:
    """One step of everything that a batch of one scale touched, in place.

    Args:
        learner: what learns.
        scale: whose decoder was used.
        read: rows of the features that were read, without repeats and without the zero row.
        features: gradient of all of them.
        layers: gradients of the decoder.
        encoder_rate: learning rate of the features,
        decoder_rate: and of the decoder.
    """
    learner.encoder_steps.add_(1)
    learner.decoder_steps[scale] += 1
    row_step(learner, read, features[read], encoder_rate)
    gradients = [tensor for layer in layers for tensor in layer]
    for number, gradient in enumerate(gradients):
        name = f"decoder.{number // 2}.{('weight', 'bias')[number % 2]}"
        layer_step(learner, name, scale, gradient, decoder_rate)


def row_step(learner: Learner, rows: Tensor, gradient: Tensor, rate: Tensor) -> None:
    """Adam without a first moment; a second moment decays with the steps since its row was last touched."""
    table, second, last = learner.parameters[FEATURES], learner.second[FEATURES], learner.last
    count = learner.encoder_steps[0]
    gap = (count - last[rows]).clamp(max=LONGEST_GAP)
    moment = second[rows] * (BETAS[1] ** gap)[:, None] + (1 - BETAS[1]) * gradient.square()
    root = (moment / (1 - BETAS[1] ** count)).sqrt() + EPSILON
    table[rows] -= rate * gradient / root
    second[rows] = moment
    last[rows] = count


def layer_step(learner: Learner, name: str, scale: int, gradient: Tensor, rate: Tensor) -> None:
    """Adam (Kingma and Ba 2015)."""
    value, first, second = (table[name][scale] for table in learner.tables)
    count = learner.decoder_steps[scale]
    first.mul_(BETAS[0]).add_(gradient, alpha=1 - BETAS[0])
    second.mul_(BETAS[1]).add_((1 - BETAS[1]) * gradient.square())
    root = second.sqrt() / (1 - BETAS[1] ** count).sqrt() + EPSILON
    value -= rate / (1 - BETAS[0] ** count) * first / root
