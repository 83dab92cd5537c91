"""Distances, winding numbers and occupied cells, against brute force and against libigl."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from acorn_svc.errors import BadMesh
from acorn_svc.training import distance
from acorn_svc.training.distance import SurfaceIndex

Floats = NDArray[np.float64]
Faces = NDArray[np.int32]
Mesh = tuple[Floats, Faces]

MESHES = Path(__file__).parents[4] / "shared" / "data" / "meshes"
ROUNDING = 2e-6  # of distances, for meshes of extent 2
APPROXIMATION = 0.02  # of winding numbers


def back_ends() -> list[str]:
    if distance._native is None:
        return ["plain"]
    return ["plain", *(name for name in distance._native.lanes() if name != "avx512")]


@pytest.fixture(params=back_ends())
def plain(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether to use libigl; every width of registers is another case."""
    if request.param != "plain":
        monkeypatch.setattr(distance, "lanes", request.param)
    return request.param == "plain"


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_mesh(faces: int, seed: int = 0) -> Mesh:
    """A soup of triangles of very different sizes."""
    random = np.random.default_rng(seed)
    sizes = 10.0 ** random.uniform(-3, 0, (faces, 1, 1))
    corners = random.uniform(-1, 1, (faces, 1, 3)) + sizes * random.uniform(-1, 1, (faces, 3, 3))
    return corners.reshape(-1, 3), np.arange(3 * faces, dtype=np.int32).reshape(-1, 3)


def sphere(rings: int = 24, sectors: int = 40) -> Mesh:
    """Of radius 1 around 0, closed, with a vertex for each pole."""
    polar, around = np.pi * np.arange(1, rings) / rings, 2 * np.pi * np.arange(sectors) / sectors
    theta, phi = (angle.ravel() for angle in np.meshgrid(polar, around, indexing="ij"))
    body = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=1)
    vertices = np.concatenate([body, [[0, 0, 1], [0, 0, -1]]])
    faces = []
    for s in range(sectors):
        t = (s + 1) % sectors
        faces.append((len(body), s, t))
        for r in range(rings - 2):
            a, b = r * sectors, (r + 1) * sectors
            faces += [(a + s, b + s, b + t), (a + s, b + t, a + t)]
        last = (rings - 2) * sectors
        faces.append((len(body) + 1, last + t, last + s))
    return vertices, np.array(faces, np.int32)


def cube() -> Mesh:
    """From 0 to 1: large triangles, on the borders of cells."""
    vertices = np.array(list(product([0.0, 1.0], repeat=3)))
    squares = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return vertices, np.array([f for a, b, c, d in squares for f in ((a, b, c), (a, c, d))], np.int32)


def points_around(count: int, seed: int = 1, reach: float = 1.5) -> Floats:
    return np.random.default_rng(seed).uniform(-reach, reach, (count, 3))


def closest_on_segment(points: Floats, a: Floats, b: Floats) -> Floats:
    """Squared distances of points ``[q, 1, 3]`` from segments ``[m, 3]``."""
    edge = b - a
    square = np.sum(edge**2, axis=-1)
    along = np.clip(np.sum((points - a) * edge, axis=-1) / np.where(square > 0, square, 1), 0, 1)
    return np.sum((points - a - along[..., None] * edge) ** 2, axis=-1)


def brute_distances(mesh: Mesh, points: Floats) -> Floats:
    """Distances ``[q, m]`` to every triangle."""
    a, b, c = np.moveaxis(mesh[0][mesh[1]], 1, 0)
    points = points[:, None]
    squares = np.min([closest_on_segment(points, *edge) for edge in ((a, b), (b, c), (c, a))], axis=0)
    normal = np.cross(b - a, c - a)
    square = np.sum(normal**2, axis=1)
    inside = np.broadcast_to(square > 0, squares.shape)
    for p, q in ((a, b), (b, c), (c, a)):
        inside = inside & (np.sum(np.cross(q - p, points - p) * normal, axis=2) >= 0)
    height = np.sum((points - a) * normal, axis=2) ** 2 / np.where(square > 0, square, 1)
    return np.sqrt(np.where(inside, np.minimum(height, squares), squares))


