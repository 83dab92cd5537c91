"""Native functions of :mod:`acorn_svc.field.ops.marching`, through the native module.

They run on as many threads as PyTorch is set to use; the results do not depend on how many.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from acorn_svc import _native
from acorn_svc.field.cubes import AXES, EDGES, TABLE, TRIANGLE
from acorn_svc.field.ops.marching import CLOSEST, FARTHEST, Crossings, Floats, Integers, check

_STARTS = np.ascontiguousarray(np.asarray(EDGES, np.int32).T)


def cross_edges(
    values: Floats, neighbours: Integers, corners: Integers, spacing: float, carried: int, whole: int
) -> Crossings:
    """See :func:`acorn_svc.field.ops.marching_reference.cross_edges`."""
    check(values, neighbours, corners, carried, whole)
    threads = torch.get_num_threads()
    counts = np.empty(len(values), np.int32)
    _native.count_crossings(values, neighbours, carried, whole, counts, threads)
    offsets = _offsets(counts)
    size = int(offsets[-1])
    out = Crossings(
        np.empty((size, AXES), np.float32),
        np.empty((size, AXES), np.float32),
        np.empty(size, np.int32),
        np.empty(size, np.float32),
    )
    _native.cross_edges(
        values, neighbours, corners, spacing, CLOSEST, FARTHEST, carried, whole, offsets, *out, threads
    )
    return out


def triangles(values: Floats, neighbours: Integers, numbers: Integers, whole: int) -> Integers:
    """See :func:`acorn_svc.field.ops.marching_reference.triangles`."""
    check(values, neighbours, numbers, 0, whole)
    threads = torch.get_num_threads()
    counts = np.empty(whole, np.int32)
    _native.count_triangles(values, neighbours, whole, TABLE, _STARTS, counts, threads)
    offsets = _offsets(counts)
    faces = np.empty((int(offsets[-1]), TRIANGLE), np.int32)
    _native.triangles(values, neighbours, numbers, whole, TABLE, _STARTS, offsets, faces, threads)
    return faces


def _offsets(counts: Integers) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
