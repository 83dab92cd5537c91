"""One picture of a field: which part, how large, which way up, in which colours and format.

Every pixel that the service sends goes through `encode`; who asks in which syntax doesn't matter
here. Arrays are [y, x, channel], uint8 or uint16, alpha straight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal, cast, get_args

import numpy as np
import pyvips
from numpy.typing import NDArray

from acorn_svc.field.model import Field
from acorn_svc.formats.images import encode_image

Quality = Literal["color", "gray", "bitonal"]
Format = Literal["jpg", "png", "webp", "tif"]
Size = tuple[int, int]
Pixels = NDArray[Any]

QUALITIES: Final[tuple[Quality, ...]] = get_args(Quality)
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
MEDIA_TYPES: Final[dict[Format, str]] = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "tif": "image/tiff",
}
RGB_CHANNELS: Final = 3
LUMA: Final = (0.299, 0.587, 0.114)  # of stored sRGB values, ITU-R BT.601, as JPEG has it


@dataclass(frozen=True)
class Region:
    """A rectangle inside the picture, in whole pixels; `width` and `height` are at least 1."""

    x: int
    y: int
    width: int
    height: int

    @property
    def size(self) -> Size:
        """Width and height, in pixels."""
        return self.width, self.height


@dataclass(frozen=True)
class Rendition:
    """What to show, its steps in the order in which they are carried out.

    `region` is scaled to `size` (width, height), mirrored left to right, turned clockwise by
    `rotation` degrees (0 <= rotation < 360), and then brought to `quality` and `format`.
    """

    region: Region
    size: Size
    quality: Quality
    format: Format
    mirrored: bool = False
    rotation: Decimal = Decimal(0)


def default_quality(channels: int) -> Quality:
    """What a picture of a field with that many channels is in when nothing else is asked for."""
    return "color" if channels >= RGB_CHANNELS else "gray"


def encode(field: Field, rendition: Rendition, go_on: Callable[[], object] = lambda: None) -> bytes:
    """The picture as the bytes of an image file; `go_on` is called between strips and may raise."""
    region = rendition.region
    box = (float(region.x), float(region.y), float(region.width), float(region.height))
    strips = []
    for strip in field.render_strips(box, rendition.size):
        strips.append(strip)
        go_on()
    pixels = np.concatenate(strips)
    if rendition.mirrored:
        pixels = pixels[:, ::-1]
    pixels = rotated(pixels, rendition.rotation, transparent=rendition.format != "jpg")
    pixels = recolored(pixels, rendition.quality)
    return encode_image(np.ascontiguousarray(pixels), rendition.format)


def recolored(pixels: Pixels, quality: Quality) -> Pixels:
    """In `color` (3 or 4 channels), `gray` (1 or 2), or `bitonal` (1: black and white)."""
    if quality == "color":
        return pixels if _is_color(pixels) else _split(np.repeat(pixels[..., :1], 3, 2), pixels)
    gray = _gray(pixels)
    if quality == "gray":
        return _split(gray, pixels)
    return _thresholded(gray, pixels)


def _split(colors: Pixels, source: Pixels) -> Pixels:
    """`colors` with the alpha of `source`, if it has any."""
    return np.concatenate((colors, source[..., -1:]), axis=2) if _has_alpha(source) else colors


def _is_color(pixels: Pixels) -> bool:
    return bool(pixels.shape[2] >= RGB_CHANNELS)


def _has_alpha(pixels: Pixels) -> bool:
    return pixels.shape[2] in (2, 4)


def _gray(pixels: Pixels) -> Pixels:
    if not _is_color(pixels):
        return pixels[..., :1]
    luma = np.dot(pixels[..., :3].astype(np.float32), LUMA)
    return cast(Pixels, np.rint(luma).astype(pixels.dtype)[..., None])


def _thresholded(gray: Pixels, source: Pixels) -> Pixels:
    """White from the middle upwards; what is transparent counts as white."""
    white = np.iinfo(source.dtype).max
    light: Pixels = gray.astype(np.float32)
    if _has_alpha(source):
        light = white - (white - light) * (source[..., -1:].astype(np.float32) / white)
    return np.where(light > white / 2, white, 0).astype(source.dtype)


def rotated(pixels: Pixels, degrees: Decimal, *, transparent: bool) -> Pixels:
    """Turned clockwise; the corners that a slanted angle opens are transparent, or else black."""
    turns, rest = divmod(degrees, 90)
    if not rest:
        return np.rot90(pixels, -int(turns))
    if transparent and not _has_alpha(pixels):
        opaque = np.full((*pixels.shape[:2], 1), np.iinfo(pixels.dtype).max, pixels.dtype)
        pixels = np.concatenate((pixels, opaque), axis=2)
    return _tilted(pixels, float(degrees))


def _tilted(pixels: Pixels, degrees: float) -> Pixels:
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels))
    if not _has_alpha(pixels):
        return np.atleast_3d(image.rotate(degrees).numpy())
    opaque = np.iinfo(pixels.dtype).max
    turned = image.premultiply(max_alpha=opaque).rotate(degrees).unpremultiply(max_alpha=opaque)
    return cast(Pixels, turned.rint().cast(image.format).numpy())