def brute_winding(mesh: Mesh, points: Floats) -> Floats:
    """Sums of solid angles (van Oosterom and Strackee 1983)."""
    a, b, c = (corner - points[:, None] for corner in np.moveaxis(mesh[0][mesh[1]], 1, 0))
    la, lb, lc = (np.linalg.norm(x, axis=2) for x in (a, b, c))
    volume = np.sum(a * np.cross(b, c), axis=2)
    cosine = (
        la * lb * lc + np.sum(a * b, axis=2) * lc + np.sum(b * c, axis=2) * la + np.sum(c * a, axis=2) * lb
    )
    return np.arctan2(volume, cosine).sum(axis=1) / (2 * np.pi)


def brute_occupied(
    mesh: Mesh, origin: Floats, side: float, counts: tuple[int, int, int]
) -> NDArray[np.int64]:
    """All 13 axes for all cells and triangles."""
    cells = np.array(list(np.ndindex(counts)))
    corners = (mesh[0][mesh[1]] - origin) / side
    touched = np.zeros(len(cells), bool)
    for triangle in corners:
        local = triangle - (cells[:, None] + 0.5)
        edges = np.roll(triangle, -1, axis=0) - triangle
        axes = [*np.eye(3), np.cross(edges[0], edges[1])]
        axes += [np.cross(edge, unit) for edge in edges for unit in np.eye(3)]
        overlaps = np.ones(len(cells), bool)
        for axis in axes:
            along, reach = local @ axis, np.abs(axis).sum() / 2 + 1e-12
            overlaps &= (along.min(axis=1) <= reach) & (along.max(axis=1) >= -reach)
        touched |= overlaps
    return cells[touched]


def test_distances_are_those_of_brute_force(plain: bool) -> None:
    for faces in (1, 2, 7, 8, 9, 65, 300):
        mesh, points = random_mesh(faces, faces), points_around(500)
        found = SurfaceIndex(*mesh, plain=plain).closest(points)
        every = brute_distances(mesh, points)
        np.testing.assert_allclose(found.distance, every.min(axis=1), atol=ROUNDING)
        chosen = every[np.arange(len(points)), found.face]
        np.testing.assert_allclose(chosen, every.min(axis=1), atol=ROUNDING)


def test_barycentric_coordinates_name_the_closest_point(plain: bool) -> None:
    mesh, points = random_mesh(200), points_around(500)
    found = SurfaceIndex(*mesh, plain=plain).closest(points)
    assert found.barycentric.min() >= 0
    np.testing.assert_allclose(found.barycentric.sum(axis=1), 1, atol=1e-5)
    place = np.einsum("nk,nkd->nd", found.barycentric, mesh[0][mesh[1][found.face]])
    np.testing.assert_allclose(np.linalg.norm(place - points, axis=1), found.distance, atol=1e-5)


def test_distances_saturate(plain: bool) -> None:
    mesh, points = random_mesh(50), points_around(500)
    index = SurfaceIndex(*mesh, plain=plain)
    free, held = index.closest(points), index.closest(points, 0.25)
    beyond = free.distance > 0.25
    assert 0.1 < beyond.mean() < 0.9
    np.testing.assert_allclose(held.distance, np.minimum(free.distance, 0.25), atol=ROUNDING)
    np.testing.assert_array_equal(held.face == -1, beyond)
    assert not held.barycentric[beyond].any()
    assert (index.closest(points, 0.0).face == -1).all()
    signed = index.signed_distance(points, 0.25)
    np.testing.assert_array_equal(np.abs(signed), held.distance)


def test_winding_numbers_are_those_of_brute_force(plain: bool) -> None:
    for faces in (1, 9, 300):
        mesh, points = random_mesh(faces), points_around(500)
        found = SurfaceIndex(*mesh, plain=plain).winding(points)
        np.testing.assert_allclose(found, brute_winding(mesh, points), atol=APPROXIMATION)


def test_near_triangles_have_exact_solid_angles() -> None:
    mesh = random_mesh(8)  # one packet, which is never far away from a point between its triangles
    points = points_around(300, reach=0.5)
    np.testing.assert_allclose(SurfaceIndex(*mesh).winding(points), brute_winding(mesh, points), atol=1e-5)


def test_winding_of_a_closed_surface_is_whole(plain: bool) -> None:
    index, points = SurfaceIndex(*sphere(), plain=plain), points_around(2000)
    assert index.closed
    radius = np.linalg.norm(points, axis=1)
    clear = np.abs(radius - 1) > 0.02
    np.testing.assert_allclose(index.winding(points)[clear], radius[clear] < 1, atol=APPROXIMATION)
    np.testing.assert_array_equal(index.inside(points)[clear], radius[clear] < 1)


