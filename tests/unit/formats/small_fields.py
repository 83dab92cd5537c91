"""Small fields, untrained: files care about structure, not about quality."""

from typing import Literal

import torch

from acorn_svc.field.lattice import Lattice
from acorn_svc.field.model import Field, empty_tree, initial_parameters
from acorn_svc.field.state import Architecture, FitRecord, Signal


def make_field(encoder: Literal["grid", "coordinate"], seed: int = 0) -> Field:
    signal = Signal(width=9, height=7, channels=3, bit_depth=8)
    architecture = Architecture(
        encoder, cells=4, features=2, decoder_width=2, encoder_width=2, encoder_layers=0, frequencies=1
    )
    tree = empty_tree(signal, architecture.cells)
    tree = tree.split(tree.leaf_rows)
    tree = tree.split(tree.leaf_rows[:1])
    lattice = Lattice.build(tree, architecture.cells)
    generator = torch.Generator().manual_seed(seed)
    parameters = initial_parameters(architecture, signal, lattice, generator)
    return Field(signal, architecture, lattice, parameters, FitRecord("draft", 3, 0, 31.25))
