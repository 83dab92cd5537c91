"""Points in, values out: `POST /scenes/{id}/query`.

Of an image, points are in pixels of the full image, x right and y down; pixel (i, j) has its centre at
(i + 0.5, j + 0.5). Values are 0 to 1, one per channel, in stored sRGB, alpha straight.

Of a shape, points are anywhere in space, in the units of the mesh. Values are the distance to the surface in
the same units, negative inside, and then red, green and blue of the surface nearby, 0 to 1, when it has any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic import Field as Rule

from acorn_svc.api.caching import CROSS_ORIGIN, allowed
from acorn_svc.api.dependencies import SceneId
from acorn_svc.api.errors import documented
from acorn_svc.api.gate import GoOn, alone
from acorn_svc.api.rendering import Renderer, RendererDep, View
from acorn_svc.errors import BadRequest, LimitExceeded, UnsupportedMedia

BINARY: Final = "application/octet-stream"
JSON: Final = "application/json"
FLOAT_BYTES: Final = 4
MAX_PIXEL_SIZE: Final = 1_000_000.0
POINTS_AT_ONCE: Final = 100_000

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


VoxelSize = Annotated[
    float,
    Rule(
        ge=0,
        allow_inf_nan=False,
        description="Side of the cube that a value stands for, in the units of the mesh; no less than the "
        "field's own voxel.",
    ),
]


class PointQuery(BaseModel):
    """Points of an image to look up."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    points: list[tuple[float, float]] = Rule(
        description="x and y of each point, in pixels of the full image.",
        examples=[[[0.5, 0.5], [120.25, 80]]],
    )
    pixel_size: PixelSize = 1.0


class SpaceQuery(BaseModel):
    """Points near a shape to look up."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    points: list[tuple[float, float, float]] = Rule(
        description="x, y and z of each point, in the units of the mesh.",
        examples=[[[0.1, 0.5, -0.25], [0, 0, 0]]],
    )
    voxel_size: VoxelSize = 0.0


class PointValues(BaseModel):
    """The values at the points, in their order."""

    values: list[list[float]] = Rule(
        description="Of an image, one number from 0 to 1 for each channel. Of a shape, the distance, and "
        "red, green and blue when it has colours. Distances end at a few voxels, so further ones are less "
        "than they should be."
    )


FLOATS: Final[dict[str, Any]] = {"schema": {"type": "string", "format": "binary"}}
BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": {"anyOf": [kind.model_json_schema() for kind in (PointQuery, SpaceQuery)]}},
            BINARY: FLOATS,
        },
    }
}
Q = TypeVar("Q", PointQuery, SpaceQuery)

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
    voxel_size: Annotated[VoxelSize, Query()] = 0.0,
) -> Response:
    """Look up the field at points anywhere in an image, also between pixels, or anywhere around a
    shape.

    With `application/json`, points and `pixel_size` (of a shape `voxel_size`) are in the body. With
    `application/octet-stream`, the body is float32 pairs (x, y), of a shape triples (x, y, z),
    little-endian, and the answer float32 values, one row of channels per point; `pixel_size` and
    `voxel_size` are then parameters of the URL.
    """
    view = await renderer.view(id)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    if media_type == BINARY:
        points = _unpacked(body, 3 if view.is_shape else 2)
        size = voxel_size if view.is_shape else pixel_size
        values = await _values(points, size, view, renderer, request)
        return Response(values.astype("<f4").tobytes(), media_type=BINARY, headers=CROSS_ORIGIN)
    if media_type != JSON:
        raise UnsupportedMedia(f"A query is {JSON} or {BINARY}.")
    points, size = _in_space(body) if view.is_shape else _in_image(body)
    values = await _values(points, size, view, renderer, request)
    content = PointValues.model_construct(values=values.tolist()).model_dump_json()
    return Response(content, media_type=JSON, headers=CROSS_ORIGIN)


@router.options("/scenes/{id}/query", include_in_schema=False)
async def options() -> Response:
    """Asking is allowed to everybody."""
    return allowed("POST, OPTIONS")


def _unpacked(body: bytes, dimension: int) -> Points:
    if len(body) % (dimension * FLOAT_BYTES):
        message = f"Each point is {dimension} floats of 4 bytes; the body ends within one."
        raise BadRequest(message)
    return np.frombuffer(body, "<f4").astype(np.float64).reshape(-1, dimension)


def _in_image(body: bytes) -> tuple[Points, float]:
    wanted = _parsed(PointQuery, body)
    return np.array(wanted.points, np.float64).reshape(-1, 2), wanted.pixel_size


def _in_space(body: bytes) -> tuple[Points, float]:
    wanted = _parsed(SpaceQuery, body)
    return np.array(wanted.points, np.float64).reshape(-1, 3), wanted.voxel_size


def _parsed(kind: type[Q], body: bytes) -> Q:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise BadRequest(f"{place[:100]}: {first['msg']}.") from None


async def _values(
    points: Points, size: float, view: View, renderer: Renderer, request: Request
) -> NDArray[np.float32]:
    most = renderer.settings.max_query_points
    if len(points) > most:
        raise LimitExceeded("Too many points.", limit="max_query_points", value=most)
    _check(points, view)
    return await alone(request, renderer.gate.run(_look_up(points, size, view, renderer)))


def _look_up(
    points: Points, size: float, view: View, renderer: Renderer
) -> Callable[[GoOn], NDArray[np.float32]]:
    if view.is_shape:
        return lambda go_on: _in_parts(renderer.open_shape(view)[1].query, points, size, go_on)
    if len(points) == 0:
        return lambda _: np.empty((0, view.image.channels), np.float32)
    return lambda go_on: _in_parts(renderer.open_image(view)[1].query, points, size, go_on)


def _in_parts(
    query: Callable[[Points, float], NDArray[np.float32]], points: Points, size: float, go_on: GoOn
) -> NDArray[np.float32]:
    values = []
    for start in range(0, max(1, len(points)), POINTS_AT_ONCE):
        values.append(query(points[start : start + POINTS_AT_ONCE], size))
        go_on()
    return np.concatenate(values)


def _check(points: Points, view: View) -> None:
    # Written so that a NaN is refused.
    if view.is_shape:
        outside = ~np.isfinite(points).all(axis=1)
        place = "a place in space"
    else:
        size = np.array([view.image.width, view.image.height])
        outside = ~((points >= 0) & (points <= size)).all(axis=1)
        place = "a place inside the image"
    if outside.any():
        raise BadRequest(f"Point {int(outside.argmax())} isn't {place}.")
