"""The trainable field: parameters and optimiser moments over a tree that may change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.adam import adam

from acorn_svc.field.decoder import decode, scale_layers
from acorn_svc.field.encoders import FEATURES, VertexFeatures
from acorn_svc.field.lattice import ZERO_ROW, Lattice
from acorn_svc.field.model import Field, initial_parameters
from acorn_svc.field.reader import Reader
from acorn_svc.field.state import Architecture, FitRecord, Signal
from acorn_svc.field.tree import Tree
from acorn_svc.training.presets import PATCH_SIDE
from acorn_svc.training.state import select_prefix, with_prefix

BETAS = (0.9, 0.99)
EPSILON = 1e-12

Arrays = dict[str, NDArray[np.generic]]
Part = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Rates:
    """Learning rates of one step."""

    encoder: float
    decoder: float


class TrainableField:
    """Parameters in training.

    A step is shared between ``threads``: each works on a part of the patches from sample to gradient, so that
    they meet once a step and not at every operation, which on a busy machine is many times faster.

    Attributes:
        lattice: the current blocks.
        reader: reads features of them.
    """

    def __init__(
        self, signal: Signal, architecture: Architecture, lattice: Lattice, arrays: Arrays, threads: int = 1
    ) -> None:
        self._threads = threads
        self._map = _mapper(threads)
        self._signal = signal
        self._architecture = architecture
        self._parameters = _tensors(select_prefix("parameters", arrays))
        self._first = _tensors(select_prefix("first", arrays))
        self._second = _tensors(select_prefix("second", arrays))
        self._encoder_steps = _tensors(arrays)["updates.encoder"]
        self._decoder_steps = _tensors(arrays)["updates.decoder"]
        self._set_lattice(lattice)

    @staticmethod
    def start(
        signal: Signal,
        architecture: Architecture,
        lattice: Lattice,
        generator: torch.Generator,
        threads: int = 1,
    ) -> TrainableField:
        """Fresh parameters."""
        parameters = initial_parameters(architecture, signal, lattice, generator)
        arrays = with_prefix("parameters", {name: tensor.numpy() for name, tensor in parameters.items()})
        for moment in ("first", "second"):
            zeros = {name: np.zeros(tensor.shape, np.float32) for name, tensor in parameters.items()}
            arrays |= with_prefix(moment, {**zeros})
        arrays["updates.encoder"] = np.zeros(1, np.float32)
        arrays["updates.decoder"] = np.zeros(lattice.tree.depth + 1, np.float32)
        return TrainableField(signal, architecture, lattice, arrays, threads)

    def to_arrays(self) -> Arrays:
        """Copies of everything that learns; the constructor takes them back."""
        groups = {"parameters": self._parameters, "first": self._first, "second": self._second}
        arrays: Arrays = {}
        for prefix, tensors in groups.items():
            arrays |= with_prefix(prefix, {name: tensor.numpy().copy() for name, tensor in tensors.items()})
        arrays["updates.encoder"] = self._encoder_steps.numpy().copy()
        arrays["updates.decoder"] = self._decoder_steps.numpy().copy()
        return arrays

    def to_field(self, record: FitRecord) -> Field:
        """A snapshot, with features rounded to the half precision that a file holds."""
        parameters = {name: tensor.clone() for name, tensor in self._parameters.items()}
        if FEATURES in parameters:
            parameters[FEATURES] = parameters[FEATURES].half().float()
        return Field(self._signal, self._architecture, self.lattice, parameters, record)

    def step(self, corners: Tensor, truth: Tensor, weights: Tensor, scale: int, rates: Rates) -> Tensor:
        """One optimiser step on patches of one scale.

        Args:
            corners: ``int64 [n, 2]``, lowest pixel of each patch in pixels of ``scale``.
            truth: ``[PATCH_SIDE**2, n, channels]``.
            weights: ``[PATCH_SIDE**2, n]``, 0 for pixels that do not count.
            scale: which decoder learns.
            rates: learning rates.

        Returns:
            ``[n]``: summed squared error of each patch before the step.
        """
        encoder, decoder = self._active("encoder", scale), self._active("decoder", scale)
        features = self._vertex_features(encoder)
        leaves = [features.detach().requires_grad_(), *decoder.values()]
        total = weights.sum() * truth.shape[2]

        def learn(part: Part) -> tuple[tuple[Tensor, ...], Tensor]:
            squares = self._squares(leaves[0], decoder, part, scale)
            return torch.autograd.grad(squares.sum() / total, leaves), squares.detach().sum(dim=0)

        results = list(self._map(learn, _parts(corners, truth, weights, self._threads)))
        of_features, *of_decoder = _sums([gradients for gradients, _ in results])
        of_features[ZERO_ROW] = 0
        of_encoder = _through(features, list(encoder.values()), of_features)
        self._update(list(encoder), of_encoder, scale, rates.encoder, self._encoder_steps[0])
        self._update(list(decoder), of_decoder, scale, rates.decoder, self._decoder_steps[scale])
        return torch.cat([squares for _, squares in results])

    def _active(self, room: str, scale: int) -> dict[str, Tensor]:
        """The parameters of ``"encoder"`` or ``"decoder"`` that learn at ``scale``, ready for gradients."""
        names = [name for name in self._parameters if name.startswith(room)]
        return {name: self._slice(self._parameters, name, scale).detach().requires_grad_() for name in names}

    def _squares(self, features: Tensor, decoder: dict[str, Tensor], part: Part, scale: int) -> Tensor:
        """Squared errors ``[PATCH_SIDE**2, n]`` of patches, summed over the channels."""
        corners, truth, weights = part
        inputs = self.reader.patches(features, corners, scale, PATCH_SIDE)
        values = decode(inputs.reshape(-1, inputs.shape[2]), _layers(decoder))
        return (values.reshape(truth.shape) - truth).square().sum(dim=2) * weights

    def move_to(self, tree: Tree) -> None:
        """Takes another tree; vertices that both trees have keep their features, new ones start at zero.

        A zero reads like an absent block, so that a split alone leaves the picture as it is.
        """
        lattice = Lattice.build(tree, self._architecture.cells)
        if self._architecture.encoder == "grid":
            here, there = lattice.carry_over(self.lattice)
            for tensors in (self._parameters, self._first, self._second):
                moved = torch.zeros(lattice.vertices + 1, self._architecture.features)
                moved[here] = tensors[FEATURES][there]
                tensors[FEATURES] = moved
        self._set_lattice(lattice)

    def render_patches(self, corners: Tensor, side: int) -> Tensor:
        """Full-size values ``[side**2, n, channels]`` of patches, without learning."""
        with torch.inference_mode():
            features = self._vertex_features(self._parameters)
            inputs = self.reader.patches(features, corners, 0, side, self.reader.fold(features))
            values = decode(inputs.reshape(-1, inputs.shape[2]), scale_layers(self._parameters, 0))
        return values.reshape(side**2, len(corners), -1)

    @property
    def parameter_count(self) -> int:
        """Learned numbers."""
        total = sum(tensor.numel() for tensor in self._parameters.values())
        return total - (self._architecture.features if FEATURES in self._parameters else 0)

    @property
    def byte_count(self) -> int:
        """About how large the file will be."""
        features = self._parameters[FEATURES].numel() if FEATURES in self._parameters else 0
        return 2 * features + 4 * (self.parameter_count - features) + 40 * len(self.lattice.tree)

    def _set_lattice(self, lattice: Lattice) -> None:
        self.lattice = lattice
        self.reader = Reader(lattice)
        self._vertex_features = VertexFeatures(self._architecture, lattice)

    @staticmethod
    def _slice(tensors: dict[str, Tensor], name: str, scale: int) -> Tensor:
        return tensors[name][scale] if name.startswith("decoder") else tensors[name]

    def _update(
        self, names: list[str], gradients: list[Tensor], scale: int, rate: float, count: Tensor
    ) -> None:
        """Adam on the given tensors, or on their slices for one scale."""
        with torch.no_grad():
            adam(
                [self._slice(self._parameters, name, scale) for name in names],
                gradients,
                [self._slice(self._first, name, scale) for name in names],
                [self._slice(self._second, name, scale) for name in names],
                [],
                [count.clone() for _ in names],
                fused=True,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=rate,
                weight_decay=0.0,
                eps=EPSILON,
                maximize=False,
            )
            count += 1


def _mapper(threads: int) -> Callable[..., Iterable[Any]]:
    """A ``map`` on so many threads. Each must compute alone: see :func:`acorn_svc.training.loop.fit`."""
    if threads == 1:
        return map
    return ThreadPoolExecutor(threads).map


def _parts(corners: Tensor, truth: Tensor, weights: Tensor, count: int) -> list[Part]:
    split = corners.tensor_split(count), truth.tensor_split(count, dim=1), weights.tensor_split(count, dim=1)
    return list(zip(*split, strict=True))


def _sums(gradients: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """The gradients of all parts together, added in their order."""
    return [reduce(torch.add, parts) for parts in zip(*gradients, strict=True)]


def _through(features: Tensor, parameters: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """Carries the gradient of the features on to the encoder's parameters."""
    return list(torch.autograd.grad(features, parameters, gradient))


def _layers(named: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    # By name: a state that was read from a file has its arrays in another order.
    numbers = range(len(named) // 2)
    return [(named[f"decoder.{n}.weight"], named[f"decoder.{n}.bias"]) for n in numbers]


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(array.copy()) for name, array in arrays.items() if array.dtype == np.float32
    }
