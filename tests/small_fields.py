"""Small fields, untrained: files care about structure, not about quality."""

from typing import Literal

import numpy as np
import torch

from acorn_svc.field.base import empty_tree, initial_parameters
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.model import Field
from acorn_svc.field.shape import ShapeField
from acorn_svc.field.state import Architecture, EncoderName, FitRecord, ShapeSignal, Signal

SMALL = {
    "cells": 4,
    "features": 2,
    "decoder_width": 2,
    "encoder_width": 2,
    "encoder_layers": 0,
    "frequencies": 1,
}


def make_field(encoder: EncoderName, seed: int = 0) -> Field:
    signal = Signal(width=9, height=7, channels=3, bit_depth=8)
    architecture = Architecture(encoder, **SMALL)
    tree = empty_tree(signal, architecture.cells)
    tree = tree.split(tree.leaf_rows)
    tree = tree.split(tree.leaf_rows[:1])
    lattice = Lattice.build(tree, architecture.cells)
    generator = torch.Generator().manual_seed(seed)
    parameters = initial_parameters(architecture, signal, lattice, generator)
    return Field(signal, architecture, lattice, parameters, FitRecord("draft", 3, 0, 31.25))


def make_shape(encoder: EncoderName, channels: Literal[1, 4], seed: int = 0, splits: int = 12) -> ShapeField:
    """A random tree, whose leaves are inside, outside or neither by chance."""
    signal = ShapeSignal((37, 20, 29), channels, truncation=4.0, origin=(-1.5, 0.25, 3.0), voxel=0.125)
    architecture = Architecture(encoder, **SMALL)
    random = np.random.default_rng(seed)
    tree = empty_tree(signal, architecture.cells)
    for _ in range(splits):
        tree = tree.split(random.choice(tree.leaf_rows[tree.levels[tree.leaf_rows] < tree.depth], 1))
    lattice = Lattice.build(tree, architecture.cells)
    parameters = initial_parameters(architecture, signal, lattice, torch.Generator().manual_seed(seed))
    signs = np.where(tree.is_leaf, random.integers(-1, 2, len(tree)), 0).astype(np.int8)
    record = FitRecord("draft", 3, 0, iou=0.75)
    return ShapeField(signal, architecture, lattice, parameters, record, signs)
