"""What learns, from what and when: the arguments of the training operations."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

FEATURES = "encoder.features"
BETAS = (0.9, 0.99)
EPSILON = 1e-12
LONGEST_GAP = 32
RUN = 32

Loss = Literal["distance", "occupancy"]
Layer = tuple[Tensor, Tensor]


def scale_layers(weights: dict[str, Tensor], scale: int) -> list[Layer]:
    """The layers ``[(weight [in, out], bias [out])]`` of the decoder of one scale.

    By name: arrays read from a file have another order.
    """
    count = sum(name.startswith("decoder.") for name in weights) // 2
    return [
        (weights[f"decoder.{n}.weight"][scale], weights[f"decoder.{n}.bias"][scale]) for n in range(count)
    ]


class Learned(NamedTuple):
    """What some patches or points taught.

    Attributes:
        errors: ``float64 [n]``, weighted squared error of each patch, or what each point adds to the loss.
        features: gradient ``float32 [vertices + 1, channels]``, row 0 zero.
        layers: gradients of every layer's weight and bias.
    """

    errors: Tensor
    features: Tensor
    layers: list[Layer]


class Learner(NamedTuple):
    """Parameters and the memory of their optimiser; all of it changes in place.

    Attributes:
        parameters: ``encoder.features float32 [vertices + 1, channels]`` (row 0 zero) and, stacked over the
            scales, ``decoder.<i>.weight [scales, in, out]`` and ``decoder.<i>.bias [scales, out]``.
        first: mean gradients, of the decoder alone.
        second: mean squared gradients of all of them.
        last: ``float32 [vertices + 1]``, the step that touched each row of the features last.
        scratch: ``float32 [vertices + 1, channels]``, zero between calls.
        encoder_steps: ``float32 [1]``.
        decoder_steps: ``float32 [scales]``, steps at each scale.
        drawn: ``int64 [scales]``, patches or runs drawn so far at each scale.
        errors: ``float64 [2, nodes]``, sum of errors and count of what was seen at full size in each leaf.
    """

    parameters: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    last: Tensor
    scratch: Tensor
    encoder_steps: Tensor
    decoder_steps: Tensor
    drawn: Tensor
    errors: Tensor

    @property
    def tables(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Parameters, first and second moments."""
        return self.parameters, self.first, self.second

    @property
    def layer_count(self) -> int:
        """Layers of a decoder."""
        return sum(name.startswith("decoder.") for name in self.parameters) // 2

    def layers(self, scale: int) -> list[Layer]:
        """The decoder of one scale."""
        return scale_layers(self.parameters, scale)


class Sampling(NamedTuple):
    """What is learned from.

    Attributes:
        pyramid: a picture ``[height, width, channels]`` for each scale that is learned, from full size on:
            ``uint8``, ``uint16`` or ``float32`` (0 to 1).
        patches: drawn for one step at full size.
        coarse_patches: drawn for one step of a coarser scale.
        seed: of the order, 0 to ``2**63 - 1``.
    """

    pyramid: list[Tensor]
    patches: int
    coarse_patches: int
    seed: int


class Samples(NamedTuple):
    """Points with the truth about them, of one scale.

    ``RUN`` of them after each other are drawn together, and should lie near each other, for then they read
    the same features; sorted along a curve that fills space they do.

    Attributes:
        positions: ``float32 [n, dimension]`` in full-size pixels or voxels; n is a multiple of ``RUN``.
        truth: ``float32 [n, out]``.
    """

    positions: Tensor
    truth: Tensor


class PointSampling(NamedTuple):
    """What is learned from, when it is points.

    Attributes:
        samples: for each scale that is learned, from full size on.
        runs: drawn for one step at full size.
        coarse_runs: drawn for one step of a coarser scale.
        seed: of the order, 0 to ``2**63 - 1``.
        loss: see :func:`acorn_svc.field.ops.points.errors_of`.
    """

    samples: list[Samples]
    runs: int
    coarse_runs: int
    seed: int
    loss: Loss


class Schedule(NamedTuple):
    """Some steps.

    Attributes:
        scales: ``int32 [steps]``.
        encoder_rates: ``float32 [steps]``.
        decoder_rates: ``float32 [steps]``.
    """

    scales: Tensor
    encoder_rates: Tensor
    decoder_rates: Tensor