def test_signs_are_those_of_winding_numbers(plain: bool) -> None:
    for mesh in (sphere(10, 16), random_mesh(200)):
        index, points = SurfaceIndex(*mesh, plain=plain), points_around(3000)
        signed = index.signed_distance(points)
        sure = np.abs(np.abs(brute_winding(mesh, points)) - 0.5) > APPROXIMATION
        np.testing.assert_array_equal((signed < 0)[sure], index.inside(points)[sure])
        np.testing.assert_array_equal(np.abs(signed), index.closest(points).distance)


def test_a_surface_inside_out_has_the_same_inside(plain: bool) -> None:
    vertices, faces = sphere()
    turned = SurfaceIndex(vertices, np.ascontiguousarray(faces[:, ::-1]), plain=plain)
    index, points = SurfaceIndex(vertices, faces, plain=plain), points_around(2000)
    np.testing.assert_allclose(turned.winding(points), -index.winding(points), atol=1e-4)
    np.testing.assert_array_equal(turned.inside(points), index.inside(points))
    np.testing.assert_allclose(turned.signed_distance(points), index.signed_distance(points), atol=ROUNDING)


def test_holes_are_closed_sensibly(plain: bool) -> None:
    vertices, faces = sphere()
    kept = np.random.default_rng(0).random(len(faces)) > 0.05
    index, points = SurfaceIndex(vertices, faces[kept], plain=plain), points_around(2000)
    assert not index.closed
    radius = np.linalg.norm(points, axis=1)
    clear = np.abs(radius - 1) > 0.1
    np.testing.assert_array_equal(index.inside(points)[clear], radius[clear] < 1)


def test_closed_is_told_of_places_not_of_numbers(plain: bool) -> None:
    vertices, faces = cube()
    apart = vertices[faces].reshape(-1, 3)
    own = np.arange(len(apart), dtype=np.int32).reshape(-1, 3)
    assert SurfaceIndex(apart, own, plain=plain).closed
    assert not SurfaceIndex(apart, own[1:].copy(), plain=plain).closed
    turned = faces.copy()
    turned[0] = turned[0, ::-1]
    assert not SurfaceIndex(vertices, turned, plain=plain).closed


def test_nested_and_crossing_surfaces(plain: bool) -> None:
    """The sign may not be carried across a wall, nor from one shape into another."""
    vertices, faces = sphere(10, 16)
    spheres = [(vertices, 1), (0.5 * vertices, -1), (0.6 * vertices + [0.7, 0, 0], 1)]
    places = np.concatenate([part for part, _ in spheres])
    parts = [faces[:, ::turn] + i * len(vertices) for i, (_, turn) in enumerate(spheres)]
    mesh = (places, np.ascontiguousarray(np.concatenate(parts), np.int32))
    points = points_around(4000)
    exact = brute_winding(mesh, points)
    signed = SurfaceIndex(*mesh, plain=plain).signed_distance(points)
    clear = np.abs(signed) > 1e-4
    np.testing.assert_array_equal((signed < 0)[clear], (np.abs(exact) > 0.5)[clear])


def test_duplicates_and_triangles_without_area_do_no_harm(plain: bool) -> None:
    vertices, faces = sphere()
    flat = np.array([[0, 0, 0], [0, 0, 1], [0, 2, 1], [5, 5, 5]], np.int32)
    index = SurfaceIndex(vertices, faces, plain=plain)
    worse = SurfaceIndex(vertices, np.concatenate([faces, flat, faces[:0]]), plain=plain)
    points = np.concatenate([points_around(1000), vertices[:50]])
    chords = brute_distances((vertices, flat), points).min(axis=1)
    nearest = np.minimum(index.closest(points).distance, chords)
    found = worse.closest(points)
    np.testing.assert_allclose(found.distance, nearest, atol=ROUNDING)
    assert np.isfinite(found.barycentric).all()
    np.testing.assert_allclose(worse.winding(points[:1000]), index.winding(points[:1000]), atol=APPROXIMATION)
    double = SurfaceIndex(vertices, np.repeat(faces, 20, axis=0), plain=plain)
    np.testing.assert_allclose(double.closest(points).distance, index.closest(points).distance, atol=ROUNDING)
    np.testing.assert_allclose(double.winding(points[:1000]), 20 * index.winding(points[:1000]), atol=1)


def test_one_point_is_a_surface_too() -> None:
    """All triangles at one place."""
    index = SurfaceIndex(np.ones((3, 3)), np.tile(np.arange(3, dtype=np.int32), (100, 1)))
    points = points_around(100)
    np.testing.assert_allclose(index.closest(points).distance, np.linalg.norm(points - 1, axis=1), rtol=1e-6)
    assert not index.inside(np.ones((1, 3))).any()
    with pytest.raises(BadMesh):
        index.sample(1, 0)


