"""IIIF Image API 3.0, compliance level 2, under `/iiif/{id}`.

The syntax of image requests is in `iiif_syntax`, the making of pictures in `rendition`. Works while
a scene is being fitted: every answer shows the newest snapshot.
"""

from __future__ import annotations

import json
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from acorn_svc.api.caching import (
    CROSS_ORIGIN,
    allowed,
    bodiless,
    content_etag,
    headers_for,
)
from acorn_svc.api.dependencies import PathRoute, SceneName
from acorn_svc.api.errors import documented
from acorn_svc.api.iiif_syntax import Limits, Picture, parse
from acorn_svc.api.rendering import RendererDep, View, get_renderer
from acorn_svc.api.rendition import MEDIA_TYPES, default_quality
from acorn_svc.api.scenes import BaseDep, get_base
from acorn_svc.settings import Settings

CONTEXT: Final = "http://iiif.io/api/image/3/context.json"
PROFILE: Final = "http://iiif.io/api/image/3/level2.json"
JSON_LD: Final = "application/ld+json"
TILE_SIDE: Final = 512
IMAGE_PATH: Final = "/iiif/{id}/{region}/{size}/{rotation}/{file}"
EXTRA: Final = {
    "extraFormats": ["webp", "tif"],
    "extraQualities": ["color", "gray", "bitonal"],
    "extraFeatures": [
        "canonicalLinkHeader",
        "mirroring",
        "profileLinkHeader",
        "rotationArbitrary",
        "sizeUpscaling",
    ],
}
IMAGE_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}},
    304: {"description": "The client has it already (`If-None-Match`)."},
    **documented(400, 404, 503),
}

router = APIRouter(tags=["IIIF"])
pictures = APIRouter(tags=["IIIF"], route_class=PathRoute)


@router.head("/iiif/{id}", include_in_schema=False)
@router.get(
    "/iiif/{id}",
    status_code=303,
    summary="Redirect to info.json",
    response_class=RedirectResponse,
    responses=documented(404),
)
async def redirect(id: SceneName, renderer: RendererDep, base: BaseDep) -> Response:
    """The base URI of an image leads to its description."""
    picture_of(await renderer.view(id))
    return RedirectResponse(f"{base}iiif/{id}/info.json", 303, dict(CROSS_ORIGIN))


@router.head("/iiif/{id}/info.json", include_in_schema=False)
@router.get(
    "/iiif/{id}/info.json",
    summary="Describe an image to IIIF clients",
    responses={200: {"content": {JSON_LD: {}}}, **documented(404)},
)
async def info(id: SceneName, request: Request, renderer: RendererDep, base: BaseDep) -> Response:
    """Size, tiles and abilities, as IIIF Image API 3.0, section 5 has it.

    Answers as `application/ld+json` to clients that accept it, otherwise as `application/json`.
    """
    view = await renderer.view(id)
    document = describe(view, f"{base}iiif/{id}", image_limits(renderer.settings))
    linked = JSON_LD in request.headers.get("accept", "")
    media_type = f'{JSON_LD};profile="{CONTEXT}"' if linked else "application/json"
    content = json.dumps(document, ensure_ascii=False, indent=2).encode()
    # People may change the rights at any time, so caches ask whether they have.
    headers = headers_for(content_etag(content, media_type), "no-cache", Vary="Accept")
    return bodiless(request, media_type, headers) or Response(content, 200, headers, media_type)


@pictures.head(IMAGE_PATH, include_in_schema=False)
@pictures.get(
    IMAGE_PATH,
    summary="Render an image",
    responses=IMAGE_RESPONSES,
    response_class=Response,
)
async def image(
    id: SceneName,
    region: str,
    size: str,
    rotation: str,
    file: str,
    request: Request,
) -> Response:
    """Render `region` at `size`, turned by `rotation`, as `{quality}.{format}`.

    - region: `full`, `square`, `x,y,w,h` or `pct:x,y,w,h`
    - size: `max`, `w,`, `,h`, `w,h`, `pct:n` or `!w,h`; `^` in front allows enlarging
    - rotation: degrees clockwise; `!` in front mirrors first
    - quality: `default`, `color`, `gray`, `bitonal`; format: `jpg`, `png`, `webp`, `tif`
    """
    renderer = await get_renderer(request)
    view = await renderer.view(id)
    wanted = parse(region, size, rotation, file, picture_of(view), image_limits(renderer.settings))
    canonical = f"{await get_base(request)}iiif/{id}/{wanted.canonical.replace('^', '%5E')}"
    links = f'<{canonical}>;rel="canonical",<{PROFILE}>;rel="profile"'
    return await renderer.respond(request, view, wanted.rendition, Link=links)


@router.options("/iiif/{id}", include_in_schema=False)
@router.options("/iiif/{id}/info.json", include_in_schema=False)
@router.options(IMAGE_PATH, include_in_schema=False)
async def options() -> Response:
    """Reading is allowed to everybody."""
    return allowed()


def picture_of(view: View) -> Picture:
    """What requests for this scene are checked against."""
    image = view.image
    return Picture(image.width, image.height, default_quality(image.channels))


def image_limits(settings: Settings) -> Limits:
    """The largest picture that one request gets."""
    return Limits(settings.max_tile_side, settings.max_tile_side, settings.max_tile_pixels)


def describe(view: View, uri: str, limits: Limits) -> dict[str, Any]:
    """The `info.json` document."""
    picture = picture_of(view)
    factors = scale_factors(picture)
    document: dict[str, Any] = {
        "@context": CONTEXT,
        "id": uri,
        "type": "ImageService3",
        "protocol": "http://iiif.io/api/image",
        "profile": "level2",
        "width": picture.width,
        "height": picture.height,
        "sizes": _sizes(picture, factors, limits),
        "tiles": [{"width": TILE_SIDE, "height": TILE_SIDE, "scaleFactors": factors}],
        **EXTRA,
    }
    if not limits.allow(picture.size):
        document |= {
            "maxWidth": limits.width,
            "maxHeight": limits.height,
            "maxArea": limits.area,
        }
    if is_uri(view.scene.rights):
        document["rights"] = view.scene.rights
    return document


def is_uri(text: str | None) -> bool:
    """Whether `text` can stand where IIIF wants a web address and nothing else."""
    return text is not None and text.startswith(("http://", "https://")) and " " not in text


def scale_factors(picture: Picture) -> list[int]:
    """Powers of two, up to the one that brings the whole picture into one tile."""
    factors = [1]
    while max(picture.size) > TILE_SIDE * factors[-1]:
        factors.append(2 * factors[-1])
    return factors


def _sizes(picture: Picture, factors: list[int], limits: Limits) -> list[dict[str, int]]:
    """The whole picture at every scale that may be sent whole, smallest first."""
    scaled = ((-(-picture.width // n), -(-picture.height // n)) for n in reversed(factors))
    return [{"width": size[0], "height": size[1]} for size in scaled if limits.allow(size)]
