"""Tiles of a shape: all of the surface at every level, and no cracks where levels meet."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from made_shapes import ball, made_shape, torus
from numpy.typing import NDArray

from acorn_svc.field.bricks import march
from acorn_svc.field.mesh import Mesh
from acorn_svc.field.shape import ShapeField
from acorn_svc.field.tiles import ShapeTiles, Tile, tiles_above

Points = NDArray[np.float64]

CENTRE, RADIUS = (50.0, 44.0, 61.0), 40.0
SIZE = (100, 90, 110)
EIGHT = list(itertools.product((0, 1), repeat=3))


@pytest.fixture(scope="module")
def field() -> ShapeField:
    return made_shape(ball(CENTRE, RADIUS), SIZE, colour=True, origin=(7.0, -3.0, 1e6), voxel=0.25)


@pytest.fixture(scope="module")
def tiles(field: ShapeField) -> ShapeTiles:
    return ShapeTiles.of(field)


def every_tile(tiles: ShapeTiles) -> list[Tile]:
    return [
        Tile(level, int(x), int(y), int(z))
        for level, exist in enumerate(tiles.levels)
        for z, y, x in np.argwhere(exist)
    ]


def below(tile: Tile) -> list[Tile]:
    return [Tile(tile.level + 1, 2 * tile.x + x, 2 * tile.y + y, 2 * tile.z + z) for x, y, z in EIGHT]


def on_surface(count: int, seed: int = 0) -> Points:
    directions = np.random.default_rng(seed).standard_normal((count, 3))
    return np.array(CENTRE) + RADIUS * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def open_edges(faces: NDArray[np.int32]) -> int:
    """Edges whose two directions aren't there equally often."""
    edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    there, back = (np.unique(pairs, axis=0, return_counts=True) for pairs in (edges, edges[:, ::-1]))
    same = len(there[0]) == len(back[0]) and (there[0] == back[0]).all() and (there[1] == back[1]).all()
    return 0 if same else len(edges)


def test_a_brick_holds_the_whole_surface_inside_it_and_is_cut_open_at_its_sides() -> None:
    z, y, x = np.meshgrid(*[np.arange(-1.0, 22)] * 3, indexing="ij")
    inside = march((np.sqrt((x - 10) ** 2 + (y - 9) ** 2 + (z - 11) ** 2) - 7).astype(np.float32))
    assert open_edges(inside.faces) == 0
    distance = np.linalg.norm(inside.vertices - np.array([10, 9, 11]), axis=1)
    np.testing.assert_allclose(distance, 7, atol=0.03)
    outwards = (inside.vertices - np.array([10, 9, 11])) / distance[:, None]
    assert ((inside.normals * outwards).sum(axis=1) > 0.97).all()
    cut = march((x - 4.25).astype(np.float32))
    np.testing.assert_allclose(cut.vertices[:, 0], 4.25)
    assert (cut.vertices.min(axis=0)[1:] == 0).all()
    assert (cut.vertices.max(axis=0)[1:] == 20).all()
    assert len(cut.faces) == 2 * 20 * 20
    assert len(march(np.ones((3, 9, 4), np.float32)).faces) == 0


def test_tiles_cover_the_surface_at_every_level(field: ShapeField, tiles: ShapeTiles) -> None:
    assert len(tiles.levels) == field.depth - tiles_above(field) + 1
    side = field.architecture.cells << field.depth
    for level in range(len(tiles.levels)):
        places = np.floor(on_surface(2000) / (side >> level)).astype(int)
        assert all(tiles.exists(Tile(level, *map(int, place))) for place in places)
        assert tiles.error(level) == tiles.error(0) / 2**level
    assert tiles.error(len(tiles.levels) - 1) == field.signal.voxel
    assert not tiles.exists(Tile(0, 1, 0, 0))
    assert not tiles.exists(Tile(1, -1, 0, 0))
    assert not tiles.exists(Tile(len(tiles.levels), 0, 0, 0))


def test_a_shallow_tree_has_few_tiles_but_leaves_no_holes() -> None:
    field = made_shape(torus((64, 64, 20), 40, 12), (128, 128, 40), levels=3)
    deep = made_shape(torus((64, 64, 20), 40, 12), (128, 128, 40))
    # One corner of the tree is as deep as it can be.
    shallow, full = ShapeTiles.of(field), ShapeTiles.of(deep)
    assert len(shallow.levels) < len(full.levels)
    for tile in every_tile(full):
        if tile.level + 1 == len(full.levels):
            continue
        exist = [full.exists(child) for child in below(tile)]
        assert any(exist)


