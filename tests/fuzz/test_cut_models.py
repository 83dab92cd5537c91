"""A model that was cut or changed anywhere is refused: there is never a picture that is a little wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from small_fields import SMALL, make_field, make_shape

from acorn_svc.errors import BadModel
from acorn_svc.field.base import empty_tree, initial_parameters
from acorn_svc.field.kinds import AnyField
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.model import Field
from acorn_svc.field.shape import ShapeField
from acorn_svc.field.state import Architecture, ShapeSignal, Signal
from acorn_svc.field.tree import Tree
from acorn_svc.formats import envelope
from acorn_svc.formats.container import KEY, field_to_bytes, unpack_state

Amount = Callable[[int, int], int]
Tell = Callable[[str, object], None]


def _whole(tree: Tree) -> Tree:
    """Split down to the finest level."""
    for _ in range(tree.depth):
        tree = tree.split(tree.leaf_rows[tree.levels[tree.leaf_rows] < tree.depth])
    return tree


def _image(side: int) -> Field:
    """Of noise, in every block there can be."""
    signal, architecture = Signal(side, side, 3, 8), Architecture(**{**SMALL, "cells": 8, "features": 4})
    lattice = Lattice.build(_whole(empty_tree(signal, 8)), 8)
    parameters = initial_parameters(architecture, signal, lattice, torch.Generator().manual_seed(1))
    return Field(signal, architecture, lattice, parameters)


def _shape(side: int) -> ShapeField:
    signal = ShapeSignal((side, side, side), 1, truncation=4.0, origin=(0.0, 0.0, 0.0), voxel=1.0)
    architecture = Architecture(**{**SMALL, "cells": 4})
    lattice = Lattice.build(_whole(empty_tree(signal, 4)), 4)
    parameters = initial_parameters(architecture, signal, lattice, torch.Generator().manual_seed(1))
    return ShapeField(signal, architecture, lattice, parameters, signs=np.zeros(len(lattice.tree), np.int8))


MODELS: dict[str, Callable[[], AnyField]] = {
    "image": lambda: make_field("grid"),
    "image of coordinates": lambda: make_field("coordinate"),
    "shape": lambda: make_shape("grid", 1, splits=3),
    "coloured shape": lambda: make_shape("grid", 4, splits=12),
    "larger image": lambda: _image(96),
    "larger shape": lambda: _shape(24),
}


@cache
def _bytes(name: str) -> bytes:
    return field_to_bytes(MODELS[name]())


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> bytes:
    return _bytes(request.param)


def _refuse(data: bytes | bytearray | memoryview) -> None:
    with pytest.raises(BadModel):
        unpack_state(data)


def _some(positions: range, count: int) -> list[int]:
    """All of them, or as many as `count`, evenly, with the first and the last."""
    if len(positions) <= count:
        return list(positions)
    return np.unique(np.linspace(positions[0], positions[-1], count).astype(int)).tolist()


def _changed(data: bytearray, positions: list[int], changes: list[int]) -> Iterator[bytearray]:
    """`data` with one byte changed, time after time, by each of `changes`."""
    for position, change in product(positions, changes):
        data[position] ^= change
        yield data
        data[position] ^= change


@pytest.mark.torture
def test_every_prefix_is_refused(model: bytes, amount: Amount, tell: Tell) -> None:
    lengths = _some(range(len(model)), amount(3000 if model is _bytes("image") else 200, 20_000))
    for length in lengths:
        _refuse(memoryview(model)[:length])
    tell("prefixes", len(lengths))


@pytest.mark.torture
def test_every_change_of_a_header_is_refused(model: bytes, amount: Amount, tell: Tell) -> None:
    header = range(8 + int.from_bytes(model[:8], "little"))
    positions = _some(header, amount(2000 if model is _bytes("image") else 50, 10_000))
    for changed in _changed(bytearray(model), positions, [1 << bit for bit in range(8)]):
        _refuse(changed)
    unpack_state(model)
    tell("changed bits", 8 * len(positions))


@pytest.mark.torture
def test_every_change_behind_the_header_is_refused(model: bytes, amount: Amount, tell: Tell) -> None:
    body = range(8 + int.from_bytes(model[:8], "little"), len(model))
    positions = _some(body, amount(2000 if model is _bytes("image") else 100, 20_000))
    for changed in _changed(bytearray(model), positions, [0x01, 0xFF]):
        _refuse(changed)
    tell("changed bytes", 2 * len(positions))


def test_every_digest_counts(model: bytes) -> None:
    """Each of the chunks' digests, in a file whose own digest is right."""
    document, tensors = envelope.unpack(model, KEY, ("features",))
    features = tensors.pop("features")
    for chunk in range(len(tensors["chunks.digest"])):
        digests = tensors["chunks.digest"].copy()
        digests[chunk, chunk % 16] ^= 1
        head = {**tensors, "chunks.digest": digests}
        _refuse(b"".join(envelope.pack(KEY, document, head, {"features": features})))


def test_another_byte_at_either_end_is_refused(model: bytes) -> None:
    for more in (b"\0", b" ", b"{", b"x" * 4096):
        _refuse(model + more)
        _refuse(more + model)


@pytest.mark.torture
@pytest.mark.parametrize("kind", ["image", "shape"])
def test_a_large_file_cut_anywhere_is_refused(kind: str, amount: Amount, tell: Tell) -> None:
    """As large as a photograph's under torture."""
    field = _image(amount(200, 2048)) if kind == "image" else _shape(amount(40, 256))
    data, count = field_to_bytes(field), amount(20, 200)
    random = np.random.default_rng(0)
    for length in random.integers(0, len(data), count).tolist():
        _refuse(memoryview(data)[:length])
    for changed in _changed(bytearray(data), random.integers(0, len(data), 20).tolist(), [1]):
        _refuse(changed)
    tell("bytes", len(data))
    tell("cuts", count)
