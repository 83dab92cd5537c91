"""Marching cubes over blocks of a sparse lattice: natively where that is built, else in plain NumPy.

``marching_reference`` is the specification; ``marching_native`` has the same functions with the same
signatures and the same results, bit for bit.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

BLOCK = 8  # points along a block
NEIGHBOURS = 27  # blocks that touch a block, and itself
CLOSEST = 1e-3  # of an edge: how near to its end it is cut
FARTHEST = 2.0  # spacings: the largest distance that counts for a normal

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


class Crossings(NamedTuple):
    """Edges of a lattice that a surface crosses.

    Attributes:
        vertices: ``float32 [n, 3]``: where, in voxels.
        normals: ``float32 [n, 3]``: unit vectors along which the distance grows.
        edges: ``int32 [n]``, ascending: rows of ``[blocks, 8, 8, 8, 3]``, the last one the axis.
        spans: ``float32 [n]``: how much the distance changes along the edge, in voxels.
    """

    vertices: Floats
    normals: Floats
    edges: Integers
    spans: Floats


class Marching(Protocol):
    """What both have; :mod:`acorn_svc.field.ops.marching_reference` says what each does."""

    def cross_edges(
        self,
        values: Floats,
        neighbours: Integers,
        corners: Integers,
        spacing: float,
        carried: int,
        whole: int,
    ) -> Crossings:
        """Where the surface crosses edges."""

    def triangles(self, values: Floats, neighbours: Integers, numbers: Integers, whole: int) -> Integers:
        """Crossings to triangles."""


def check(values: Floats, neighbours: Integers, others: Integers, carried: int, whole: int) -> None:
    """Refuses what is not as the specification says.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, not contiguous, a count or a neighbour out of range.
    """
    for name, array, dtype in (
        ("values", values, np.float32),
        ("neighbours", neighbours, np.int32),
        ("corners or numbers", others, np.int32),
    ):
        if array.dtype != dtype:
            raise TypeError(f"{name}: expected {np.dtype(dtype)}, got {array.dtype}")
        if not array.flags.c_contiguous:
            raise ValueError(f"{name}: expected a contiguous array")
    blocks = len(values)
    _require(values.shape == (blocks, BLOCK, BLOCK, BLOCK), "values: expected [blocks, 8, 8, 8]")
    _require(neighbours.shape == (blocks, NEIGHBOURS), "neighbours: expected [blocks, 27]")
    expected = ((blocks, 3), (blocks, BLOCK, BLOCK, BLOCK, 3))
    _require(others.shape in expected, "corners or numbers: expected [blocks, 3] or [blocks, 8, 8, 8, 3]")
    _require(0 <= carried <= blocks and 0 <= whole <= blocks, "carried and whole: expected 0 to blocks")
    if blocks:
        low, high = int(neighbours.min()), int(neighbours.max())
        _require(low >= -1 and high < blocks, "neighbours: expected -1 to blocks - 1")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


@cache
def choose() -> Marching:
    """The native functions where they are built, else the plain ones."""
    package = __name__.rpartition(".")[0]
    try:
        module: Any = import_module(f"{package}.marching_native")
    except ImportError:
        module = import_module(f"{package}.marching_reference")
    return cast(Marching, module)


def cross_edges(
    values: Floats, neighbours: Integers, corners: Integers, spacing: float, carried: int, whole: int
) -> Crossings:
    """See :func:`acorn_svc.field.ops.marching_reference.cross_edges`."""
    return choose().cross_edges(values, neighbours, corners, spacing, carried, whole)


def triangles(values: Floats, neighbours: Integers, numbers: Integers, whole: int) -> Integers:
    """See :func:`acorn_svc.field.ops.marching_reference.triangles`."""
    return choose().triangles(values, neighbours, numbers, whole)
