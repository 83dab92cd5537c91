"""The IIIF Image API 3.0 request syntax, as pure functions: text in, one checked record out.

Source: IIIF Image API 3.0, sections 4.1 to 4.7. `parse` turns the four path segments
`{region}/{size}/{rotation}/{quality}.{format}` into an `ImageRequest`; whatever has no meaning
raises `BadRequest` (HTTP 400). Sizes and positions are exact rational numbers until `nearest`, the
one place where anything is rounded.

Two readings where the specification and its validators leave room:

- `!w,h` larger than the region in both directions is refused, as both validators demand (`^!w,h`
  enlarges, `max` doesn't).
- Limits are advertised, and `^max` grows to them, only for a picture that exceeds them. For any
  other picture there is nothing for `max` to shrink to, so `^max` equals `max`; the limits still
  bound the sizes that `^` asks for by number.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Final, cast

from acorn_svc.api.rendition import FORMATS, QUALITIES, Format, Quality, Region, Rendition, Size
from acorn_svc.errors import BadRequest

FULL_TURN: Final = 360
REMEMBERED: Final = 4096  # requests; exact arithmetic takes longer than finding a picture in the cache
# No picture needs more digits, and the bound keeps exact arithmetic cheap.
_INTEGER: Final = "[0-9]{1,18}"
_DECIMAL: Final = rf"{_INTEGER}(?:\.{_INTEGER})?"
_PIXELS: Final = re.compile(rf"({_INTEGER}),({_INTEGER}),({_INTEGER}),({_INTEGER})")
_PERCENTS: Final = re.compile(rf"pct:({_DECIMAL}),({_DECIMAL}),({_DECIMAL}),({_DECIMAL})")
_SIDES: Final = re.compile(rf"({_INTEGER})?,({_INTEGER})?")
_SCALE: Final = re.compile(rf"pct:({_DECIMAL})")
_ROTATION: Final = re.compile(rf"(!)?({_DECIMAL})")


@dataclass(frozen=True)
class Limits:
    """The largest picture that is sent: sides and area, in pixels."""

    width: int
    height: int
    area: int

    def allow(self, size: Size) -> bool:
        """Whether a picture of `size` (width, height) may be sent."""
        width, height = size
        return width <= self.width and height <= self.height and width * height <= self.area


@dataclass(frozen=True)
class Picture:
    """What a request is about: size in pixels, and the quality that `default` stands for."""

    width: int
    height: int
    default_quality: Quality

    @property
    def size(self) -> Size:
        """Width and height, in pixels."""
        return self.width, self.height


@dataclass(frozen=True)
class ImageRequest:
    """A checked request, and the tail of its canonical URI."""

    rendition: Rendition
    canonical: str


@lru_cache(REMEMBERED)
def parse(region: str, size: str, rotation: str, file: str, picture: Picture, limits: Limits) -> ImageRequest:
    """Check the four segments of an image request, percent-decoding already done.

    Raises BadRequest for anything that isn't the syntax, is empty, or exceeds `limits`.
    """
    source = parse_region(region, picture)
    target = parse_size(size, source, picture, limits)
    mirrored, degrees = parse_rotation(rotation)
    quality, image_format = parse_file(file, picture)
    tail = "/".join(
        (
            _canonical_region(source, picture),
            _canonical_size(target, source, picture, limits),
            f"{'!' if mirrored else ''}{degrees:f}",
            f"{'default' if quality == picture.default_quality else quality}.{image_format}",
        )
    )
    rendition = Rendition(source, target, quality, image_format, mirrored, degrees)
    return ImageRequest(rendition, tail)


def nearest(value: Fraction) -> int:
    """The nearest whole number, halves upwards: the only rounding in this module."""
    return math.floor(value + Fraction(1, 2))


# Region


def parse_region(text: str, picture: Picture) -> Region:
    """`full`, `square`, `x,y,w,h` or `pct:x,y,w,h`, cut to the picture."""
    if text == "full":
        return Region(0, 0, picture.width, picture.height)
    if text == "square":
        return _square(picture)
    left, top, right, bottom = _region_edges(text, picture)
    right, bottom = min(right, picture.width), min(bottom, picture.height)
    if left >= right or top >= bottom:
        raise BadRequest("The region is empty or lies outside the image.")
    return Region(left, top, right - left, bottom - top)


def _square(picture: Picture) -> Region:
    side = min(picture.size)
    return Region((picture.width - side) // 2, (picture.height - side) // 2, side, side)


def _region_edges(text: str, picture: Picture) -> tuple[int, int, int, int]:
    """Left, top, right, bottom. Rounding edges, not widths, leaves no gap between neighbours."""
    if match := _PIXELS.fullmatch(text):
        x, y, width, height = map(Fraction, match.groups())
    elif match := _PERCENTS.fullmatch(text):
        x, y, width, height = (
            Fraction(part) * side / 100 for part, side in zip(match.groups(), picture.size * 2, strict=True)
        )
    else:
        raise BadRequest("A region is full, square, x,y,w,h or pct:x,y,w,h.")
    return nearest(x), nearest(y), nearest(x + width), nearest(y + height)


# Size


def parse_size(text: str, region: Region, picture: Picture, limits: Limits) -> Size:
    """`max`, `w,`, `,h`, `w,h`, `pct:n` or `!w,h`, each with `^` before it to allow enlarging."""
    enlarge, form = text.startswith("^"), text.removeprefix("^")
    if form == "max":
        return _largest(region, picture, limits, enlarge)
    if form.startswith("!"):
        return _confined(form[1:], region, limits, enlarge)
    size = _scaled(form, region)
    _check_size(size, region, limits, enlarge)
    return size


def fitted(size: Size, limits: Limits) -> Size:
    """The largest size within `limits` that keeps the aspect of `size`; at least 1 x 1."""
    width, height = size
    most_wide = _bound(limits.width, limits.area, Fraction(width, height))
    most_high = _bound(limits.height, limits.area, Fraction(height, width))
    candidates = (
        (most_wide, _side(Fraction(most_wide * height, width))),
        (_side(Fraction(most_high * width, height)), most_high),
    )
    return max(filter(limits.allow, candidates), key=math.prod)


def _bound(side: int, area: int, aspect: Fraction) -> int:
    return max(1, min(side, area, math.isqrt(math.floor(area * aspect))))


def _side(length: Fraction) -> int:
    """A side that follows from the other one: a strip a pixel high stays a pixel high."""
    return max(1, nearest(length))


def _largest(region: Region, picture: Picture, limits: Limits, enlarge: bool) -> Size:
    grows = enlarge and not limits.allow(picture.size)
    if limits.allow(region.size) and not grows:
        return region.size
    return fitted(region.size, limits)


def _confined(text: str, region: Region, limits: Limits, enlarge: bool) -> Size:
    match = _SIDES.fullmatch(text)
    if not match or not match[1] or not match[2]:
        raise _bad_size()
    width, height = int(match[1]), int(match[2])
    _check_positive(width, height)
    if not enlarge and width > region.width and height > region.height:
        raise _too_large_without_caret()
    box = Limits(min(width, limits.width), min(height, limits.height), limits.area)
    return fitted(region.size, box)


def _scaled(text: str, region: Region) -> Size:
    if match := _SCALE.fullmatch(text):
        factor = Fraction(match[1]) / 100
        return nearest(region.width * factor), nearest(region.height * factor)
    match = _SIDES.fullmatch(text)
    if not match or not (match[1] or match[2]):
        raise _bad_size()
    if match[1] and match[2]:
        return int(match[1]), int(match[2])
    if match[1]:
        width = int(match[1])
        return width, _side(Fraction(region.height * width, region.width))
    height = int(match[2])
    return _side(Fraction(region.width * height, region.height)), height


def _check_size(size: Size, region: Region, limits: Limits, enlarge: bool) -> None:
    width, height = size
    _check_positive(width, height)
    if not enlarge and (width > region.width or height > region.height):
        raise _too_large_without_caret()
    for name, value, limit in (
        ("max_tile_side", width, limits.width),
        ("max_tile_side", height, limits.height),
        ("max_tile_pixels", width * height, limits.area),
    ):
        if value > limit:
            raise BadRequest("The size is larger than this server sends.", limit=name, value=limit)


def _check_positive(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise BadRequest("A size is at least one pixel wide and high.")


def _bad_size() -> BadRequest:
    return BadRequest("A size is `max`, `w,`, `,h`, `w,h`, `pct:n` or `!w,h`, with ^ in front to enlarge.")


def _too_large_without_caret() -> BadRequest:
    return BadRequest("The size is larger than the region; write ^ in front of it to enlarge.")


# Rotation, quality, format


def parse_rotation(text: str) -> tuple[bool, Decimal]:
    """Whether to mirror first, and the degrees clockwise, 0 <= degrees < 360."""
    match = _ROTATION.fullmatch(text)
    if not match or (degrees := Decimal(match[2])) > FULL_TURN:
        raise BadRequest("A rotation is a number of degrees from 0 to 360, with ! to mirror.")
    return match[1] is not None, _plain(degrees % FULL_TURN)


def _plain(number: Decimal) -> Decimal:
    """Without trailing zeros, as canonical URIs want it."""
    return number.quantize(Decimal(1)) if number == number.to_integral() else number.normalize()


def parse_file(text: str, picture: Picture) -> tuple[Quality, Format]:
    """`{quality}.{format}`, with `default` replaced by what it stands for."""
    quality, _, image_format = text.rpartition(".")
    if quality not in QUALITIES and quality != "default":
        raise BadRequest(f"A quality is one of default, {', '.join(QUALITIES)}.")
    if image_format not in FORMATS:
        raise BadRequest(f"A format is one of {', '.join(FORMATS)}.")
    resolved = picture.default_quality if quality == "default" else cast(Quality, quality)
    return resolved, image_format


# Canonical form, section 4.7


def _canonical_region(region: Region, picture: Picture) -> str:
    if region.size == picture.size:
        return "full"
    return f"{region.x},{region.y},{region.width},{region.height}"


def _canonical_size(size: Size, region: Region, picture: Picture, limits: Limits) -> str:
    if size == _largest(region, picture, limits, enlarge=False):
        return "max"
    if size == _largest(region, picture, limits, enlarge=True):
        return "^max"
    larger = size[0] > region.width or size[1] > region.height
    return f"{'^' if larger else ''}{size[0]},{size[1]}"
