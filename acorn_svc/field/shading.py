"""A picture of a shape, by rays that jump over empty blocks and creep up to the surface."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from acorn_svc.field.shape import Points, ShapeField, Values
from acorn_svc.field.tree import BoolArray

UpAxis = Literal["y", "z"]
Vector = tuple[float, float, float]

# Where y is up; see _placed.
VIEW = (-0.55, -0.4, -0.8)  # the way the rays go
UP = (0.0, 1.0, 0.0)
LIGHT = (0.35, 0.8, 0.5)
AMBIENT = 0.35
MARGIN = 1.04
RAYS_PER_PIXEL = 2  # along an axis
PLAIN = (222, 216, 205)
MOST_STEPS = 512
HIT = 0.1  # voxels
LEAST_STEP = 0.25  # voxels
JUST_BEYOND = 1e-3  # voxels


def picture(field: ShapeField, side: int, up: UpAxis = "y") -> NDArray[np.uint8]:
    """The shape as seen from the front, the right and above.

    Args:
        field: the shape.
        side: width and height in pixels.
        up: the axis of the mesh that points up.

    Returns:
        ``uint8 [side, side, 4]``: red, green, blue, and how much of the pixel the shape covers.
    """
    rays = side * RAYS_PER_PIXEL
    starts, forward, pitch = _rays(field, rays, up)
    scale = min(max(math.floor(math.log2(pitch)), 0), field.depth)
    hit, positions = _march(field, starts, forward, scale)
    samples = np.zeros((rays * rays, 4), np.float32)
    samples[hit, :3] = _shaded(field, positions[hit], scale, up)
    samples[hit, 3] = 1
    pixels = samples.reshape(side, RAYS_PER_PIXEL, side, RAYS_PER_PIXEL, 4).mean(axis=(1, 3))
    alpha = pixels[..., 3:]
    colour = np.divide(pixels[..., :3], alpha, out=np.zeros_like(pixels[..., :3]), where=alpha > 0)
    shown: NDArray[np.uint8] = np.rint(np.concatenate([colour, alpha], axis=-1) * 255).astype(np.uint8)
    return shown


def _placed(vector: Vector, up: UpAxis) -> NDArray[np.float64]:
    """A unit vector, said where y is up, in the coordinates of the mesh."""
    x, y, z = np.array(vector) / np.linalg.norm(vector)
    return np.array((x, y, z) if up == "y" else (x, -z, y))


def _rays(field: ShapeField, count: int, axis: UpAxis) -> tuple[Points, Points, float]:
    """Where parallel rays start, ``[count**2, 3]`` from the top left, where they go, and how far apart."""
    size = np.array(field.signal.size, np.float64)
    forward = _placed(VIEW, axis)
    right = np.cross(forward, _placed(UP, axis))
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    corners = np.array(np.meshgrid(*((0.0, length) for length in size), indexing="ij")).reshape(3, -1).T
    corners -= size / 2
    half = MARGIN * max(np.abs(corners @ right).max(), np.abs(corners @ up).max())
    steps = (np.arange(count) + 0.5) / count * 2 - 1
    across, down = np.meshgrid(steps * half, -steps * half)
    back = np.linalg.norm(size)
    starts = size / 2 - back * forward + across.reshape(-1, 1) * right + down.reshape(-1, 1) * up
    return starts, forward, float(2 * half / count)


def _march(field: ShapeField, starts: Points, forward: Points, scale: int) -> tuple[BoolArray, Points]:
    """Which rays meet the surface, and where."""
    size = np.array(field.signal.size, np.float64)
    first, last = ((edge - starts) / forward for edge in (np.zeros(3), size))
    at = np.minimum(first, last).max(axis=1) + JUST_BEYOND
    end = np.maximum(first, last).min(axis=1)
    hit = np.zeros(len(starts), bool)
    active = np.flatnonzero(at < end)
    for _ in range(MOST_STEPS):
        if not len(active):
            break
        step, arrived = _step(field, starts[active] + at[active, None] * forward, forward, scale)
        hit[active[arrived]] = True
        at[active] += step
        active = active[~arrived & (at[active] < end[active])]
    return hit, starts + at[:, None] * forward


def _step(
    field: ShapeField, positions: Points, forward: Points, scale: int
) -> tuple[NDArray[np.float64], BoolArray]:
    """How far each ray goes on, and whether that brings it to the surface."""
    tree, cells = field.lattice.tree, field.architecture.cells
    signs = np.zeros(len(tree), np.int8)
    signs[tree.leaf_rows] = field.leaf_signs()
    rows = tree.locate(np.floor(positions / cells).astype(np.int64))
    side = (cells << (tree.depth - tree.levels[rows].astype(np.int64)))[:, None]
    low = tree.coordinates[rows] * side
    exits = ((np.where(forward > 0, low + side, low) - positions) / forward).min(axis=1) + JUST_BEYOND
    empty = signs[rows] > 0
    step = np.where(empty, np.maximum(exits, JUST_BEYOND), 0.0)
    rest = np.flatnonzero(~empty)
    distance = field.distance(positions[rest], scale).astype(np.float64)
    voxel = 2.0**scale
    near = distance <= HIT * voxel
    step[rest] = np.where(near, distance, np.maximum(distance, LEAST_STEP * voxel))
    arrived = np.zeros(len(positions), bool)
    arrived[rest] = near
    return step, arrived


def _shaded(field: ShapeField, positions: Points, scale: int, up: UpAxis) -> Values:
    """Colours ``[n, 3]``, 0 to 1, of points on the surface under one lamp."""
    light = _placed(LIGHT, up).astype(np.float32)
    lit = np.clip(field.normals(positions, scale) @ light, 0, 1)[:, None]
    colours = field.colours(positions, scale)
    base = np.broadcast_to(np.array(PLAIN, np.uint8), (len(positions), 3)) if colours is None else colours
    result: Values = (base / np.float32(255) * (AMBIENT + (1 - AMBIENT) * lit)).astype(np.float32)
    return result
