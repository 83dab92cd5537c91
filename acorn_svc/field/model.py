"""The field: a picture that can be asked for any region at any scale."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from acorn_svc.errors import BadModel, BadRequest
from acorn_svc.field import ops
from acorn_svc.field.base import BaseField, rebuild
from acorn_svc.field.conventions import scaled_size
from acorn_svc.field.ops.learning import scale_layers
from acorn_svc.field.resample import area_mean
from acorn_svc.field.state import FieldInfo, FieldState, Signal

Region = tuple[float, float, float, float]
Size = tuple[int, int]
FloatImage = NDArray[np.float32]

STRIP_ROWS = 256
POINTS_AT_ONCE = 1 << 15
MAX_SUPERSAMPLING = 3
TOLERANCE = 1e-9
SIGNAL_KEYS = ("width", "height", "channels", "bit_depth", "kind")


@dataclass(frozen=True, eq=False)
class Field(BaseField):
    """A picture; see :class:`acorn_svc.field.base.BaseField`.

    Attributes:
        signal: size, channels and bit depth.
    """

    signal: Signal

    @property
    def width(self) -> int:
        """Pixels."""
        return self.signal.width

    @property
    def height(self) -> int:
        """Pixels."""
        return self.signal.height

    @property
    def channels(self) -> int:
        """1 to 4."""
        return self.signal.channels

    @property
    def bit_depth(self) -> int:
        """8 or 16."""
        return self.signal.bit_depth

    # --- looking ---

    def render(self, region: Region | None = None, size: Size | None = None) -> NDArray[np.uint8 | np.uint16]:
        """Renders a picture.

        Args:
            region: ``(x, y, width, height)`` in pixels of the full image, within it; default all.
            size: output ``(width, height)`` in pixels; default the region's own, rounded.

        Returns:
            ``[height, width, channels]`` of the signal's bit depth, alpha straight.

        Raises:
            BadRequest: the region does not lie in the image, or the size is not positive.
        """
        return np.concatenate(list(self.render_strips(region, size)))

    def render_strips(
        self, region: Region | None = None, size: Size | None = None, rows: int = STRIP_ROWS
    ) -> Iterator[NDArray[np.uint8 | np.uint16]]:
        """The same picture as :meth:`render`, in strips of ``rows`` rows, in bounded memory."""
        region, size = self._checked(region, size)
        return self._strips(region, size, rows, self._dtype)

    def render_values(self, region: Region | None = None, size: Size | None = None) -> FloatImage:
        """Like :meth:`render`, but unclipped ``float32`` with premultiplied alpha."""
        region, size = self._checked(region, size)
        return np.concatenate(list(self._strips(region, size, STRIP_ROWS, torch.float32)))

    def render_scale(self, scale: int, rows: range | None = None) -> FloatImage:
        """The area-filtered signal of one scale, or some rows of it, as unclipped values.

        Args:
            scale: 0 to ``depth``.
            rows: rows of pixels of that scale; default all.
        """
        rows = rows or range(scaled_size(self.height, scale))
        return self._pixels(range(scaled_size(self.width, scale)), rows, scale, torch.float32)

    def query(self, points: NDArray[np.float64], pixel_size: float = 1.0) -> FloatImage:
        """Values at points.

        Args:
            points: ``[n, 2]``, x and y in pixels of the full image; outside it the border is repeated.
            pixel_size: side of the area that a value stands for, in full-size pixels; below 1 as 1.
                Between two scales the values are blended.

        Returns:
            ``[n, channels]``, 0 to 1, straight alpha.

        Raises:
            BadRequest: points are not finite or not of that shape, or the pixel size is not positive.
        """
        points = np.asarray(points, np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
            raise BadRequest("points must be a list of finite [x, y] pairs")
        if not (math.isfinite(pixel_size) and pixel_size > 0):
            raise BadRequest("pixel_size must be positive and finite")
        exponent = min(max(math.log2(pixel_size), 0.0), float(self.depth))
        scale = min(int(exponent), max(self.depth - 1, 0))
        blend = exponent - scale
        values = self._points(points, scale)
        if blend:
            values = (1 - blend) * values + blend * self._points(points, scale + 1)
        return self._straight(np.clip(values, 0, 1))

    def info(self) -> FieldInfo:
        """A summary."""
        tree = self.lattice.tree
        return FieldInfo(
            **asdict(self.signal),
            encoder=self.encoder,
            blocks=len(tree.leaf_rows),
            levels=int(tree.levels.max()) + 1,
            parameters=self.parameter_count,
            preset=self.record.preset,
            steps=self.record.steps,
            seed=self.record.seed,
            psnr=self.record.psnr,
        )

    # --- rendering ---

    def _checked(self, region: Region | None, size: Size | None) -> tuple[Region, Size]:
        region = (0, 0, self.width, self.height) if region is None else region
        if len(region) != 4:
            raise BadRequest("a region is four numbers: x, y, width, height")
        x, y, width, height = region
        inside = (
            all(math.isfinite(value) for value in region)
            and min(x, y) >= 0
            and min(width, height) > TOLERANCE
            and x + width <= self.width + TOLERANCE
            and y + height <= self.height + TOLERANCE
        )
        if not inside:
            raise BadRequest(
                f"the region must lie in the image, {self.width} x {self.height} pixels, and not be empty"
            )
        size = size or (max(1, round(width)), max(1, round(height)))
        if min(size) < 1:
            raise BadRequest("the size must be at least 1 x 1 pixels")
        return region, size

    def _strips(self, region: Region, size: Size, rows: int, dtype: torch.dtype) -> Iterator[NDArray[Any]]:
        x, y, width, height = region
        pixel = height / size[1]
        for start in range(0, size[1], rows):
            stop = min(start + rows, size[1])
            part = (x, y + start * pixel, width, (stop - start) * pixel)
            yield self._strip(part, (size[0], stop - start), dtype)

    def _strip(self, region: Region, size: Size, dtype: torch.dtype) -> NDArray[Any]:
        x, y, width, height = region
        across = (x, width, size[0], self.width)
        down = (y, height, size[1], self.height)
        scale = self._scale_for(width / size[0], height / size[1])
        columns, lines = _Axis.plan(*across, scale), _Axis.plan(*down, scale)
        if columns.pixels is not None and lines.pixels is not None:
            if columns.is_exact and lines.is_exact:
                return self._pixels(columns.pixels, lines.pixels, scale, dtype)
            values = self._pixels(columns.pixels, lines.pixels, scale, torch.float32)
        else:
            grid = np.stack(np.meshgrid(columns.centres, lines.centres), axis=-1)
            values = self._points(grid.reshape(-1, 2), scale).reshape(*grid.shape[:2], -1)
        values = lines.reduce(values)
        values = columns.reduce(values.swapaxes(0, 1)).swapaxes(0, 1)
        return values if dtype == torch.float32 else self._to_integers(values)

    def _scale_for(self, pixel_width: float, pixel_height: float) -> int:
        """The scale to render at: not coarser than the output's finer axis, nor needlessly fine."""
        finer = math.floor(math.log2(min(pixel_width, pixel_height)) + TOLERANCE)
        coarser = math.floor(math.log2(max(pixel_width, pixel_height)) + TOLERANCE)
        return min(max(finer, coarser - MAX_SUPERSAMPLING, 0), self.depth)

    @torch.inference_mode()
    def _pixels(self, columns: range, rows: range, scale: int, dtype: torch.dtype) -> NDArray[Any]:
        """Pixels of one scale ``[rows, columns, channels]``."""
        region = (columns.start, rows.start, len(columns), len(rows))
        layers = scale_layers(self.parameters, scale)
        image = ops.render_image(self._geometry, self._features, self._folded, layers, scale, region, dtype)
        pixels: NDArray[Any] = image.numpy()
        return pixels

    @torch.inference_mode()
    def _points(self, points: NDArray[np.float64], scale: int) -> FloatImage:
        layers = scale_layers(self.parameters, scale)
        limit = np.array(self.signal.size, np.float64)
        positions = torch.from_numpy(np.clip(points, 0, limit))
        values = [
            ops.render_points(self._geometry, self._features, self._folded, layers, part, scale)
            for part in torch.split(positions, POINTS_AT_ONCE)
        ]
        return torch.cat(values).numpy()

    @property
    def _dtype(self) -> torch.dtype:
        """Of the integers that come out."""
        return torch.uint8 if self.bit_depth == 8 else torch.uint16

    def _straight(self, values: FloatImage) -> FloatImage:
        if not self.signal.has_alpha:
            return values
        alpha = values[..., -1:]
        colour = np.divide(values[..., :-1], alpha, out=np.zeros_like(values[..., :-1]), where=alpha > 1e-4)
        return np.concatenate([np.clip(colour, 0, 1), alpha], axis=-1)

    def _to_integers(self, values: FloatImage) -> NDArray[np.uint8 | np.uint16]:
        top = (1 << self.bit_depth) - 1
        dtype = np.uint8 if self.bit_depth == 8 else np.uint16
        return np.rint(self._straight(np.clip(values, 0, 1)) * top).astype(dtype)

    # --- plain data ---

    @staticmethod
    def from_state(state: FieldState) -> Field:
        """Rebuilds a field.

        Raises:
            BadModel: the arrays do not fit together.
        """
        try:
            signal = Signal(**{key: state.header[key] for key in SIGNAL_KEYS})
            _check_signal(signal)
            return Field(signal, **vars(rebuild(state, signal)))
        except (KeyError, TypeError, ValueError) as error:
            raise BadModel(f"the model's parts do not fit together: {error}") from error