def test_needles_are_met_where_they_are() -> None:
    """A sliver of width 1e-9 is a segment: its plane, which rounding decides, matters nowhere."""
    random = np.random.default_rng(3)
    a, b = random.uniform(-1, 1, (2, 200, 3))
    corners = np.stack([a, b, a + 0.3 * (b - a) + 1e-9 * random.standard_normal((200, 3))], axis=1)
    mesh = (corners.reshape(-1, 3), np.arange(600, dtype=np.int32).reshape(-1, 3))
    points = points_around(1000)
    expected = np.sqrt(closest_on_segment(points[:, None], a, b)).min(axis=1)
    np.testing.assert_allclose(SurfaceIndex(*mesh).closest(points).distance, expected, atol=ROUNDING)


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e6, 0.0), (1.0, 1000.0), (1e150, 0.0)])
def test_units_and_places_do_not_matter(scale: float, shift: float) -> None:
    vertices, faces = sphere()
    points = points_around(500)
    moved = SurfaceIndex(vertices * scale + shift, faces)
    index = SurfaceIndex(vertices, faces)
    here, there = index.closest(points), moved.closest(points * scale + shift)
    if scale < 1e30:  # beyond, a distance is no float32
        np.testing.assert_allclose(there.distance / scale, here.distance, atol=ROUNDING)
    there_inside = moved.inside(points * scale + shift)
    clear = here.distance > 1e-5
    np.testing.assert_array_equal(there_inside[clear], index.inside(points)[clear])


def test_points_far_away_are_outside() -> None:
    index = SurfaceIndex(*sphere())
    far = np.array([[1e5, 0, 0], [0, -1e20, 0], [1e30, 1e30, 0]])
    np.testing.assert_allclose(index.signed_distance(far), np.linalg.norm(far, axis=1) - 1, rtol=1e-4)


def test_nothing_is_asked_of_no_points(plain: bool) -> None:
    index, none = SurfaceIndex(*cube(), plain=plain), np.empty((0, 3))
    assert [len(part) for part in index.closest(none)] == [0, 0, 0]
    assert index.closest(none).barycentric.shape == (0, 3)
    assert len(index.winding(none)) == len(index.inside(none)) == len(index.signed_distance(none)) == 0
    assert index.occupied((5, 5, 5), 1, (3, 3, 3)).shape == (0, 3)


def test_what_is_no_surface_is_refused(plain: bool) -> None:
    vertices, faces = cube()
    for wrong in (vertices.astype(np.float32), np.asfortranarray(vertices), vertices[::2], vertices.tolist()):
        with pytest.raises(TypeError):
            SurfaceIndex(wrong, faces, plain=plain)
    for wrong in (faces.astype(np.int64), np.asfortranarray(faces)):
        with pytest.raises(TypeError):
            SurfaceIndex(vertices, wrong, plain=plain)
    with pytest.raises(ValueError, match="vertices must be"):
        SurfaceIndex(np.zeros((8, 2)), faces, plain=plain)
    for wrong in (faces[:0], faces + 1, faces - 1):
        with pytest.raises(BadMesh):
            SurfaceIndex(vertices, wrong, plain=plain)
    for value in (math.nan, math.inf):
        broken = vertices.copy()
        broken[3, 1] = value
        with pytest.raises(BadMesh):
            SurfaceIndex(broken, faces, plain=plain)


def test_what_is_no_question_is_refused(plain: bool) -> None:
    index = SurfaceIndex(*cube(), plain=plain)
    points = points_around(10)
    for ask in (index.closest, index.winding, index.inside, index.signed_distance):
        for wrong in (points.astype(np.float32), np.asfortranarray(points), points[::2]):
            with pytest.raises(TypeError):
                ask(wrong)
        with pytest.raises(ValueError, match="must be"):
            ask(np.zeros(3))
        with pytest.raises(ValueError, match="finite"):
            ask(np.full((1, 3), math.nan))
    for most in (-1.0, math.nan):
        with pytest.raises(ValueError, match="saturate"):
            index.closest(points, most)
    for grid in (((0, 0), 1, (2, 2, 2)), ((0, 0, 0), 0, (2, 2, 2)), ((0, 0, math.nan), 1, (2, 2, 2))):
        with pytest.raises(ValueError, match="grid"):
            index.occupied(*grid)
    for counts in ((2, 2), (0, 2, 2), (2, 2, 2**21)):
        with pytest.raises(ValueError, match="grid"):
            index.occupied((0, 0, 0), 1, counts)


