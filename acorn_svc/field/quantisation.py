"""Features as files keep them: in fewer bits than they are learned in.

Rows of features are those of the lattice: sorted by node, and so by level.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from acorn_svc.field.lattice import Lattice

FeatureDtype = Literal["float16", "float32", "int8"]
DTYPES: tuple[FeatureDtype, ...] = get_args(FeatureDtype)
INT8_LIMIT = 127
SCALE_BITS = 16
MIN_SCALE = 2.0**-64
MAX_SCALE = 2.0**64

Features = NDArray[np.float32]
Scales = NDArray[np.float32]
Levels = NDArray[np.uint8]
Stored = NDArray[np.float16 | np.float32 | np.int8]


def dtype_for(kind: str) -> FeatureDtype:
    """What features of a field of ``kind`` are stored as."""
    return "int8" if kind == "shape" else "float16"


def row_levels(lattice: Lattice) -> Levels:
    """``uint8 [vertices]``: level of the node that owns each row of features, the zero row not counted."""
    return np.repeat(lattice.tree.levels, np.diff(lattice.offsets))


def quantised(features: Features, levels: Levels, depth: int) -> tuple[NDArray[np.int8], Scales]:
    """Features in 8 bits: the nearest of 255 steps, whose size each level and channel has for itself.

    The largest of a level and channel becomes 127 or -127. A step has 16 significant bits, so that a product
    with 8 bits more is exact in ``float32``, and quantising again what was quantised changes nothing.

    Args:
        features: ``[rows, channels]``, finite.
        levels: ``[rows]``, ascending, 0 to ``depth``.
        depth: of the tree.

    Returns:
        Multiples of the steps ``int8 [rows, channels]`` and the steps ``float32 [depth + 1, channels]``; 1
        where all features are zero, or so small that the step would lie below ``MIN_SCALE``.

    Raises:
        ValueError: a feature isn't finite.
    """
    stored = np.empty(features.shape, np.int8)
    scales = np.ones((depth + 1, features.shape[1]), np.float32)
    for level, rows in _by_level(levels, depth):
        part = features[rows]
        scales[level] = _steps(part)
        stored[rows] = np.rint(part / scales[level])
    return stored, scales


def dequantised(stored: Stored, scales: Scales, levels: Levels) -> Features:
    """``stored`` times the scale of its level and channel, in ``float32``; of any dtype."""
    features = stored.astype(np.float32)
    for level, rows in _by_level(levels, len(scales) - 1):
        features[rows] *= scales[level]
    return features


def stored_as(dtype: FeatureDtype, features: Features, levels: Levels, depth: int) -> tuple[Stored, Scales]:
    """Features as a file of ``dtype`` has them, and their scales, which are 1 but for ``int8``.

    Raises:
        ValueError: a feature isn't finite, in that dtype either.
    """
    if dtype == "int8":
        return quantised(features, levels, depth)
    with np.errstate(over="ignore"):
        stored = features.astype(np.dtype(dtype))
    if not np.isfinite(stored).all():
        raise ValueError("a feature isn't finite")
    return stored, np.ones((depth + 1, features.shape[1]), np.float32)


def rounded(dtype: FeatureDtype, features: Features, levels: Levels, depth: int) -> Features:
    """Features as they come back from a file of ``dtype``; see :func:`stored_as`."""
    return dequantised(*stored_as(dtype, features, levels, depth), levels)


def _by_level(levels: Levels, depth: int) -> list[tuple[int, slice]]:
    """The rows of each level."""
    bounds = np.searchsorted(levels, np.arange(depth + 2, dtype=np.uint8)).tolist()
    return [(level, slice(bounds[level], bounds[level + 1])) for level in range(depth + 1)]


def _steps(part: Features) -> Scales:
    """``[channels]``: a 127th of the largest of ``part [rows, channels]``, to 16 significant bits."""
    peaks = np.maximum(part.max(axis=0, initial=0), -part.min(axis=0, initial=0))
    if not np.isfinite(peaks).all():
        raise ValueError("a feature isn't finite")
    mantissas, exponents = np.frexp(peaks / np.float32(INT8_LIMIT))
    mantissas = np.rint(np.ldexp(mantissas, SCALE_BITS))
    steps: Scales = np.ldexp(mantissas, exponents - SCALE_BITS)
    return np.where(steps < MIN_SCALE, np.float32(1), steps)
