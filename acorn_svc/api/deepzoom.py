"""Deep Zoom: an image as a pyramid of tiles, `/dzi/{id}.dzi` and `/dzi/{id}_files/...`.

Level L, the highest, is the image itself; each level below has half the width and height, rounded
up, down to level 0 of one pixel. A tile is 510 pixels plus one of overlap towards each neighbour,
so that it fills a texture of 512 and viewers can blend across its edges without a seam. Tiles at
the right and lower edge are as small as what is left.

Source: the Deep Zoom schema of 2008, http://schemas.microsoft.com/deepzoom/2008.
"""

from __future__ import annotations

import re
from typing import Final, cast

from fastapi import APIRouter, Request, Response

from acorn_svc.api.caching import (
    allowed,
    bodiless,
)
from acorn_svc.api.dependencies import PathRoute, SceneName
from acorn_svc.api.errors import documented
from acorn_svc.api.rendering import RendererDep, View, get_renderer
from acorn_svc.api.rendition import MEDIA_TYPES, Format, Region, Rendition, Size, default_quality
from acorn_svc.errors import BadRequest, NotFound

TILE_SIDE: Final = 510
OVERLAP: Final = 1
TILE_PATH: Final = "/dzi/{id}_files/{level}/{tile}"
XML: Final = "application/xml"
FORMATS: Final[tuple[Format, ...]] = ("jpg", "png", "webp")
_NUMBER: Final = re.compile("[0-9]{1,9}")
_TILE: Final = re.compile(rf"([0-9]{{1,9}})_([0-9]{{1,9}})\.({'|'.join(FORMATS)})")

router = APIRouter(tags=["Deep Zoom"])
pictures = APIRouter(tags=["Deep Zoom"], route_class=PathRoute)


@router.head("/dzi/{id}.dzi", include_in_schema=False)
@router.get(
    "/dzi/{id}.dzi",
    summary="Describe an image to Deep Zoom clients",
    response_class=Response,
    responses={200: {"content": {XML: {}}}, **documented(404)},
)
async def descriptor(id: SceneName, request: Request, renderer: RendererDep) -> Response:
    """Size, tile size and format of an image, as XML."""
    view = await renderer.view(id)
    content = _descriptor(view).encode()
    headers = view.headers()
    return bodiless(request, XML, headers) or Response(content, 200, headers, XML)


@pictures.head(TILE_PATH, include_in_schema=False)
@pictures.get(
    TILE_PATH,
    summary="Render a Deep Zoom tile",
    response_class=Response,
    responses={
        200: {"content": {MEDIA_TYPES[name]: {} for name in FORMATS}},
        **documented(400, 404, 503),
    },
)
async def tile(
    id: SceneName,
    level: str,
    tile: str,
    request: Request,
) -> Response:
    """Render the tile `{column}_{row}.{format}` of a level; format is `jpg`, `png` or `webp`."""
    renderer = await get_renderer(request)
    view = await renderer.view(id)
    rendition = parse_tile(level, tile, view)
    return await renderer.respond(request, view, rendition)


@router.options("/dzi/{id}.dzi", include_in_schema=False)
@router.options(TILE_PATH, include_in_schema=False)
async def options() -> Response:
    """Reading is allowed to everybody."""
    return allowed()


def _descriptor(view: View) -> str:
    image = view.image
    image_format = "png" if image.channels in (2, 4) else "jpg"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" '
        f'Format="{image_format}" Overlap="{OVERLAP}" TileSize="{TILE_SIDE}">'
        f'<Size Width="{image.width}" Height="{image.height}"/></Image>\n'
    )


def parse_tile(level: str, tile: str, view: View) -> Rendition:
    """The picture of one tile; raises BadRequest for bad syntax, NotFound outside the pyramid."""
    match = _TILE.fullmatch(tile)
    if not _NUMBER.fullmatch(level) or not match:
        raise BadRequest("A tile is {level}/{column}_{row}.{format}; format: jpg, png or webp.")
    image = view.image
    region, pixels = tile_region((image.width, image.height), int(level), int(match[1]), int(match[2]))
    return Rendition(region, pixels, default_quality(image.channels), cast(Format, match[3]))


def tile_region(size: Size, level: int, column: int, row: int) -> tuple[Region, Size]:
    """Where a tile lies in the image of `size`, in its pixels, and how large the tile is.

    Raises NotFound when the pyramid has no such tile.
    """
    shrinks = highest_level(size) - level
    if shrinks < 0:
        raise NotFound("There is no such level.")
    scale = 2**shrinks
    left, right = _span(column, -(-size[0] // scale))
    top, bottom = _span(row, -(-size[1] // scale))
    width = min(right * scale, size[0]) - left * scale
    height = min(bottom * scale, size[1]) - top * scale
    return Region(left * scale, top * scale, width, height), (right - left, bottom - top)


def highest_level(size: Size) -> int:
    """The level of the image itself."""
    return (max(size) - 1).bit_length()


def _span(index: int, length: int) -> tuple[int, int]:
    """First and one past last pixel of the tile at `index` on a side of `length` pixels."""
    start = index * TILE_SIDE
    if start >= length:
        raise NotFound("There is no such tile.")
    return max(0, start - OVERLAP), min(start + TILE_SIDE + OVERLAP, length)
