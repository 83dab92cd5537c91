"""What fields of every kind are made of: blocks, features and decoders."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acorn_svc.field.conventions import depth_for, extent_for
from acorn_svc.field.decoder import initial_decoder, layer_sizes
from acorn_svc.field.encoders import (
    VertexFeatures,
    count_parameters,
    initial_encoder,
    mlp_sizes,
)
from acorn_svc.field.geometry import Geometry, fold, geometry_of
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.ops.learning import FEATURES
from acorn_svc.field.state import (
    CELLS,
    FEATURE_CHANNELS,
    Architecture,
    FieldState,
    FitRecord,
    ShapeSignal,
    Signal,
)
from acorn_svc.field.tree import IntArray, Tree


def empty_tree(signal: Signal | ShapeSignal, cells: int) -> Tree:
    """The one-block tree over a signal."""
    return Tree.root(depth_for(signal.size, cells), extent_for(signal.size, cells))


def initial_parameters(
    architecture: Architecture, signal: Signal | ShapeSignal, lattice: Lattice, generator: torch.Generator
) -> dict[str, Tensor]:
    """All parameters of a field to start from: encoder and one decoder for each scale."""
    return {
        **initial_encoder(architecture, lattice, generator),
        **initial_decoder(architecture, signal.initial_value, lattice.tree.depth + 1, generator),
    }


@dataclass(frozen=True, eq=False)
class BaseField:
    """A signal as a tree of feature blocks and a decoder; immutable.

    Attributes:
        signal: what is represented.
        architecture: shape of the networks.
        lattice: blocks and their vertices.
        parameters: ``float32`` tensors of encoder and decoders.
        record: how it was fitted.
    """

    signal: Signal | ShapeSignal
    architecture: Architecture
    lattice: Lattice
    parameters: dict[str, Tensor]
    record: FitRecord = field(default_factory=FitRecord)

    @property
    def encoder(self) -> str:
        """``"grid"`` or ``"coordinate"``."""
        return self.architecture.encoder

    @property
    def depth(self) -> int:
        """Level of the finest possible block; also the coarsest scale that has a decoder."""
        return self.lattice.tree.depth

    @property
    def parameter_count(self) -> int:
        """Learned numbers: encoder and decoders."""
        return count_parameters(self.parameters)

    def blocks(self) -> IntArray:
        """``[leaves, dimension + 2]``: lowest corner and side in full-size pixels, level.

        A block may stick out of the signal at its far border.
        """
        tree = self.lattice.tree
        levels = tree.levels[tree.leaf_rows].astype(np.int64)
        side = self.architecture.cells << (tree.depth - levels)
        corners = tree.coordinates[tree.leaf_rows] * side[:, None]
        return np.concatenate([corners, side[:, None], levels[:, None]], axis=1)

    @cached_property
    def _geometry(self) -> Geometry:
        return geometry_of(self.lattice)

    @cached_property
    def _features(self) -> Tensor:
        with torch.inference_mode():
            return VertexFeatures(self.architecture, self.lattice)(self.parameters)

    @cached_property
    def _folded(self) -> Tensor:
        with torch.inference_mode():
            return fold(self.lattice, self._features)

    def to_state(self) -> FieldState:
        """The field as plain arrays."""
        tree = self.lattice.tree
        arrays = {name: tensor.numpy() for name, tensor in self.parameters.items()}
        empty = np.empty((0, self.architecture.features), np.float32)
        features = arrays.pop(FEATURES)[1:] if FEATURES in arrays else empty
        header = {
            **asdict(self.signal),
            "architecture": asdict(self.architecture),
            "tree": {"dimension": tree.dimension, "depth": tree.depth, "extent": list(tree.extent)},
            "fit": asdict(self.record),
        }
        offsets = self.lattice.offsets if len(features) else np.zeros(len(tree) + 1, np.int64)
        return FieldState(header, tree.levels, tree.indices, features, offsets, arrays)


@dataclass(frozen=True, eq=False)
class Parts:
    """What every field is rebuilt from."""

    architecture: Architecture
    lattice: Lattice
    parameters: dict[str, Tensor]
    record: FitRecord


def rebuild(state: FieldState, signal: Signal | ShapeSignal) -> Parts:
    """The parts of a field of ``signal``.

    Raises:
        KeyError, TypeError, ValueError: they do not fit together.
    """
    header: dict[str, Any] = state.header
    architecture = Architecture(**header["architecture"])
    shape = header["tree"]
    tree = Tree(shape["dimension"], shape["depth"], tuple(shape["extent"]), state.levels, state.indices)
    _check_shape(signal, architecture, tree)
    tree.validate()
    lattice = Lattice.build(tree, architecture.cells)
    parameters = {name: torch.from_numpy(array) for name, array in state.weights.items()}
    if architecture.encoder == "grid":
        if not np.array_equal(lattice.offsets, state.offsets):
            raise ValueError("the feature chunks do not follow the tree")
        zero = np.zeros((1, architecture.features), np.float32)
        parameters[FEATURES] = torch.from_numpy(np.concatenate([zero, state.features]))
    shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    if shapes != _expected_shapes(architecture, signal, lattice):
        raise ValueError("the weights do not have the shapes that the header declares")
    return Parts(architecture, lattice, parameters, FitRecord(**header["fit"]))


def _expected_shapes(
    architecture: Architecture, signal: Signal | ShapeSignal, lattice: Lattice
) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters, without making any: a header may declare more than memory holds."""
    scales = lattice.tree.depth + 1
    shapes: dict[str, tuple[int, ...]] = {}
    for number, layer in enumerate(pairwise(layer_sizes(architecture, signal.channels))):
        shapes[f"decoder.{number}.weight"] = (scales, *layer)
        shapes[f"decoder.{number}.bias"] = (scales, layer[1])
    if architecture.encoder == "grid":
        return {**shapes, FEATURES: (lattice.vertices + 1, architecture.features)}
    for number, layer in enumerate(pairwise(mlp_sizes(architecture, lattice.tree.dimension))):
        shapes[f"encoder.{number}.weight"] = layer
        shapes[f"encoder.{number}.bias"] = (layer[1],)
    return shapes


def _check_shape(signal: Signal | ShapeSignal, architecture: Architecture, tree: Tree) -> None:
    if min(signal.size) < 1:
        raise ValueError("a signal has at least one pixel")
    if architecture.encoder not in ("grid", "coordinate"):
        raise ValueError(f"unknown encoder {architecture.encoder!r}")
    if architecture.cells not in CELLS:
        raise ValueError("cells must be a power of two from 4 to 64")
    if architecture.features not in FEATURE_CHANNELS:
        raise ValueError("a feature vertex has 1, 2, 4 or 8 channels")
    expected = empty_tree(signal, architecture.cells)
    if (tree.depth, tree.extent) != (expected.depth, expected.extent):
        raise ValueError("the tree does not cover the signal")