def test_cells_are_those_of_brute_force(plain: bool) -> None:
    for mesh in (random_mesh(40), sphere(7, 9), cube()):
        index = SurfaceIndex(*mesh, plain=plain)
        for side, counts in ((0.31, (7, 6, 5)), (0.107, (9, 14, 11)), (2.5, (1, 1, 2)), (0.25, (4, 4, 4))):
            origin = np.array([-0.75, -0.25, -0.5])
            expected = brute_occupied(mesh, origin, side, counts)
            np.testing.assert_array_equal(index.occupied(tuple(origin), side, counts), expected)


def test_cells_of_a_fine_grid_are_those_of_a_coarse_one(plain: bool) -> None:
    """Grids with a bit for each cell and grids too large for that; each cube is the union of its eighths."""
    vertices, faces = random_mesh(12)
    index = SurfaceIndex(0.25 * vertices, faces, plain=plain)
    cells = [
        index.occupied((-2.0, -2.0, -2.0), 4 / count, (count,) * 3)
        for count in ((128, 256) if plain else (256, 512, 1024, 2048))
    ]
    for coarse, fine in pairwise(cells):
        numbers = np.ravel_multi_index(tuple(fine.T // 2), (2048,) * 3)
        expected = np.ravel_multi_index(tuple(coarse.T), (2048,) * 3)
        np.testing.assert_array_equal(np.unique(numbers), expected)


def test_samples_lie_on_the_surface_evenly() -> None:
    mesh = random_mesh(20)
    index = SurfaceIndex(*mesh)
    samples = index.sample(40_000, np.random.default_rng(5))
    assert index.closest(samples.points).distance.max() < ROUNDING
    corners = mesh[0][mesh[1][samples.face]]
    place = np.einsum("nk,nkd->nd", samples.barycentric, corners)
    np.testing.assert_allclose(place, samples.points, atol=1e-6)
    edges = np.diff(mesh[0][mesh[1]], axis=1)
    areas = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    share = np.bincount(samples.face, minlength=20) / 40_000
    np.testing.assert_allclose(share, areas / areas.sum(), atol=0.01)
    np.testing.assert_allclose(samples.barycentric.mean(axis=0), 1 / 3, atol=0.01)
    for again, first in zip(index.sample(9, 3), index.sample(9, 3), strict=True):
        np.testing.assert_array_equal(again, first)


@pytest.mark.usefixtures("threads")
def test_answers_do_not_depend_on_the_threads() -> None:
    answers = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        index, points = SurfaceIndex(*sphere(40, 60)), points_around(9000)
        every = [*index.closest(points), index.winding(points), index.signed_distance(points, 0.3)]
        answers.append([*every, index.occupied((-1, -1, -1), 0.05, (40, 40, 40))])
    for answer in answers[1:]:
        for found, first in zip(answer, answers[0], strict=True):
            np.testing.assert_array_equal(found, first)


def test_a_real_mesh_is_measured_as_libigl_does() -> None:
    igl = pytest.importorskip("igl")
    file = MESHES / "spot_6k.obj"
    if not file.is_file():
        pytest.skip("there is no spot_6k.obj: it is not in shared/data/meshes")
    vertices, faces = igl.readOBJ(str(file))[0], None
    lines = [line.split()[1:4] for line in file.read_text().splitlines() if line.startswith("f ")]
    faces = np.array([[int(corner.split("/")[0]) - 1 for corner in line] for line in lines], np.int32)
    index = SurfaceIndex(np.ascontiguousarray(vertices[:, :3]), faces)
    samples = index.sample(4000, 0).points
    near = samples + np.random.default_rng(1).normal(0, 0.01, samples.shape)
    for points in (near, points_around(4000, reach=1.0)):
        squares = igl.point_mesh_squared_distance(points, vertices, faces.astype(np.int64))[0]
        np.testing.assert_allclose(index.closest(points).distance, np.sqrt(squares), atol=ROUNDING)
        exact = igl.winding_number(vertices, faces.astype(np.int64), points)
        np.testing.assert_allclose(index.winding(points), exact, atol=APPROXIMATION)
        signed = index.signed_distance(points)
        np.testing.assert_array_equal(signed < 0, np.abs(exact) > 0.5)
