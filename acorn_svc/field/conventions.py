"""Coordinates, axis order, levels and ranges: said once, here, and used everywhere.

Positions
    Continuous, in pixels of the full-size signal, axis order (x, y) or (x, y, z). Pixel ``i`` of an
    axis covers ``[i, i + 1)`` and its centre lies at ``i + 0.5``. Arrays are stored ``[y, x, channel]``::

        x: 0     1     2     3     4        full-size pixels (scale 0)
           |--+--|--+--|--+--|--+--|        + centres at 0.5, 1.5, ...
           |-----+-----|-----+-----|        scale 1: centres at 1, 3, ...

Scales
    Scale ``s`` has pixels of side ``2**s`` and holds the mean of the full-size pixels that they cover
    (partly covered pixels at the far border: the mean over the covered part).

Levels and blocks
    Level 0 is the root, level ``depth`` the finest. A block of level ``l`` has ``cells`` cells on
    each side; one cell is one pixel of scale ``depth - l``, so that a block *is* a small picture at its own
    scale, and its feature vertices stand on the corners of its pixels::

        vertex 0   1   2       cells
               o---o---o--...--o
               | + | + |       |       + pixel centres of scale depth - l
               o---o---o--...--o

Values
    Inside the field 0 to 1 (float32, stored sRGB, alpha premultiplied); outside 8- or 16-bit integers with
    straight alpha.
"""

from __future__ import annotations

import math

IMAGE_DIMENSION = 2


def stride(depth: int, level: int) -> int:
    """Side of one cell of a block of ``level``, in full-size pixels."""
    return 1 << (depth - level)


def scaled_size(size: int, scale: int) -> int:
    """Number of pixels of ``scale`` that cover ``size`` full-size pixels."""
    return -(-size >> scale)


def depth_for(size: tuple[int, ...], cells: int) -> int:
    """Smallest depth at which one root block covers a signal of ``size`` full-size pixels."""
    return max(0, math.ceil(math.log2(max(size) / cells)))


def extent_for(size: tuple[int, ...], cells: int) -> tuple[int, ...]:
    """Finest-level blocks per axis (x first) that cover ``size`` full-size pixels."""
    return tuple(-(-side // cells) for side in size)
