"""What is fitted: an image with its area-filtered scales, or a surface."""

from __future__ import annotations

from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acorn_svc.errors import BadImage, BadMesh
from acorn_svc.field.conventions import IMAGE_DIMENSION, scaled_size
from acorn_svc.field.mesh import Mesh
from acorn_svc.field.state import ShapeSignal, Signal

Pixels = NDArray[np.uint8 | np.uint16]
FloatImage = NDArray[np.float32]
MARGIN = 4  # voxels between the surface and the border of its box
TRUNCATION = 2.0  # voxels
LEAST_EXTENT, MOST_EXTENT = 1e-100, 1e100  # of which squares and voxels are still numbers
Array = TypeVar("Array", NDArray[np.float32], NDArray[np.float64])


class ImageTarget:
    """An image to fit.

    Args:
        pixels: ``uint8`` or ``uint16 [height, width, channels]``, alpha straight.

    Raises:
        BadImage: not such an array.
    """

    def __init__(self, pixels: Pixels) -> None:
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim != 3 or 0 in pixels.shape:
            raise BadImage("an image must be an array [height, width, channels] of 8 or 16 bit")
        if pixels.shape[2] > 4:
            raise BadImage(f"an image has 1 to 4 channels, not {pixels.shape[2]}")
        height, width, channels = pixels.shape
        self.signal = Signal(width, height, channels, 8 * pixels.dtype.itemsize)
        self._pixels = np.ascontiguousarray(pixels)

    def values(self, scale: int, rows: slice = slice(None)) -> FloatImage:
        """The area-filtered signal ``[height, width, channels]`` of one scale, alpha premultiplied."""
        return self._as_values(self._scales(scale)[rows])

    def at(self, pixels: NDArray[np.int64]) -> FloatImage:
        """Full-size values ``[n, channels]`` at ``pixels [n, 2]``, x and y; alpha premultiplied."""
        return self._as_values(self._scales(0)[pixels[:, 1], pixels[:, 0]])

    def pyramid(self, scales: int) -> list[Tensor]:
        """The area-filtered signal ``[height, width, channels]`` of the scales 0 .. ``scales``.

        Of the image's own type at full size unless it has alpha, else ``float32``; alpha premultiplied.
        """
        return [torch.from_numpy(np.ascontiguousarray(self._scales(scale))) for scale in range(scales + 1)]

    def detail(self, scales: int) -> list[NDArray[np.float64]]:
        """Squared deviation of the full-size signal from its mean within each pixel of a scale.

        Returns:
            one array ``[height, width]`` for each of the scales 0 .. ``scales``: the squared error, summed
            over area and channels, that is left when a pixel of that scale is one value.
        """
        squares = self._level_squares(0)
        deviations = [np.zeros(squares.shape)]
        for scale in range(1, scales + 1):
            squares = _pool_sum(squares)
            mean = self.values(scale).astype(np.float64)
            energy = (mean**2).sum(axis=2) * self._areas(scale)
            deviations.append(np.maximum(squares - energy, 0))
        return deviations

    def _level_squares(self, scale: int) -> NDArray[np.float64]:
        values = self.values(scale)
        squares: NDArray[np.float64] = np.square(values, dtype=np.float64).sum(axis=2)
        return squares

    def _areas(self, scale: int) -> NDArray[np.float64]:
        return np.outer(_widths(self.signal.height, scale), _widths(self.signal.width, scale))

    @cached_property
    def _pyramid(self) -> list[Pixels | FloatImage]:
        return [self._premultiplied() if self.signal.has_alpha else self._pixels]

    def _premultiplied(self) -> FloatImage:
        values = self._as_values(self._pixels)
        values[..., :-1] *= values[..., -1:]
        return values

    def _scales(self, scale: int) -> Pixels | FloatImage:
        while len(self._pyramid) <= scale:
            finer = len(self._pyramid) - 1
            self._pyramid.append(_halve(self.values(finer), self.signal, finer))
        return self._pyramid[scale]

    def _as_values(self, stored: Pixels | FloatImage) -> FloatImage:
        if stored.dtype == np.float32:
            return np.asarray(stored, np.float32)
        return stored.astype(np.float32) / np.float32((1 << self.signal.bit_depth) - 1)


