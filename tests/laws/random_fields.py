"""Random trees, lattices and fields to test laws on, and the reading of features from its definition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from acorn_svc.field.base import empty_tree, initial_parameters
from acorn_svc.field.geometry import SLOTS
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.model import Field
from acorn_svc.field.shape import ShapeField
from acorn_svc.field.state import Architecture, EncoderName, ShapeSignal, Signal
from acorn_svc.field.tree import ABSENT, Tree

SMALL: dict[str, Any] = {
    "cells": 4,
    "features": 4,
    "decoder_width": 12,
    "encoder_width": 24,
    "encoder_layers": 1,
    "frequencies": 4,
}


def small_architecture(encoder: EncoderName = "grid") -> Architecture:
    return Architecture(encoder, **SMALL)


def grow(tree: Tree, splits: int, rng: np.random.Generator) -> Tree:
    """Splits random leaves, one at a time."""
    for _ in range(splits):
        rows = tree.leaf_rows[tree.levels[tree.leaf_rows] < tree.depth]
        if not len(rows):
            return tree
        tree = tree.split(rng.choice(rows, 1))
    return tree


def random_tree(extent: Sequence[int], splits: int, seed: int = 0, spare_levels: int = 0) -> Tree:
    depth = math.ceil(math.log2(max(extent))) + spare_levels
    return grow(Tree.root(depth, extent), splits, np.random.default_rng(seed))


@st.composite
def trees(draw: st.DrawFn, dimensions: Sequence[int] = (2, 3), splits: int = 12) -> Tree:
    """Trees over any extent, not only powers of two."""
    dimension = draw(st.sampled_from(dimensions))
    largest = {2: 13, 3: 6}[dimension]
    extent = [draw(st.integers(1, largest)) for _ in range(dimension)]
    return random_tree(
        extent, draw(st.integers(0, splits)), draw(st.integers(0, 2**32)), draw(st.integers(0, 1))
    )


def random_features(
    lattice: Lattice, channels: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(lattice.vertices + 1, channels, generator=generator, dtype=dtype)
    features[0] = 0
    return features


def random_field(
    size: tuple[int, int] = (53, 37),
    channels: int = 3,
    bit_depth: int = 8,
    encoder: EncoderName = "grid",
    splits: int = 12,
    seed: int = 0,
) -> Field:
    """An untrained field of strong contrast; values lie within 0.2 to 0.8, so that no clipping hides them."""
    signal = Signal(*size, channels, bit_depth)
    architecture = small_architecture(encoder)
    tree = grow(empty_tree(signal, architecture.cells), splits, np.random.default_rng(seed))
    lattice = Lattice.build(tree, architecture.cells)
    parameters = initial_parameters(architecture, signal, lattice, torch.Generator().manual_seed(seed))
    if encoder == "grid":
        parameters["encoder.features"] = random_features(lattice, architecture.features, seed)
    field = Field(signal, architecture, lattice, parameters)
    for scale in range(field.depth + 1):
        _stretch(field, scale)
    return field


def _stretch(field: Field, scale: int) -> None:
    """Scales the last layer of one scale so that its values span 0.2 to 0.8."""
    weight, bias = _last_layer(field)
    values = field.render_scale(scale)
    low, high = float(values.min()), float(values.max())
    factor = 0.6 / (high - low) if high > low + 1e-3 else 0.0
    weight[scale] *= factor
    bias[scale] = 0.2 + (bias[scale] - low) * factor


def _last_layer(field: Field) -> tuple[torch.Tensor, torch.Tensor]:
    number = field.architecture.decoder_layers
    return field.parameters[f"decoder.{number}.weight"], field.parameters[f"decoder.{number}.bias"]


def constant_field(values: Sequence[float], size: tuple[int, int] = (53, 37), bit_depth: int = 8) -> Field:
    """A field of one value (premultiplied) everywhere and at every scale."""
    field = random_field(size, len(values), bit_depth)
    weight, bias = _last_layer(field)
    weight.zero_()
    bias[:] = torch.tensor(values)
    return field


def random_shape(
    size: tuple[int, int, int] = (37, 20, 29),
    channels: int = 4,
    encoder: EncoderName = "grid",
    splits: int = 20,
    seed: int = 0,
) -> ShapeField:
    """An untrained field; one leaf in three is wholly outside, one in three inside, by chance."""
    signal = ShapeSignal(size, channels, truncation=2.0, origin=(-1.5, 0.25, 3.0), voxel=0.125)
    architecture = small_architecture(encoder)
    generator = np.random.default_rng(seed)
    tree = grow(empty_tree(signal, architecture.cells), splits, generator)
    lattice = Lattice.build(tree, architecture.cells)
    parameters = initial_parameters(architecture, signal, lattice, torch.Generator().manual_seed(seed))
    if encoder == "grid":
        parameters["encoder.features"] = random_features(lattice, architecture.features, seed)
    else:
        parameters[f"decoder.{architecture.decoder_layers}.weight"] *= 30  # for contrast
    signs = np.where(tree.is_leaf, generator.integers(-1, 2, len(tree)), 0).astype(np.int8)
    return ShapeField(signal, architecture, lattice, parameters, signs=signs)


def read_by_definition(
    lattice: Lattice, features: NDArray[np.float64], position: NDArray[np.float64], scale: int
) -> NDArray[np.float64]:
    """What a sample reads, one level and one vertex at a time: ``[SLOTS * channels]``."""
    tree, cells = lattice.tree, lattice.cells
    slots = np.zeros((SLOTS, features.shape[1]))
    for level in range(tree.depth - scale + 1):
        stride = 2 ** (tree.depth - level)
        block = np.floor(position / (stride * cells)).astype(np.int64)
        row = int(tree.find(level, block[None])[0])
        if row == ABSENT:
            continue
        slot = min(tree.depth - scale - level, SLOTS - 1)
        slots[slot] += _interpolate(lattice, features, row, position / stride - block * cells)
    return slots.reshape(-1)


def _interpolate(
    lattice: Lattice, features: NDArray[np.float64], row: int, local: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Multilinear interpolation within block ``row`` at ``local``, in cells from its low corner."""
    side = lattice.cells + 1
    total = np.zeros(features.shape[1])
    for vertex in itertools.product(*((math.floor(p), math.floor(p) + 1) for p in local)):
        weight = np.prod([max(0.0, 1 - abs(v - p)) for v, p in zip(vertex, local, strict=True)])
        place = sum(v * side**axis for axis, v in enumerate(vertex))
        total += weight * features[lattice.table[row, place]]
    return total
