"""Where the features on the lattice's vertices come from.

``grid`` learns them directly. ``coordinate`` is ACORN's encoder (Martel et al. 2021, section 3.2): an MLP
maps the positionally encoded centre and level of a block to its whole grid; where blocks share a vertex, the
vertex takes the mean of what they say, so that there are no seams.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from acorn_svc.field.lattice import Lattice
from acorn_svc.field.ops import tcnn
from acorn_svc.field.ops.learning import FEATURES, Layer
from acorn_svc.field.state import Architecture
from acorn_svc.field.tree import Tree

INITIAL_SPREAD = 0.01
OUTPUT_SPREAD = 0.1
BLOCKS_AT_ONCE = 128
CPU = torch.device("cpu")


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

    The blocks' grids are made, and their gradients taken, a few blocks at a time: all of them together are
    never in memory, only the vertices that they share.

    Args:
        architecture: which encoder.
        lattice: the vertices of all blocks.
        device: of the parameters.
        mlp: ``"tiny-cuda-nn"`` runs the MLP there (:mod:`acorn_svc.field.ops.tcnn`), on all blocks at once.

    Raises:
        RuntimeError: tiny-cuda-nn cannot run here.
    """

    def __init__(
        self,
        architecture: Architecture,
        lattice: Lattice,
        device: torch.device = CPU,
        mlp: tcnn.MlpName = "own",
    ) -> None:
        self._architecture = architecture
        self._vertices = lattice.vertices
        tcnn.choose(mlp)  # refuses what cannot run here
        self._on_tcnn = mlp == "tiny-cuda-nn"
        if architecture.encoder == "coordinate":
            self._inputs = block_inputs(lattice.tree, architecture.frequencies).to(device)
            self._table = torch.from_numpy(lattice.table[:-1]).long().to(device)
            shared = torch.bincount(self._table.reshape(-1), minlength=self._vertices + 1)
            self._share = (1 / shared.clamp(min=1)).float()[:, None]
            self._share[0] = 0

    def __call__(self, parameters: dict[str, Tensor]) -> Tensor:
        """Features ``[vertices + 1, features]`` of the given parameters; not differentiable by PyTorch."""
        if self._architecture.encoder == "grid":
            return parameters[FEATURES]
        layers = _encoder_layers(parameters)
        features = self._inputs.new_zeros(self._vertices + 1, self._architecture.features)
        for part, grids in self._grids(layers):
            features.index_add_(0, self._table[part].reshape(-1), grids.reshape(-1, features.shape[1]))
        return features.mul_(self._share)

    def _grids(self, layers: list[Layer]) -> Iterator[tuple[slice, Tensor]]:
        """The grids of some blocks after the other."""
        if self._on_tcnn:
            yield slice(None), tcnn.decode(self._inputs, layers)
            return
        weight, bias = layers[-1]
        hidden = self._hidden(layers)[-1]
        for part in self._parts():
            yield part, torch.addmm(bias, hidden[part], weight)

    def backward(self, parameters: dict[str, Tensor], gradient: Tensor) -> dict[str, Tensor]:
        """Gradients of the encoder's parameters for that of its features ``[vertices + 1, features]``."""
        if self._architecture.encoder == "grid":
            return {FEATURES: gradient}
        layers, names = _encoder_layers(parameters), _encoder_names(parameters)
        shared = gradient * self._share
        if self._on_tcnn:
            grids = shared[self._table.reshape(-1)].reshape(len(self._inputs), -1)
            _, pairs = tcnn.decode_backward(self._inputs, layers, grids)
            return dict(zip(names, (tensor for pair in pairs for tensor in pair), strict=True))
        gradients = {name: torch.zeros_like(parameters[name]) for name in names}
        hidden = self._hidden(layers)
        weight_gradient, bias_gradient = _encoder_layers(gradients)[-1]
        below = torch.empty_like(hidden[-1])
        for part in self._parts():
            grids = shared[self._table[part].reshape(-1)].reshape(-1, len(bias_gradient))
            weight_gradient.addmm_(hidden[-1][part].T, grids)
            bias_gradient += grids.sum(dim=0)
            torch.mm(grids, layers[-1][0].T, out=below[part])
        for number in reversed(range(len(layers) - 1)):
            below = below * (hidden[number + 1] > 0)
            weight_gradient, bias_gradient = _encoder_layers(gradients)[number]
            torch.mm(hidden[number].T, below, out=weight_gradient)
            torch.sum(below, dim=0, out=bias_gradient)
            below = torch.mm(below, layers[number][0].T) if number else below
        return gradients

    def _parts(self) -> list[slice]:
        count = len(self._table)
        return [slice(start, min(start + BLOCKS_AT_ONCE, count)) for start in range(0, count, BLOCKS_AT_ONCE)]

    def _hidden(self, layers: list[Layer]) -> list[Tensor]:
        """The inputs of each layer, ``[nodes, in]``."""
        values = [self._inputs]
        for weight, bias in layers[:-1]:
            values.append(torch.addmm(bias, values[-1], weight).relu_())
        return values


def _encoder_names(parameters: dict[str, Tensor]) -> list[str]:
    """Names of the MLP's weights and biases, layer by layer: arrays read from a file have another order."""
    count = sum(name.startswith("encoder.") for name in parameters) // 2
    return [f"encoder.{number}.{part}" for number in range(count) for part in ("weight", "bias")]


def _encoder_layers(parameters: dict[str, Tensor]) -> list[Layer]:
    flat = [parameters[name] for name in _encoder_names(parameters)]
    return list(zip(flat[::2], flat[1::2], strict=True))