def _widths(size: int, scale: int) -> NDArray[np.float64]:
    """Full-size pixels that each pixel of ``scale`` covers along an axis."""
    edges = np.minimum(np.arange(scaled_size(size, scale) + 1) << scale, size)
    widths: NDArray[np.float64] = np.diff(edges).astype(np.float64)
    return widths


def _halve(values: FloatImage, signal: Signal, scale: int) -> FloatImage:
    """Means of pairs along both axes; what lies outside the image does not count."""
    for axis, size in zip(range(IMAGE_DIMENSION), (signal.height, signal.width), strict=True):
        widths = _widths(size, scale).astype(np.float32)
        shape = [1] * values.ndim
        shape[axis] = -1
        values = _pool_sum(values * widths.reshape(shape), (axis,))
        values /= _widths(size, scale + 1).astype(np.float32).reshape(shape)
    return values


def _pool_sum(values: Array, axes: tuple[int, ...] = (0, 1)) -> Array:
    """Sums of pairs along ``axes``; a last odd one stays alone."""
    for axis in axes:
        starts = np.arange(0, values.shape[axis], 2)
        values = np.add.reduceat(values, starts, axis=axis)
    return values


class ShapeTarget:
    """A surface to fit.

    Args:
        mesh: its triangles.

    Raises:
        BadMesh: there is no triangle, a face names no vertex, or all lie in one point or have no end.
    """

    def __init__(self, mesh: Mesh) -> None:
        if not len(mesh.faces):
            raise BadMesh("The mesh holds no triangles.")
        if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
            raise BadMesh("A face of the mesh names a vertex that does not exist.")
        used = mesh.vertices[np.unique(mesh.faces)]
        self.low, self.high = used.min(axis=0), used.max(axis=0)
        if not np.isfinite(used).all() or not LEAST_EXTENT < np.ptp(used / 2, axis=0).max() < MOST_EXTENT:
            raise BadMesh("The mesh has no extent.")
        self.mesh = mesh

    @property
    def has_colour(self) -> bool:
        """Whether the surface has a colour."""
        return self.mesh.colours is not None or self.mesh.texture is not None

    def signal(self, resolution: int) -> ShapeSignal:
        """The box around the surface, ``resolution`` voxels along its longest side."""
        extent = self.high - self.low
        voxel = float(extent.max()) / (resolution - 2 * MARGIN)
        counts = np.minimum(np.ceil(extent / voxel - 1e-9).astype(int) + 2 * MARGIN, resolution)
        origin = (self.low + self.high) / 2 - counts * voxel / 2
        return ShapeSignal(
            size=(int(counts[0]), int(counts[1]), int(counts[2])),
            channels=4 if self.has_colour else 1,
            truncation=TRUNCATION,
            origin=(float(origin[0]), float(origin[1]), float(origin[2])),
            voxel=voxel,
        )

    def colours(self, faces: NDArray[np.integer], barycentric: NDArray[np.floating]) -> NDArray[np.float32]:
        """Colours ``[n, 3]``, 0 to 1, of points on the surface."""
        corners = self.mesh.faces[faces]
        weights = barycentric[:, :, None]
        if self.mesh.texture is not None:
            places = (self.mesh.texture.coordinates[corners] * weights).sum(axis=1)
            return _texels(self.mesh.texture.pixels, places)
        assert self.mesh.colours is not None
        colours: NDArray[np.float32] = (self.mesh.colours[corners] / 255.0 * weights).sum(axis=1)
        return colours.astype(np.float32)


def _texels(pixels: NDArray[np.uint8], places: NDArray[np.floating]) -> NDArray[np.float32]:
    """Bilinear look-up at ``(u, v)``, v up, repeating."""
    height, width = pixels.shape[:2]
    x = places[:, 0] * width - 0.5
    y = (1 - places[:, 1]) * height - 0.5
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right, down = (x - left)[:, None], (y - top)[:, None]

    def row(offset: int) -> NDArray[np.float64]:
        line = (top + offset) % height
        ends = [pixels[line, column % width].astype(np.float64) for column in (left, left + 1)]
        mixed: NDArray[np.float64] = ends[0] * (1 - right) + ends[1] * right
        return mixed

    values: NDArray[np.float64] = (row(0) * (1 - down) + row(1) * down) / 255.0
    return values.astype(np.float32)