@dataclass(frozen=True)
class _Axis:
    """How one axis of an output strip is made from samples of a scale."""

    pixels: range | None
    centres: NDArray[np.float64]
    edges: NDArray[np.float64]
    bounds: NDArray[np.float64]

    @staticmethod
    def plan(start: float, length: float, count: int, limit: int, scale: int) -> _Axis:
        """Output of ``count`` pixels over ``start .. start + length`` of an axis of ``limit`` pixels."""
        bounds = np.clip(start + np.arange(count + 1) * (length / count), 0, limit)
        side = 1 << scale
        if length / count < side - TOLERANCE:
            centres = (bounds[:-1] + bounds[1:]) / 2
            return _Axis(None, centres, bounds, bounds)
        first = math.floor(start / side + TOLERANCE)
        last = min(math.ceil((start + length) / side - TOLERANCE), scaled_size(limit, scale))
        pixels = range(first, max(last, first + 1))
        edges = side * np.arange(pixels.start, pixels.stop + 1, dtype=np.float64)
        return _Axis(pixels, np.arange(first + 0.5, pixels.stop) * side, edges, bounds)

    @property
    def is_exact(self) -> bool:
        """Whether the samples are the output's pixels."""
        return self.pixels is None or len(self.edges) == len(self.bounds)

    def reduce(self, values: FloatImage) -> FloatImage:
        """Means of ``values [samples, ...]`` over the output's pixels."""
        if self.is_exact:
            return values
        return area_mean(values, self.edges, np.clip(self.bounds, self.edges[0], self.edges[-1]))


def _check_signal(signal: Signal) -> None:
    if signal.kind != "image" or signal.channels not in (1, 2, 3, 4) or signal.bit_depth not in (8, 16):
        raise ValueError("an image has 1 to 4 channels of 8 or 16 bits")
