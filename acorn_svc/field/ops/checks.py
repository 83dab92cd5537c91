"""What every back end demands of its arguments, said once.

Nothing is converted: a silent conversion costs time that nobody sees.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from acorn_svc.field.conventions import IMAGE_DIMENSION
from acorn_svc.field.geometry import PATCH_SIDE, SLOTS, Geometry
from acorn_svc.field.ops.learning import (
    FEATURES,
    RUN,
    Layer,
    Learner,
    Loss,
    PointSampling,
    Samples,
    Sampling,
    Schedule,
)

MATRIX = 2
MAX_LAYERS = 8
MAX_CHANNELS = 4
PIXELS = (torch.uint8, torch.uint16, torch.float32)


def tensor(name: str, values: Tensor, dtype: torch.dtype) -> None:
    """Refuses another dtype, and strides.

    Raises:
        TypeError: the dtype, or no tensor at all.
        ValueError: not C-contiguous.
    """
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(values).__name__}")
    if values.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {values.dtype}".replace("torch.", ""))
    if not values.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor")


def floats(name: str, values: Tensor) -> None:
    """Refuses everything but contiguous ``float32``."""
    tensor(name, values, torch.float32)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _require_columns(name: str, values: Tensor, columns: int) -> None:
    _require(values.ndim == MATRIX and values.shape[1] == columns, f"{name}: expected [n, {columns}]")


def _require_scale(geometry: Geometry, scale: int) -> None:
    _require(0 <= scale <= geometry.depth, f"scale: expected 0 to {geometry.depth}, got {scale}")


def positions(geometry: Geometry, values: Tensor) -> None:
    """Positions are ``float64 [n, dimension]``."""
    tensor("positions", values, torch.float64)
    _require_columns("positions", values, geometry.dimension)


def corners(geometry: Geometry, values: Tensor) -> None:
    """Corners of patches are ``int64 [n, dimension]``, multiples of ``PATCH_SIDE``, not negative."""
    tensor("corners", values, torch.int64)
    _require_columns("corners", values, geometry.dimension)
    aligned = bool(((values >= 0) & (values % PATCH_SIDE == 0)).all())
    _require(aligned, f"corners: expected multiples of {PATCH_SIDE}, 0 or more")


def reading(geometry: Geometry, features: Tensor, scale: int, folded: Tensor | None) -> None:
    """Features are ``float32 [vertices + 1, channels]``, and the scale is one of the tree's."""
    floats("features", features)
    rows = geometry.vertices + 1
    _require(features.ndim == 2 and len(features) == rows, f"features: expected [{rows}, channels]")
    _require_scale(geometry, scale)
    if folded is not None:
        floats("folded", folded)
        shape = ((geometry.foldable + 1) * geometry.table.shape[1], features.shape[1])
        _require(folded.shape == shape, f"folded: expected {list(shape)}, got {list(folded.shape)}")


def layers(pairs: list[Layer], inputs: int) -> None:
    """Layers are ``[in, out], [out]`` and take what comes before them."""
    _require(1 <= len(pairs) <= MAX_LAYERS, f"layers: expected 1 to {MAX_LAYERS}, got {len(pairs)}")
    for weight, bias in pairs:
        floats("weight", weight)
        floats("bias", bias)
        fits = weight.ndim == 2 and bias.shape == weight.shape[1:] and len(weight) == inputs and len(bias) > 0
        _require(fits, f"layers: expected a weight [{inputs}, out] and a bias [out]")
        inputs = len(bias)


def inputs(values: Tensor, pairs: list[Layer]) -> None:
    """Inputs of a decoder are ``float32 [n, in]``."""
    floats("inputs", values)
    _require(values.ndim == MATRIX, "inputs: expected [n, in]")
    layers(pairs, values.shape[1])


def gradient(values: Tensor, samples: tuple[int, ...], channels: int) -> None:
    """The gradient of a result is ``float32 [*samples, channels]``."""
    floats("gradient", values)
    shape = (*samples, channels)
    _require(values.shape == shape, f"gradient: expected {list(shape)}, got {list(values.shape)}")


def reading_gradient(geometry: Geometry, values: Tensor, samples: tuple[int, ...], scale: int) -> None:
    """The gradient of features that were read is ``float32 [*samples, SLOTS * channels]``."""
    floats("gradient", values)
    fits = values.shape[:-1] == samples and values.shape[-1] % SLOTS == 0 and values.shape[-1] > 0
    _require(fits, f"gradient: expected [{', '.join(map(str, samples))}, {SLOTS} * channels]")
    _require_scale(geometry, scale)


def picture(geometry: Geometry, pairs: list[Layer], dtype: torch.dtype) -> None:
    """A picture has two dimensions, 1 to 4 channels and one of three dtypes."""
    _require(geometry.dimension == IMAGE_DIMENSION, "only pictures are rendered whole")
    outputs = len(pairs[-1][1]) if pairs else 0
    _require(outputs <= MAX_CHANNELS, f"layers: expected 1 to {MAX_CHANNELS} outputs, got {outputs}")
    if dtype not in PIXELS:
        raise TypeError(f"dtype: expected uint8, uint16 or float32, got {dtype}")


