"""The trainable field: parameters and optimiser moments over a tree that may change."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acorn_svc.field import ops
from acorn_svc.field.base import initial_parameters
from acorn_svc.field.encoders import VertexFeatures, count_parameters
from acorn_svc.field.geometry import geometry_of
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.ops.learning import (
    FEATURES,
    RUN,
    Layer,
    Learned,
    Learner,
    PointSampling,
    Sampling,
    Schedule,
)
from acorn_svc.field.ops.points import draw_points, note_errors
from acorn_svc.field.ops.reference import draw_patches, read_patches
from acorn_svc.field.ops.tcnn import MlpName
from acorn_svc.field.state import Architecture, ShapeSignal, Signal
from acorn_svc.field.tree import Tree
from acorn_svc.training.optimisers import adam_step
from acorn_svc.training.state import select_prefix, with_prefix

Arrays = dict[str, NDArray[np.generic]]

TABLES = ("parameters", "first", "second")
COUNTERS = ("last", "encoder_steps", "decoder_steps", "drawn")


class TrainableField:
    """Parameters in training.

    Attributes:
        architecture: shape of the networks.
        lattice: the current blocks.
        geometry: the same as flat arrays.
    """

    def __init__(
        self,
        architecture: Architecture,
        lattice: Lattice,
        arrays: Arrays,
        device: str = "cpu",
        mlp: MlpName = "own",
    ) -> None:
        self.architecture = architecture
        self._device = torch.device(device)
        self._mlp = mlp
        parameters, first, second = (self._tensors(select_prefix(prefix, arrays)) for prefix in TABLES)
        counters = self._tensors(select_prefix("counters", arrays))
        last, encoder_steps, decoder_steps, drawn = (counters[name] for name in COUNTERS)
        nothing = torch.empty(0)
        self._learner = Learner(
            parameters, first, second, last, nothing, encoder_steps, decoder_steps, drawn, nothing
        )
        self._set_lattice(lattice, self._tensors({"errors": arrays["errors"]})["errors"])

    @staticmethod
    def start(
        signal: Signal | ShapeSignal, architecture: Architecture, lattice: Lattice, generator: torch.Generator
    ) -> Arrays:
        """Fresh parameters, for the constructor."""
        parameters = initial_parameters(architecture, signal, lattice, generator)
        scales = lattice.tree.depth + 1
        arrays = with_prefix("parameters", {name: tensor.numpy() for name, tensor in parameters.items()})
        zeros = {name: np.zeros(tensor.shape, np.float32) for name, tensor in parameters.items()}
        arrays |= with_prefix("second", {**zeros})
        zeros.pop(FEATURES, None)
        arrays |= with_prefix("first", {**zeros})
        arrays["counters.last"] = np.zeros(lattice.vertices + 1, np.float32)
        arrays["counters.encoder_steps"] = np.zeros(1, np.float32)
        arrays["counters.decoder_steps"] = np.zeros(scales, np.float32)
        arrays["counters.drawn"] = np.zeros(scales, np.int64)
        arrays["errors"] = np.zeros((2, len(lattice.tree)))
        return arrays

    def to_arrays(self) -> Arrays:
        """Copies of everything that learns; the constructor takes them back."""
        arrays: Arrays = {}
        for prefix, tensors in zip(TABLES, self._learner.tables, strict=True):
            arrays |= with_prefix(prefix, {name: _copied(tensor) for name, tensor in tensors.items()})
        counters = {name: _copied(getattr(self._learner, name)) for name in COUNTERS}
        return {**arrays, **with_prefix("counters", counters), "errors": _copied(self._learner.errors)}

    def copy_parameters(self, *, forget_untouched: bool = False) -> dict[str, Tensor]:
        """Copies of the parameters, on the CPU.

        Args:
            forget_untouched: rows of features that no step has touched yet are zero.
        """
        parameters = {name: tensor.cpu().clone() for name, tensor in self._learner.parameters.items()}
        if forget_untouched and FEATURES in parameters:
            parameters[FEATURES][self._learner.last.cpu() == 0] = 0
        return parameters

    def train(self, sampling: Sampling | PointSampling, schedule: Schedule) -> None:
        """Steps of training; see :func:`acorn_svc.field.ops.reference.train`.

        Features that are learned directly change in the rows that a step reads: a step of a large picture
        costs no more than one of a small picture. The weights of a coordinate encoder all change.
        """
        if FEATURES in self._learner.parameters:
            if isinstance(sampling, PointSampling):
                ops.train_points(self.geometry, self._learner, sampling, schedule)
            else:
                ops.train(self.geometry, self._learner, sampling, schedule)
            return
        rates = zip(*(values.tolist() for values in schedule), strict=True)
        for scale, encoder_rate, decoder_rate in rates:
            self._train_encoder(sampling, scale, encoder_rate, decoder_rate)

    def _train_encoder(
        self, sampling: Sampling | PointSampling, scale: int, encoder_rate: float, decoder_rate: float
    ) -> None:
        """One step of the coordinate encoder.

        Its features are made once for full size and for ``scale``: they cost more than learning from them.
        """
        learner = self._learner
        features = self._vertex_features(learner.parameters)
        gradient = torch.zeros_like(features)
        for part in {0, scale}:
            gradient += self._train_decoder(features, sampling, part, decoder_rate)
        gradients = self._vertex_features.backward(learner.parameters, gradient)
        slots = [tuple(table[name] for table in learner.tables) for name in gradients]
        adam_step(slots, list(gradients.values()), encoder_rate, learner.encoder_steps[0])

    def _train_decoder(
        self, features: Tensor, sampling: Sampling | PointSampling, scale: int, rate: float
    ) -> Tensor:
        """One step of the decoder of a scale; returns the gradient of the features."""
        learner = self._learner
        layers = learner.layers(scale)
        if isinstance(sampling, PointSampling):
            learned = self._learn_points(features, layers, sampling, scale)
        else:
            learned = self._learn_patches(features, layers, sampling, scale)
        names = [name for n in range(len(layers)) for name in (f"decoder.{n}.weight", f"decoder.{n}.bias")]
        slots = [tuple(table[name][scale] for table in learner.tables) for name in names]
        flat = [tensor for layer in learned.layers for tensor in layer]
        adam_step(slots, flat, rate, learner.decoder_steps[scale])
        return learned.features

    def _learn_points(
        self, features: Tensor, layers: list[Layer], sampling: PointSampling, scale: int
    ) -> Learned:
        learner = self._learner
        positions, truth = draw_points(learner, sampling, scale)
        learned = ops.learn_points(self.geometry, features, layers, positions, scale, truth, sampling.loss)
        learner.drawn[scale] += len(positions) // RUN
        if scale == 0:
            note_errors(ops.choose(positions.device.type), self.geometry, learner, positions, learned.errors)
        return learned

    def _learn_patches(
        self, features: Tensor, layers: list[Layer], sampling: Sampling, scale: int
    ) -> Learned:
        learner = self._learner
        corners = draw_patches(learner, sampling, scale)
        truth, weights = read_patches(sampling.pyramid[scale], corners)
        learned = ops.learn(self.geometry, features, layers, corners, scale, truth, weights)
        learner.drawn[scale] += len(corners)
        if scale == 0:
            rows = ops.locate(self.geometry, corners.double()).long()
            learner.errors[0].index_add_(0, rows, learned.errors)
            learner.errors[1].index_add_(0, rows, weights.sum(dim=1).double())
        return learned

    def move_to(self, tree: Tree) -> None:
        """Takes another tree and forgets the errors.

        Vertices that both trees have keep their features, new ones start at zero. A zero reads like an absent
        block, so that a split alone leaves the picture as it is.
        """
        lattice = Lattice.build(tree, self.architecture.cells)
        if FEATURES in self._learner.parameters:
            here, there = (
                torch.from_numpy(rows).to(self._device) for rows in lattice.carry_over(self.lattice)
            )

            def moved(rows: Tensor) -> Tensor:
                return rows.new_zeros(lattice.vertices + 1, *rows.shape[1:]).index_copy(0, here, rows[there])

            for tensors in (self._learner.parameters, self._learner.second):
                tensors[FEATURES] = moved(tensors[FEATURES])
            self._learner = self._learner._replace(last=moved(self._learner.last))
        self._set_lattice(lattice)

    @property
    def errors(self) -> NDArray[np.float64]:
        """``[2, nodes]``: squared error and pixels seen at full size in each leaf."""
        values: NDArray[np.float64] = self._learner.errors.cpu().numpy()
        return values

    def forget_errors(self) -> None:
        """Starts the statistics anew."""
        self._learner.errors.zero_()

    def render_points(self, positions: Tensor) -> Tensor:
        """Full-size values ``[n, channels]`` at ``float64 [n, 2]``, without learning."""
        with torch.inference_mode():
            features = self._vertex_features(self._learner.parameters)
            layers = self._learner.layers(0)
            positions = positions.to(self._device)
            return ops.render_points(self.geometry, features, None, layers, positions, 0).cpu()

    @property
    def parameter_count(self) -> int:
        """Learned numbers."""
        return count_parameters(self._learner.parameters)

    @property
    def byte_count(self) -> int:
        """About how large the file will be."""
        parameters = self._learner.parameters
        features = parameters[FEATURES].numel() if FEATURES in parameters else 0
        return 2 * features + 4 * (self.parameter_count - features) + 40 * len(self.lattice.tree)

    def _set_lattice(self, lattice: Lattice, errors: Tensor | None = None) -> None:
        self.lattice = lattice
        self.geometry = geometry_of(lattice).to(self._device)
        self._vertex_features = VertexFeatures(self.architecture, lattice, self._device, self._mlp)
        features = self._learner.parameters.get(FEATURES, torch.empty(0))
        if errors is None:
            errors = torch.zeros(2, len(lattice.tree), dtype=torch.float64, device=self._device)
        self._learner = self._learner._replace(scratch=torch.zeros_like(features), errors=errors)

    def _tensors(self, arrays: Arrays) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.array(array)).to(self._device) for name, array in arrays.items()}


def _copied(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().numpy()
    return array.copy()
