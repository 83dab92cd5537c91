"""Where the features on the lattice's vertices come from.

``grid`` learns them directly. ``coordinate`` is ACORN's encoder (Martel et al. 2021, section 3.2): an MLP
maps the positionally encoded centre and level of a block to its whole grid; where blocks share a vertex, the
vertex takes the mean of what they say, so that there are no seams.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from acorn_svc.field.lattice import Lattice
from acorn_svc.field.state import Architecture
from acorn_svc.field.tree import Tree

FEATURES = "encoder.features"
INITIAL_SPREAD = 0.01
OUTPUT_SPREAD = 0.1


def initial_encoder(
    architecture: Architecture, lattice: Lattice, generator: torch.Generator
) -> dict[str, Tensor]:
    """Parameters to start from."""
    if architecture.encoder == "grid":
        features = INITIAL_SPREAD * torch.randn(
            lattice.vertices + 1, architecture.features, generator=generator
        )
        features[0] = 0
        return {FEATURES: features}
    return _initial_mlp(architecture, lattice.tree.dimension, generator)


def mlp_sizes(architecture: Architecture, dimension: int) -> list[int]:
    """Units of each layer of the coordinate encoder, input and output included."""
    inputs = (dimension + 1) * (1 + 2 * architecture.frequencies)
    outputs = architecture.features * (architecture.cells + 1) ** dimension
    hidden = [architecture.encoder_width] * (1 + architecture.encoder_layers)
    return [inputs, *hidden, outputs]


def _initial_mlp(architecture: Architecture, dimension: int, generator: torch.Generator) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for number, (fan_in, fan_out) in enumerate(pairwise(mlp_sizes(architecture, dimension))):
        uniform = torch.rand(fan_in, fan_out, generator=generator) * 2 - 1
        weights[f"encoder.{number}.weight"] = uniform * math.sqrt(3 / fan_in)
        weights[f"encoder.{number}.bias"] = torch.zeros(fan_out)
    weights[f"encoder.{number}.weight"] *= OUTPUT_SPREAD
    return weights


def positional_encoding(values: Tensor, frequencies: int) -> Tensor:
    """Identity, then sine and cosine at octaves ``2**0 .. 2**(frequencies - 1)``: ``[n, k * (1 + 2 f)]``."""
    octaves = 2.0 ** torch.arange(frequencies, dtype=values.dtype)
    angles = (values[:, :, None] * octaves).reshape(len(values), -1)
    return torch.cat([values, angles.sin(), angles.cos()], dim=1)


def block_inputs(tree: Tree, frequencies: int) -> Tensor:
    """``[nodes, inputs]``: centre and level of every block, scaled to [-1, 1], positionally encoded."""
    side = 2.0 ** -tree.levels.astype(np.float64)
    centres = (tree.coordinates + 0.5) * side[:, None] * 2 - 1
    levels = tree.levels / max(tree.depth, 1) * 2 - 1
    values = torch.from_numpy(np.concatenate([centres, levels[:, None]], axis=1))
    return positional_encoding(values, frequencies).float()


def count_parameters(parameters: dict[str, Tensor]) -> int:
    """Learned numbers of encoder and decoders; the zero row of directly learned features is none."""
    total = sum(tensor.numel() for tensor in parameters.values())
    return total - (parameters[FEATURES].shape[1] if FEATURES in parameters else 0)


class VertexFeatures:
    """Turns encoder parameters into vertex features ``[vertices + 1, features]``, row 0 zero.

    Args:
        architecture: which encoder.
        lattice: the vertices of all blocks.
    """

    def __init__(self, architecture: Architecture, lattice: Lattice) -> None:
        self._architecture = architecture
        self._vertices = lattice.vertices
        if architecture.encoder == "coordinate":
            self._inputs = block_inputs(lattice.tree, architecture.frequencies)
            self._table = torch.from_numpy(lattice.table[:-1]).reshape(-1).long()
            shared = torch.bincount(self._table, minlength=self._vertices + 1)
            self._share = (1 / shared.clamp(min=1)).float()[:, None]
            self._share[0] = 0

    def __call__(self, parameters: dict[str, Tensor]) -> Tensor:
        """Features ``[vertices + 1, features]`` of the given parameters; differentiable."""
        if self._architecture.encoder == "grid":
            return parameters[FEATURES]
        grids = self._evaluate(parameters).reshape(-1, self._architecture.features)
        total = grids.new_zeros(self._vertices + 1, grids.shape[1]).index_add(0, self._table, grids)
        return total * self._share

    def _evaluate(self, parameters: dict[str, Tensor]) -> Tensor:
        hidden = self._inputs
        count = sum(name.startswith("encoder.") for name in parameters) // 2
        for number in range(count):
            hidden = torch.addmm(
                parameters[f"encoder.{number}.bias"], hidden, parameters[f"encoder.{number}.weight"]
            )
            if number < count - 1:
                hidden = hidden.relu()
        return hidden