def truth(geometry: Geometry, patches: Tensor, pairs: list[Layer], values: Tensor, weights: Tensor) -> None:
    """Truth is ``[n, pixels, out]`` and weights are ``[n, pixels]``."""
    floats("truth", values)
    floats("weights", weights)
    pixels = (len(patches), PATCH_SIDE**geometry.dimension)
    _require(values.shape == (*pixels, len(pairs[-1][1])), "truth: expected [n, pixels, out]")
    _require(weights.shape == pixels, "weights: expected [n, pixels]")


def region(values: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """A region is ``x, y, width, height``, not negative and not empty."""
    x, y, width, height = values
    _require(min(x, y) >= 0 and min(width, height) >= 1, "region: expected x, y >= 0 and width, height >= 1")
    return values


def training(geometry: Geometry, learner: Learner, sampling: Sampling, schedule: Schedule) -> None:
    """Everything that learns has the shape of what it belongs to."""
    _require(geometry.dimension == IMAGE_DIMENSION, "only pictures are learned from a pyramid")
    _learner(geometry, learner)
    _sampling(learner, sampling)
    _schedule(len(sampling.pyramid), schedule)


def _learner(geometry: Geometry, learner: Learner) -> None:
    features, scales = learner.parameters[FEATURES], geometry.depth + 1
    reading(geometry, features, 0, None)
    for name, parameter in learner.parameters.items():
        moments = (learner.second,) if name == FEATURES else (learner.first, learner.second)
        for values in (parameter, *(moment[name] for moment in moments)):
            floats(name, values)
            _require(values.shape == parameter.shape, f"{name}: a moment has another shape")
            _require(name == FEATURES or len(values) == scales, f"{name}: expected one for each scale")
    for name, values, shape in (
        ("last", learner.last, features.shape[:1]),
        ("scratch", learner.scratch, features.shape),
        ("encoder_steps", learner.encoder_steps, (1,)),
        ("decoder_steps", learner.decoder_steps, (scales,)),
    ):
        floats(name, values)
        _require(values.shape == shape, f"{name}: expected {tuple(shape)}")
    tensor("drawn", learner.drawn, torch.int64)
    tensor("errors", learner.errors, torch.float64)
    _require(learner.drawn.shape == (scales,), "drawn: expected one for each scale")
    _require(learner.errors.shape == (2, geometry.nodes), "errors: expected [2, nodes]")
    layers(learner.layers(0), SLOTS * features.shape[1])


def learning_points(
    geometry: Geometry,
    features: Tensor,
    pairs: list[Layer],
    positions: Tensor,
    scale: int,
    truth: Tensor,
    loss: Loss,
) -> None:
    """Positions are ``float32 [n, dimension]``, truth is ``float32 [n, out]``."""
    reading(geometry, features, scale, None)
    layers(pairs, SLOTS * features.shape[1])
    samples(Samples(positions, truth), geometry.dimension, len(pairs[-1][1]))
    _require(loss in get_args(Loss), f"loss: expected one of {', '.join(get_args(Loss))}")


def samples(values: Samples, dimension: int, out: int) -> None:
    """Samples are ``float32 [n, dimension]`` and ``[n, out]``."""
    floats("positions", values.positions)
    floats("truth", values.truth)
    _require_columns("positions", values.positions, dimension)
    _require(values.truth.shape == (len(values.positions), out), f"truth: expected [n, {out}]")


def training_points(
    geometry: Geometry, learner: Learner, sampling: PointSampling, schedule: Schedule
) -> None:
    """Everything that learns has the shape of what it belongs to, and there are whole runs of samples."""
    _learner(geometry, learner)
    for part in sampling.samples:
        samples(part, geometry.dimension, len(learner.layers(0)[-1][1]))
        whole = len(part.positions) % RUN == 0 and len(part.positions) > 0
        _require(whole, f"samples: expected a multiple of {RUN}, at least {RUN}")
    _require(min(sampling.runs, sampling.coarse_runs) > 0, "a step needs runs")
    _require(0 <= sampling.seed < 1 << 63, "seed: expected 0 to 2**63 - 1")
    _require(sampling.loss in get_args(Loss), f"loss: expected one of {', '.join(get_args(Loss))}")
    _schedule(len(sampling.samples), schedule)


def _sampling(learner: Learner, sampling: Sampling) -> None:
    out = len(learner.layers(0)[-1][1])
    for image in sampling.pyramid:
        if image.dtype not in PIXELS:
            raise TypeError(f"pyramid: expected uint8, uint16 or float32, got {image.dtype}")
        tensor("pyramid", image, image.dtype)
        fits = image.ndim == 3 and image.shape[2] == out and image.numel() > 0
        _require(fits, f"pyramid: expected pictures [height, width, {out}]")
    _require(min(sampling.patches, sampling.coarse_patches) > 0, "a step needs patches")
    _require(0 <= sampling.seed < 1 << 63, "seed: expected 0 to 2**63 - 1")


def _schedule(scales: int, schedule: Schedule) -> None:
    tensor("scales", schedule.scales, torch.int32)
    floats("encoder_rates", schedule.encoder_rates)
    floats("decoder_rates", schedule.decoder_rates)
    steps = len(schedule.scales)
    same = len(schedule.encoder_rates) == len(schedule.decoder_rates) == steps
    _require(same, "scales and rates: expected one of each for every step")
    if steps:
        low, high = int(schedule.scales.min()), int(schedule.scales.max())
        _require(low >= 0 and high < scales, "scales: there is nothing to learn from at that scale")
