"""A shape as one file, `GET /scenes/{id}/mesh`, and as a small picture.

The mesh is made block by block and goes to a temporary file, never into memory as a whole. It is made for
one client at a time, and no further when that client leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response

from acorn_svc.api.caching import allowed, bodiless
from acorn_svc.api.dependencies import SceneName
from acorn_svc.api.errors import documented
from acorn_svc.api.gate import BoundedStream, GoOn, alone
from acorn_svc.api.rendering import Opened, Renderer, RendererDep, View
from acorn_svc.errors import LimitExceeded
from acorn_svc.field.kinds import as_shape
from acorn_svc.field.shading import UpAxis, picture
from acorn_svc.formats.images import encode_image
from acorn_svc.formats.mesh_files import MeshEncoding, stream_mesh

MEDIA_TYPES: Final[dict[MeshEncoding, str]] = {
    "glb": "model/gltf-binary",
    "ply": "application/ply",
    "stl": "model/stl",
    "obj": "model/obj",
}
WEBP: Final = "image/webp"
THUMBNAIL_SIDE: Final = 256
LEAST_RESOLUTION: Final = 8

router = APIRouter(tags=["Shapes"])


@router.head("/scenes/{id}/mesh", include_in_schema=False)
@router.get(
    "/scenes/{id}/mesh",
    summary="Download the surface as a mesh",
    response_class=Response,
    responses={
        200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}},
        304: {"description": "The client has it already (`If-None-Match`)."},
        **documented(400, 404, 422, 503),
    },
)
async def mesh(
    id: SceneName,
    request: Request,
    renderer: RendererDep,
    resolution: Annotated[
        int,
        Query(ge=LEAST_RESOLUTION, description="Cells along the longest side of the shape's box."),
    ] = 256,
    format: Annotated[
        MeshEncoding,
        Query(description="GLB and PLY (binary) have normals and colours, OBJ too, STL neither."),
    ] = "glb",
) -> Response:
    """A watertight mesh of the shape, at any resolution, in the units of the mesh that was uploaded.

    A lower resolution shows a coarser scale of the field, so small meshes are clean too. The first
    byte comes when the whole mesh has been made; leave, and making it ends.
    """
    view = await renderer.view(id)
    view.require_shape()
    most = renderer.settings.max_mesh_resolution
    if resolution > most:
        raise LimitExceeded("The mesh would be too fine.", limit="max_mesh_resolution", value=most)
    return await _file(request, renderer, view, resolution, format)


@router.head("/scenes/{id}/thumbnail.webp", include_in_schema=False)
@router.get(
    "/scenes/{id}/thumbnail.webp",
    summary="Show a shape as a small picture",
    response_class=Response,
    responses={200: {"content": {WEBP: {}}}, **documented(400, 404, 422, 503)},
)
async def thumbnail(
    id: SceneName,
    request: Request,
    renderer: RendererDep,
    up: Annotated[UpAxis, Query(description="The axis that points up.")] = "y",
) -> Response:
    """The shape from the front, right and above, on a transparent ground."""
    view = await renderer.view(id)
    view.require_shape()

    def work(opened: Opened) -> bytes:
        return encode_image(picture(as_shape(opened.field), THUMBNAIL_SIDE, up), "webp")

    return await renderer.answer(request, view, ("thumbnail", up), work, WEBP)


@router.options("/scenes/{id}/mesh", include_in_schema=False)
@router.options("/scenes/{id}/thumbnail.webp", include_in_schema=False)
async def options() -> Response:
    """Reading is allowed to everybody."""
    return allowed()


async def _file(
    request: Request, renderer: Renderer, view: View, resolution: int, file_format: MeshEncoding
) -> Response:
    media_type = MEDIA_TYPES[file_format]
    name = {"Content-Disposition": f'attachment; filename="{view.scene.id}.{file_format}"'}
    if answer := bodiless(request, media_type, view.headers(**name)):
        return answer
    renderer.streams.require_room()

    def begin(go_on: GoOn) -> tuple[View, Iterator[bytes], bytes]:
        newest, field = renderer.open_shape(view)
        chunks = stream_mesh(field.mesh_parts(resolution, go_on), file_format, renderer.spool)
        return newest, chunks, next(chunks)

    # What can go wrong goes wrong here, while there is still a status to say it with.
    newest, chunks, first = await alone(request, renderer.extractions.run(begin))
    content = renderer.extractions.steps(first, chunks)
    return BoundedStream(renderer.streams, content, newest.headers(**name), media_type)
