"""What is fitted: an image and its area-filtered scales."""

from __future__ import annotations

from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acorn_svc.errors import BadImage
from acorn_svc.field.conventions import IMAGE_DIMENSION, scaled_size
from acorn_svc.field.state import Signal

Pixels = NDArray[np.uint8 | np.uint16]
FloatImage = NDArray[np.float32]
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