def test_a_tile_is_refined_as_a_whole_or_not_at_all() -> None:
    distance = ball(CENTRE, RADIUS)
    field = made_shape(distance, SIZE, finer=lambda centres: centres[:, 0] < 40, levels=4)
    tiles = ShapeTiles.of(field)
    deepest = len(tiles.levels) - 1
    side = (field.architecture.cells << field.depth) >> deepest
    places = np.floor(on_surface(4000) / side).astype(int)
    found = {bool(tiles.exists(Tile(deepest, *map(int, place)))) for place in places}
    assert found == {True, False}
    for tile in every_tile(tiles):
        refined = any(tiles.exists(child) for child in below(tile))
        low = np.array([tile.x, tile.y, tile.z]) * ((field.architecture.cells << field.depth) >> tile.level)
        length = (field.architecture.cells << field.depth) >> tile.level
        points = on_surface(4000)
        points = points[((points >= low) & (points < low + length)).all(axis=1)]
        for point in points if refined else []:
            assert tiles.exists(Tile(tile.level + 1, *map(int, point // (length / 2))))


def test_vertices_lie_on_the_surface_with_its_normals_and_colours(
    field: ShapeField, tiles: ShapeTiles
) -> None:
    voxel = field.signal.voxel
    for tile in every_tile(tiles)[:12]:
        mesh = tiles.mesh(tile)
        positions = mesh.vertices / voxel
        stride = 1 << tiles.scale(tile.level)
        outwards = positions - np.array(CENTRE)
        distance = np.linalg.norm(outwards, axis=1)
        # Skirts reach inwards, and nothing lies outside.
        assert (distance < RADIUS + 0.1 * stride).all()
        assert (distance > RADIUS - 2.2 * stride).all()
        assert mesh.normals is not None
        assert ((mesh.normals * outwards).sum(axis=1) > 0.97 * distance).all()
        assert mesh.colours is not None
        seen = mesh.colours[np.abs(distance - RADIUS) < 0.1 * stride].astype(float)
        wanted = 255 * positions[np.abs(distance - RADIUS) < 0.1 * stride] / np.array(SIZE)
        np.testing.assert_allclose(seen, wanted, atol=2)
        side = (field.architecture.cells << field.depth) >> tile.level
        low = np.array([tile.x, tile.y, tile.z]) * side
        assert (positions >= low - 2.2 * stride).all()
        assert (positions <= low + side + 2.2 * stride).all()


def hits(origins: Points, directions: Points, mesh: Mesh, voxel: float) -> NDArray[np.bool_]:
    """Whether each ray meets a triangle that faces it (Möller and Trumbore 1997)."""
    a, b, c = (mesh.vertices[mesh.faces[:, corner]] / voxel for corner in range(3))
    first, second = b - a, c - a
    facing = np.cross(first, second)
    result = np.zeros(len(origins), bool)
    for row, (origin, direction) in enumerate(zip(origins, directions, strict=True)):
        across = np.cross(direction, second)
        determinant = (first * across).sum(axis=1)
        front = facing @ direction < 0
        with np.errstate(divide="ignore", invalid="ignore"):
            u = ((origin - a) * across).sum(axis=1) / determinant
            around = np.cross(origin - a, first)
            v = around @ direction / determinant
            t = (second * around).sum(axis=1) / determinant
            inside = (u >= -1e-9) & (v >= -1e-9) & (u + v <= 1 + 1e-9) & (t > 0)
        result[row] = bool((inside & front).any())
    return result


def joined(meshes: list[Mesh]) -> Mesh:
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    faces = [mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)]
    return Mesh(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces))


def test_no_ray_passes_between_two_levels(field: ShapeField, tiles: ShapeTiles) -> None:
    """Half of the root's children are replaced by theirs; rays go through the seam, at a slant."""
    voxel, border = field.signal.voxel, 64.0
    coarse = [tile for tile in below(Tile(0, 0, 0, 0)) if tile.x == 1 and tiles.exists(tile)]
    fine = [
        tile
        for parent in below(Tile(0, 0, 0, 0))
        if parent.x == 0
        for tile in below(parent)
        if tiles.exists(tile)
    ]
    meshes = [tiles.mesh(tile) for tile in coarse + fine]
    whole = joined(meshes)
    bare = joined(
        [without_skirts(mesh, tiles, tile) for mesh, tile in zip(meshes, coarse + fine, strict=True)]
    )
    rng = np.random.default_rng(3)
    angles = rng.uniform(0, 2 * np.pi, 300)
    ring = np.sqrt(RADIUS**2 - (border - CENTRE[0]) ** 2)
    radial = np.stack([np.zeros(300), np.cos(angles), np.sin(angles)], axis=1)
    # Between the highest and the lowest that the two surfaces are at the seam.
    heights = ring - rng.uniform(0, 0.25, 300)
    targets = np.array([border, *CENTRE[1:]]) + radial * heights[:, None]
    slants = np.stack([np.where(np.arange(300) % 2, 1.2, -1.2), *np.zeros((2, 300))], axis=1)
    directions = -radial + slants
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    origins = targets - 30 * directions
    assert hits(origins, directions, whole, voxel).all()
    assert not hits(origins, directions, bare, voxel).all(), "there would be no cracks to cover"


def without_skirts(mesh: Mesh, tiles: ShapeTiles, tile: Tile) -> Mesh:
    """Skirts hang from the side of the tile and reach below the surface."""
    voxel, stride = tiles.field.signal.voxel, 1 << tiles.scale(tile.level)
    depth = RADIUS - np.linalg.norm(mesh.vertices / voxel - np.array(CENTRE), axis=1)
    return Mesh(mesh.vertices, mesh.faces[(depth[mesh.faces] < 0.2 * stride).all(axis=1)])


def test_tiles_of_one_level_meet_exactly(field: ShapeField, tiles: ShapeTiles) -> None:
    """Their vertices welded together, what is open is only what skirts hang from, twice."""
    tile_list = [tile for tile in every_tile(tiles) if tile.level == 1]
    mesh = joined([without_skirts(tiles.mesh(tile), tiles, tile) for tile in tile_list])
    places = np.rint(mesh.vertices / field.signal.voxel * 2**16).astype(np.int64)
    _, welded = np.unique(places, axis=0, return_inverse=True)
    faces = welded.reshape(-1)[mesh.faces]
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]
    assert open_edges(faces) == 0
