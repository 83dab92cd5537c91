"""Points in, values out: `POST /scenes/{id}/query`.

Points are in pixels of the full image, x right and y down; pixel (i, j) has its centre at
(i + 0.5, j + 0.5). Values are 0 to 1, one per channel, in stored sRGB, alpha straight.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic import Field as Rule

from acorn_svc.api.caching import CROSS_ORIGIN, allowed
from acorn_svc.api.dependencies import SceneId
from acorn_svc.api.errors import documented
from acorn_svc.api.rendering import Renderer, RendererDep, View
from acorn_svc.errors import BadRequest, LimitExceeded, UnsupportedMedia

BINARY: Final = "application/octet-stream"
JSON: Final = "application/json"
POINT_BYTES: Final = 8
MAX_PIXEL_SIZE: Final = 1_000_000.0

Points = NDArray[np.float64]
PixelSize = Annotated[
    float,
    Rule(
        ge=1,
        le=MAX_PIXEL_SIZE,
        allow_inf_nan=False,
        description="Side of the square that a value is the average over, in image pixels.",
    ),
]


class PointQuery(BaseModel):
    """Points to look up."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    points: list[tuple[float, float]] = Rule(
        description="x and y of each point, in pixels of the full image.",
        examples=[[[0.5, 0.5], [120.25, 80]]],
    )
    pixel_size: PixelSize = 1.0


class PointValues(BaseModel):
    """The values at the points, in their order."""

    values: list[list[float]] = Rule(description="One number from 0 to 1 for each channel.")


FLOATS: Final[dict[str, Any]] = {"schema": {"type": "string", "format": "binary"}}
BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {JSON: {"schema": PointQuery.model_json_schema()}, BINARY: FLOATS},
    }
}

router = APIRouter(tags=["Query"])


@router.post(
    "/scenes/{id}/query",
    summary="Look up values at points",
    response_model=PointValues,
    responses={200: {"content": {BINARY: FLOATS}}, **documented(400, 404, 413, 415, 422, 503)},
    openapi_extra=BODY,
)
async def query(
    id: SceneId,
    request: Request,
    renderer: RendererDep,
    pixel_size: Annotated[PixelSize, Query()] = 1.0,
) -> Response:
    """Look up the field at points anywhere in the image, also between pixels.

    With `application/json`, points and `pixel_size` are in the body. With
    `application/octet-stream`, the body is float32 pairs (x, y), little-endian, and the answer
    float32 values, one row of channels per point; `pixel_size` is then a parameter of the URL.
    """
    view = await renderer.view(id)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    if media_type == BINARY:
        points = _unpacked(body)
        values = await _values(points, pixel_size, view, renderer, request)
        return Response(values.astype("<f4").tobytes(), media_type=BINARY, headers=CROSS_ORIGIN)
    if media_type != JSON:
        raise UnsupportedMedia(f"A query is {JSON} or {BINARY}.")
    wanted = _parsed(body)
    points = np.array(wanted.points, np.float64).reshape(-1, 2)
    values = await _values(points, wanted.pixel_size, view, renderer, request)
    content = PointValues.model_construct(values=values.tolist()).model_dump_json()
    return Response(content, media_type=JSON, headers=CROSS_ORIGIN)


@router.options("/scenes/{id}/query", include_in_schema=False)
async def options() -> Response:
    """Asking is allowed to everybody."""
    return allowed("POST, OPTIONS")


def _unpacked(body: bytes) -> Points:
    if len(body) % POINT_BYTES:
        raise BadRequest("Points are pairs of 4-byte floats; the body ends within one.")
    return np.frombuffer(body, "<f4").astype(np.float64).reshape(-1, 2)


def _parsed(body: bytes) -> PointQuery:
    try:
        return PointQuery.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise BadRequest(f"{place[:100]}: {first['msg']}.") from None


async def _values(
    points: Points, pixel_size: float, view: View, renderer: Renderer, request: Request
) -> NDArray[np.float32]:
    most = renderer.settings.max_query_points
    if len(points) > most:
        raise LimitExceeded("Too many points.", limit="max_query_points", value=most)
    _check_inside(points, view)
    if len(points) == 0:
        return np.empty((0, view.scene.channels), np.float32)
    return await renderer.gate.run(lambda: renderer.open(view)[1].query(points, pixel_size), request)


def _check_inside(points: Points, view: View) -> None:
    size = np.array([view.scene.width, view.scene.height])
    # Written so that a NaN counts as outside.
    outside = ~((points >= 0) & (points <= size)).all(axis=1)
    if outside.any():
        raise BadRequest(f"Point {int(outside.argmax())} isn't a place inside the image.")
