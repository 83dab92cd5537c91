"""From features to values: one small MLP for each scale (ACORN, section 3.2).

The weights of all scales are stacked, so that scale ``s`` uses ``decoder.<i>.weight[s]``.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from acorn_svc.field.geometry import SLOTS
from acorn_svc.field.state import Architecture


def layer_sizes(architecture: Architecture, channels: int) -> list[int]:
    """Units of each layer of the decoder, input and output included."""
    hidden = [architecture.decoder_width] * architecture.decoder_layers
    return [SLOTS * architecture.features, *hidden, channels]


def initial_decoder(
    architecture: Architecture, initial_value: tuple[float, ...], scales: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Weights ``decoder.<i>.weight [scales, in, out]`` and ``decoder.<i>.bias [scales, out]``.

    They start out answering about ``initial_value``, one number for each channel.
    """
    sizes = layer_sizes(architecture, len(initial_value))
    weights: dict[str, Tensor] = {}
    for number, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        uniform = torch.rand(scales, fan_in, fan_out, generator=generator) * 2 - 1
        weights[f"decoder.{number}.weight"] = uniform * math.sqrt(3 / fan_in)
        weights[f"decoder.{number}.bias"] = torch.zeros(scales, fan_out)
    weights[f"decoder.{len(sizes) - 2}.bias"] += torch.tensor(initial_value)
    return weights
