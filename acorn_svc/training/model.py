"""The trainable field: parameters and optimiser moments over a tree that may change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acorn_svc.field.decoder import decode, layers_of, scale_layers
from acorn_svc.field.encoders import FEATURES, VertexFeatures, count_parameters
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.model import Field, initial_parameters
from acorn_svc.field.reader import Reader
from acorn_svc.field.state import Architecture, FitRecord, Signal
from acorn_svc.field.tree import Tree
from acorn_svc.training.optimisers import Slot, TouchedRows, adam_step, row_step
from acorn_svc.training.presets import PATCH_SIDE
from acorn_svc.training.state import select_prefix, with_prefix

Arrays = dict[str, NDArray[np.generic]]
Part = tuple[Tensor, Tensor, Tensor]

TABLES = ("parameters", "first", "second")


@dataclass(frozen=True)
class Rates:
    """Learning rates of one step."""

    encoder: float
    decoder: float


class Learned(NamedTuple):
    """What some patches taught.

    ``rows [n]`` of the features and their gradients ``[n, channels]``, gradients of the decoder's parameters,
    and the summed squared error of each patch.
    """

    rows: Tensor
    features: Tensor
    decoder: tuple[Tensor, ...]
    squares: Tensor


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
        self._parameters, self._first, self._second = (
            _tensors(select_prefix(prefix, arrays)) for prefix in TABLES
        )
        self._tables = (self._parameters, self._first, self._second)
        updates = _tensors(select_prefix("updates", arrays))
        self._encoder_steps, self._decoder_steps = updates["encoder"], updates["decoder"]
        self._last_steps = updates["features"]
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
        zeros = {name: np.zeros(tensor.shape, np.float32) for name, tensor in parameters.items()}
        arrays |= with_prefix("second", {**zeros})
        zeros.pop(FEATURES, None)
        arrays |= with_prefix("first", {**zeros})
        arrays["updates.encoder"] = np.zeros(1, np.float32)
        arrays["updates.decoder"] = np.zeros(lattice.tree.depth + 1, np.float32)
        arrays["updates.features"] = np.zeros(lattice.vertices + 1, np.float32)
        return TrainableField(signal, architecture, lattice, arrays, threads)

    def to_arrays(self) -> Arrays:
        """Copies of everything that learns; the constructor takes them back."""
        arrays: Arrays = {}
        for prefix, tensors in zip(TABLES, self._tables, strict=True):
            arrays |= with_prefix(prefix, {name: tensor.numpy().copy() for name, tensor in tensors.items()})
        arrays["updates.encoder"] = self._encoder_steps.numpy().copy()
        arrays["updates.decoder"] = self._decoder_steps.numpy().copy()
        arrays["updates.features"] = self._last_steps.numpy().copy()
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
        total = weights.sum() * truth.shape[2]

        def learn(part: Part) -> Learned:
            return self._learn(features.detach(), decoder, part, scale, total)

        learned = list(self._map(learn, _parts(corners, truth, weights, self._threads)))
        rows = torch.cat([part.rows for part in learned])
        touched, gradient = self._touched.sum(rows, torch.cat([part.features for part in learned]))
        self._update_encoder(encoder, features, touched, gradient, rates.encoder)
        sums = [reduce(torch.add, same) for same in zip(*(part.decoder for part in learned), strict=True)]
        slots = [self._slot(name, scale) for name in decoder]
        adam_step(slots, sums, rates.decoder, self._decoder_steps[scale])
        return torch.cat([part.squares for part in learned])

    def _active(self, room: str, scale: int) -> dict[str, Tensor]:
        """The parameters of ``"encoder"`` or ``"decoder"`` that learn at ``scale``, ready for gradients."""
        named = {name: tensor for name, tensor in self._parameters.items() if name.startswith(room)}
        if room == "decoder":
            named = {name: tensor[scale] for name, tensor in named.items()}
        return {name: tensor.detach().requires_grad_() for name, tensor in named.items()}

    def _learn(
        self, features: Tensor, decoder: dict[str, Tensor], part: Part, scale: int, total: Tensor
    ) -> Learned:
        """Gradients of the squared error of some patches, divided by ``total``."""
        corners, truth, weights = part
        rows: list[Tensor] = []
        values: list[Tensor] = []

        def gather(vertices: Tensor) -> Tensor:
            rows.append(vertices.flatten())
            values.append(features[vertices].requires_grad_())
            return values[0]

        inputs = self.reader.patches(gather, corners, scale, PATCH_SIDE)
        output = decode(inputs.reshape(-1, inputs.shape[2]), layers_of(decoder))
        squares = (output.reshape(truth.shape) - truth).square().sum(dim=2) * weights
        gradients = torch.autograd.grad(squares.sum() / total, [values[0], *decoder.values()])
        return Learned(rows[0], gradients[0].flatten(0, 1), gradients[1:], squares.detach().sum(dim=0))

    def _update_encoder(
        self, encoder: dict[str, Tensor], features: Tensor, rows: Tensor, gradient: Tensor, rate: float
    ) -> None:
        """Learns from the gradient of some rows of the features.

        Features that are learned directly change in these rows alone: a step of a large picture costs no more
        than one of a small picture.
        """
        if FEATURES in encoder:
            row_step(
                self._parameters[FEATURES],
                self._second[FEATURES],
                self._last_steps,
                rows,
                gradient,
                rate,
                self._encoder_steps[0],
            )
        else:
            dense = torch.zeros_like(features).index_copy(0, rows, gradient)
            gradients = list(torch.autograd.grad(features, list(encoder.values()), dense))
            slots = [self._slot(name, ...) for name in encoder]
            adam_step(slots, gradients, rate, self._encoder_steps[0])

    def move_to(self, tree: Tree) -> None:
        """Takes another tree; vertices that both trees have keep their features, new ones start at zero.

        A zero reads like an absent block, so that a split alone leaves the picture as it is.
        """
        lattice = Lattice.build(tree, self._architecture.cells)
        if self._architecture.encoder == "grid":
            here, there = map(torch.from_numpy, lattice.carry_over(self.lattice))

            def moved(rows: Tensor) -> Tensor:
                return rows.new_zeros(lattice.vertices + 1, *rows.shape[1:]).index_copy(0, here, rows[there])

            for tensors in (self._parameters, self._second):
                tensors[FEATURES] = moved(tensors[FEATURES])
            self._last_steps = moved(self._last_steps)
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
        return count_parameters(self._parameters)

    @property
    def byte_count(self) -> int:
        """About how large the file will be."""
        features = self._parameters[FEATURES].numel() if FEATURES in self._parameters else 0
        return 2 * features + 4 * (self.parameter_count - features) + 40 * len(self.lattice.tree)

    def _set_lattice(self, lattice: Lattice) -> None:
        self.lattice = lattice
        self.reader = Reader(lattice)
        self._vertex_features = VertexFeatures(self._architecture, lattice)
        self._touched = TouchedRows(lattice.vertices + 1)

    def _slot(self, name: str, index: int | EllipsisType) -> Slot:
        """A view of a part of a parameter and of its two moments."""
        parameter, first, second = (tensors[name][index] for tensors in self._tables)
        return parameter, first, second


def _mapper(threads: int) -> Callable[..., Iterable[Any]]:
    """A ``map`` on so many threads. Each must compute alone: see :func:`acorn_svc.training.loop.fit`."""
    if threads == 1:
        return map
    return ThreadPoolExecutor(threads).map


def _parts(corners: Tensor, truth: Tensor, weights: Tensor, count: int) -> list[Part]:
    split = corners.tensor_split(count), truth.tensor_split(count, dim=1), weights.tensor_split(count, dim=1)
    return list(zip(*split, strict=True))


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(array.copy()) for name, array in arrays.items() if array.dtype == np.float32
    }
