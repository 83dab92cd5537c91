"""Any part of a scene at any size as one file, `GET /scenes/{id}/region`.

The file is made and sent strip by strip: memory is bounded by the strip, not by the picture. When
the client leaves, rendering stops.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request, Response

from acorn_svc.api.caching import allowed, bodiless
from acorn_svc.api.dependencies import SceneName
from acorn_svc.api.errors import documented
from acorn_svc.api.gate import BoundedStream, GoOn, alone
from acorn_svc.api.rendering import Renderer, RendererDep, View
from acorn_svc.errors import BadRequest, LimitExceeded
from acorn_svc.field.model import Field
from acorn_svc.formats.strips import stream_png, stream_tiff
from acorn_svc.settings import Settings

Box = tuple[float, float, float, float]
FileFormat = Literal["png", "tif"]

STREAMS: Final = {"png": stream_png, "tif": stream_tiff}
MEDIA_TYPES: Final = {"png": "image/png", "tif": "image/tiff"}
STRIP_PIXELS: Final = 1 << 18
SMALLEST_SIDE: Final = 1 / 1024  # deeper than this, 32-bit coordinates have no more digits
_NUMBER: Final = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_BOX: Final = re.compile(rf"({_NUMBER}),({_NUMBER}),({_NUMBER}),({_NUMBER})")
_SIZE: Final = re.compile(r"([0-9]{1,9}),([0-9]{1,9})")

router = APIRouter(tags=["Region"])


@dataclass(frozen=True)
class Export:
    """A part of the image, in its pixels and not necessarily whole ones, and its size as a file."""

    region: Box
    size: tuple[int, int]


@router.head("/scenes/{id}/region", include_in_schema=False)
@router.get(
    "/scenes/{id}/region",
    summary="Stream any part at any size",
    response_class=Response,
    responses={
        200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}},
        **documented(400, 404, 422, 503),
    },
)
async def region(
    id: SceneName,
    request: Request,
    renderer: RendererDep,
    region: Annotated[
        str | None, Query(description="`x,y,w,h` in pixels of the full image; default: all of it.")
    ] = None,
    size: Annotated[
        str | None, Query(description="`w,h` of the file, in pixels; default: the region's own.")
    ] = None,
    format: Annotated[FileFormat, Query(description="PNG, or TIFF (BigTIFF if needed).")] = "png",
) -> Response:
    """Stream a part of the image, of any size, as one PNG or TIFF file at full depth."""
    view = await renderer.view(id)
    export = parse_export(region, size, view, renderer.settings)
    return await _file(request, renderer, view, export, format)


@router.options("/scenes/{id}/region", include_in_schema=False)
async def options() -> Response:
    """Reading is allowed to everybody."""
    return allowed()


def parse_export(region: str | None, size: str | None, view: View, settings: Settings) -> Export:
    """Check the parameters against what `settings` allow.

    Raises BadRequest for bad syntax or a region outside the image, LimitExceeded for a large file.
    """
    box = _parse_box(region, view)
    target = (max(1, round(box[2])), max(1, round(box[3]))) if size is None else _parse_size(size)
    widest, most = settings.max_region_side, settings.max_region_pixels
    if max(target) > widest:  # one row is the least that is rendered at once
        raise LimitExceeded("The file is too wide or high.", limit="max_region_side", value=widest)
    if math.prod(target) > most:
        raise LimitExceeded("The file is too large.", limit="max_region_pixels", value=most)
    return Export(box, target)


def _parse_box(text: str | None, view: View) -> Box:
    if text is None:
        return 0.0, 0.0, float(view.image.width), float(view.image.height)
    match = _BOX.fullmatch(text)
    if not match:
        raise BadRequest("A region is x,y,w,h: four numbers, in pixels.")
    x, y, width, height = map(float, match.groups())
    if min(width, height) < SMALLEST_SIDE:
        raise BadRequest(f"A region is at least {SMALLEST_SIDE} pixels wide and high.")
    if x + width > view.image.width or y + height > view.image.height:
        raise BadRequest("The region reaches beyond the image.")
    return x, y, width, height


def _parse_size(text: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(text)
    if not match or 0 in (width_height := (int(match[1]), int(match[2]))):
        raise BadRequest("A size is w,h: two whole numbers of pixels, at least 1.")
    return width_height


async def _file(
    request: Request, renderer: Renderer, view: View, export: Export, file_format: FileFormat
) -> Response:
    media_type = MEDIA_TYPES[file_format]
    if answer := bodiless(request, media_type, view.headers()):
        return answer

    renderer.streams.require_room()

    def begin(_go_on: GoOn) -> tuple[View, Iterator[bytes], bytes]:
        newest, field = renderer.open_image(view)
        chunks = _chunks(field, export, file_format)
        return newest, chunks, next(chunks)

    # What can go wrong goes wrong here, while there is still a status to say it with.
    newest, chunks, first = await alone(request, renderer.gate.run(begin))
    content = renderer.gate.steps(first, chunks)
    return BoundedStream(renderer.streams, content, newest.headers(), media_type)


def _chunks(field: Field, export: Export, file_format: FileFormat) -> Iterator[bytes]:
    rows = max(1, STRIP_PIXELS // export.size[0])
    strips = field.render_strips(export.region, export.size, rows)
    yield from STREAMS[file_format](strips, *export.size, field.channels, field.bit_depth)
