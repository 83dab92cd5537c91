"""3D Tiles 1.1 of a shape, under `/tiles3d/{id}`: an implicit octree, straight from the field's own.

Which tiles there are is in `field.tiles`, the files in `formats.tiles3d`. Works while a scene is being
fitted: every answer shows the newest snapshot, and the addresses in a tileset change with its version.
"""

from __future__ import annotations

import json
from typing import Annotated, Final
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Depends, Path, Request, Response

from acorn_svc.api.caching import allowed
from acorn_svc.api.dependencies import SceneName
from acorn_svc.api.errors import documented
from acorn_svc.api.rendering import Opened, Renderer, RendererDep, View
from acorn_svc.errors import NotFound
from acorn_svc.field.kinds import AnyField, as_shape
from acorn_svc.field.shape import ShapeField
from acorn_svc.field.tiles import ShapeTiles, Tile, existing_tiles
from acorn_svc.field.tree import BoolArray
from acorn_svc.formats import tiles3d

JSON: Final = "application/json"
SUBTREE: Final = "application/octet-stream"
GLB: Final = "model/gltf-binary"
TILESET_PATH: Final = "/tiles3d/{id}/tileset.json"
SUBTREE_PATH: Final = "/tiles3d/{id}/subtrees/{level:int}.{x:int}.{y:int}.{z:int}.subtree"
CONTENT_PATH: Final = "/tiles3d/{id}/content/{level:int}/{x:int}/{y:int}/{z:int}.glb"
MOST: Final = 1 << 30

Level = Annotated[int, Path(ge=0, le=MOST, description="0 is the root; each level halves the sides.")]
Position = Annotated[int, Path(ge=0, le=MOST, description="In tiles of the level.")]


async def get_tile(level: Level, x: Position, y: Position, z: Position) -> Tile:
    """The tile that an address names."""
    return Tile(level, x, y, z)


TileDep = Annotated[Tile, Depends(get_tile)]
router = APIRouter(tags=["3D Tiles"])
_existing: WeakKeyDictionary[ShapeField, list[BoolArray]] = WeakKeyDictionary()


@router.head(TILESET_PATH, include_in_schema=False)
@router.get(
    TILESET_PATH,
    summary="Describe a shape to 3D Tiles clients",
    response_class=Response,
    responses={200: {"content": {JSON: {}}}, **documented(400, 404, 503)},
)
async def tileset(id: SceneName, request: Request, renderer: RendererDep) -> Response:
    """The address to give to CesiumJS, 3DTilesRendererJS and other clients.

    The tileset has the coordinates of the mesh, x, y and z as they were; clients that take z for up
    show a mesh that has y up lying on its back. It changes while the scene is being fitted.
    """
    view = await _shape(id, renderer)

    def work(opened: Opened) -> bytes:
        scene_id, version = opened.view.key
        # From here, whichever way this was asked for: below the version, where tiles never change.
        tiles, folder = tiles_of(opened.field), f"../{scene_id}-{version}/"
        return json.dumps(tiles3d.tileset(tiles, version, folder)).encode()

    return await renderer.answer(request, view, "tileset", work, JSON)


@router.head(SUBTREE_PATH, include_in_schema=False)
@router.get(
    SUBTREE_PATH,
    summary="Say which tiles exist",
    response_class=Response,
    responses={200: {"content": {SUBTREE: {}}}, **documented(400, 404, 503)},
)
async def subtree(id: SceneName, root: TileDep, request: Request, renderer: RendererDep) -> Response:
    """A binary subtree: availability of the tiles of some levels, in Morton order."""
    view = await _shape(id, renderer)

    def work(opened: Opened) -> bytes:
        tiles = tiles_of(opened.field)
        if not tiles3d.has_subtree(tiles, root):
            raise NotFound("There is no such subtree.")
        return tiles3d.subtree(tiles, root)

    return await renderer.answer(request, view, ("subtree", root), work, SUBTREE)


@router.head(CONTENT_PATH, include_in_schema=False)
@router.get(
    CONTENT_PATH,
    summary="Make the mesh of a tile",
    response_class=Response,
    responses={200: {"content": {GLB: {}}}, **documented(400, 404, 503)},
)
async def content(id: SceneName, tile: TileDep, request: Request, renderer: RendererDep) -> Response:
    """The surface within a tile, with normals and, if the shape has any, colours.

    Its open edges have skirts, so that there are no cracks where tiles of two levels meet.
    """
    view = await _shape(id, renderer)

    def work(opened: Opened) -> bytes:
        tiles = tiles_of(opened.field)
        if not tiles.exists(tile):
            raise NotFound("There is no such tile.")
        return tiles3d.content(tiles.mesh(tile), renderer.spool)

    return await renderer.answer(request, view, tile, work, GLB)


@router.options(TILESET_PATH, include_in_schema=False)
@router.options(SUBTREE_PATH, include_in_schema=False)
@router.options(CONTENT_PATH, include_in_schema=False)
async def options() -> Response:
    """Reading is allowed to everybody."""
    return allowed()


async def _shape(scene_id: str, renderer: Renderer) -> View:
    view = await renderer.view(scene_id)
    view.require_shape()
    return view


def tiles_of(field: AnyField) -> ShapeTiles:
    """The tiles of an open field; which exist is found out once."""
    shape = as_shape(field)
    known = _existing.get(shape)
    if known is None:
        known = _existing[shape] = existing_tiles(shape)
    return ShapeTiles(shape, known)
