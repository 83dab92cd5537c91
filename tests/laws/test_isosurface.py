"""Laws of extracted surfaces: closed and manifold whatever the function, and true where it is a distance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from acorn_svc.errors import BadRequest
from acorn_svc.field import cubes, isosurface
from acorn_svc.field.isosurface import extract
from acorn_svc.field.mesh import MeshPart
from acorn_svc.field.ops import marching, marching_reference

LAWS = settings(deadline=None, max_examples=25)
TRUNCATION = 6.0
SIZE = (48, 40, 32)
RESOLUTIONS = [1, 8, 13, 32, 48, 96]
CENTRE = np.asarray(SIZE) / 2

Points = NDArray[np.float64]
Shape = Callable[[Points], NDArray[np.float64]]


# --- shapes, negative inside, in voxels ---


def ball(radius: float, centre: Any = CENTRE) -> Shape:
    return lambda points: np.linalg.norm(points - centre, axis=1) - radius


def torus(points: Points) -> NDArray[np.float64]:
    x, y, z = (points - CENTRE).T
    return np.hypot(np.hypot(x, y) - 12, z) - 5


def touching_balls(points: Points) -> NDArray[np.float64]:
    left, right = ball(8, CENTRE - np.array([8, 0, 0])), ball(8, CENTRE + np.array([8, 0, 0]))
    return np.minimum(left(points), right(points))


def thin_plate(points: Points) -> NDArray[np.float64]:
    return (np.abs(points - CENTRE) - (15, 12, 0.3)).max(axis=1)


def gyroid(points: Points) -> NDArray[np.float64]:
    x, y, z = points.T / 3
    return 2 * (np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x))


def waves(seed: int) -> Shape:
    """A sum of a few waves, about as steep as a distance."""
    random = np.random.default_rng(seed)
    directions, phases = random.normal(0, 0.25, (6, 3)), random.uniform(0, 2 * np.pi, 6)
    return lambda points: np.sin(points @ directions.T + phases).sum(axis=1)


def noise(points: Points) -> NDArray[np.float64]:
    """No distance at all: anything anywhere, but always the same."""
    return 5 * np.sin(1e4 * np.sin(points @ (12.9898, 78.233, 37.719)))


SHAPES: dict[str, Shape] = {
    "ball": ball(13.3),
    "torus": torus,
    "touching balls": touching_balls,
    "thin plate": thin_plate,
    "gyroid": gyroid,
    "waves": waves(1),
    "noise": noise,
    "cut off by the box": ball(25),
}


# --- leaves ---


def boxes(random: np.random.Generator, unit: int, depth: int) -> NDArray[np.int64]:
    """Cubes of random sides that tile the box."""

    def parts(corner: tuple[int, ...], side: int) -> Iterator[tuple[int, ...]]:
        if any(low >= limit for low, limit in zip(corner, SIZE, strict=True)):
            return
        if side == unit or random.random() < 0.3:
            yield *corner, side
            return
        for offset in product((0, side // 2), repeat=3):
            yield from parts(tuple(a + b for a, b in zip(corner, offset, strict=True)), side // 2)

    root = unit << depth
    rows = [
        leaf for corner in product(*(range(0, limit, root) for limit in SIZE)) for leaf in parts(corner, root)
    ]
    # one leaf of the unit's side there must be
    smallest = min(side for *_, side in rows)
    return np.array(rows, np.int64) if smallest == unit else boxes(random, unit, depth)


def true_signs(shape: Shape, leaves: NDArray[np.int64]) -> NDArray[np.int8]:
    """Signs of leaves that a distance cannot be zero in."""
    side = leaves[:, 3]
    distance = shape(leaves[:, :3] + side[:, None] / 2)
    return (np.sign(distance) * (np.abs(distance) > side * np.sqrt(3) / 2)).astype(np.int8)


def saturated(shape: Shape) -> isosurface.Distance:
    return lambda points: np.clip(shape(points), -TRUNCATION, TRUNCATION).astype(np.float32)


# --- meshes ---


def joined(parts: Iterator[MeshPart]) -> trimesh.Trimesh:
    every = list(parts)
    if not every:
        return trimesh.Trimesh(np.empty((0, 3)), np.empty((0, 3), np.int64), process=False)
    seen = 0
    for part in every:
        seen += len(part.vertices)
        assert part.vertices.dtype == part.normals.dtype == np.float32
        assert part.faces.dtype == np.int32
        assert part.faces.max(initial=-1) < seen
    vertices, normals, faces = (
        np.concatenate([getattr(part, name) for part in every]) for name in ("vertices", "normals", "faces")
    )
    return trimesh.Trimesh(vertices, faces, vertex_normals=normals, process=False)


def mesh_of(
    shape: Shape,
    resolution: int,
    leaves: NDArray[np.int64] | None = None,
    signs: NDArray[np.int8] | None = None,
    **options: Any,
) -> trimesh.Trimesh:
    if leaves is None:
        leaves = boxes(np.random.default_rng(0), 4, 2)
    if signs is None:
        signs = true_signs(shape, leaves)
    return joined(extract(saturated(shape), SIZE, leaves, signs, resolution, TRUNCATION, **options))


def assert_closed_manifold(mesh: trimesh.Trimesh) -> None:
    faces = np.asarray(mesh.faces)
    if not len(faces):
        assert not len(mesh.vertices)
        return
    count = len(mesh.vertices)
    assert np.array_equal(np.unique(faces), np.arange(count)), "a vertex without a face"
    starts, ends = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    assert (starts != ends).all()
    forth, back = starts * count + ends, ends * count + starts
    assert len(np.unique(forth)) == len(forth), "two faces run along an edge the same way"
    order = np.argsort(forth)
    place = np.clip(np.searchsorted(forth[order], back), 0, len(forth) - 1)
    other = order[place]
    assert np.array_equal(forth[other], back), "an edge with one face"
    # corners of one vertex, joined across edges: one fan
    following = np.arange(len(forth)).reshape(-1, 3)[:, [1, 2, 0]].reshape(-1)
    links = coo_array((np.ones(len(forth)), (np.arange(len(forth)), following[other])), (len(forth),) * 2)
    assert connected_components(links, directed=False)[0] == count, "a vertex with two fans"
    assert mesh.is_watertight
    assert mesh.is_winding_consistent


def canonical(mesh: trimesh.Trimesh) -> tuple[NDArray[Any], ...]:
    """Vertices, normals and faces in an order of their own: by place."""
    order = np.lexsort(mesh.vertices.T)
    faces = np.argsort(order)[mesh.faces]
    first = faces.argmin(axis=1)[:, None]
    faces = np.take_along_axis(faces, (first + np.arange(3)) % 3, axis=1)
    return mesh.vertices[order], mesh.vertex_normals[order], faces[np.lexsort(faces.T)]


# --- the table ---


def test_neighbouring_cells_agree_on_their_face():
    for face, other in ((0, 1), (2, 3), (4, 5)):
        axis = face // 2
        low, high = cubes.FACES[face], cubes.FACES[other]
        assert {corner | 1 << axis for corner in low} == set(high)
        for signs in product((0, 1), repeat=4):
            below = sum(sign << (corner | 1 << axis) for sign, corner in zip(signs, low, strict=True))
            above = sum(sign << corner for sign, corner in zip(signs, low, strict=True))
            # the edges of the lower cell's high face are those of the upper cell's low face
            moved = {
                tuple(cubes.EDGES.index((cubes.EDGES[e][0] & ~(1 << axis), cubes.EDGES[e][1])) for e in pair)
                for pair in cubes.segments(below, other)
            }
            assert moved == {pair[::-1] for pair in cubes.segments(above, face)}


def test_all_pairs_of_cases_match_on_their_faces():
    """Sides of triangles that lie in a face: those of the two cells of the face run opposite ways."""

    def sides(case: int, face: int) -> set[tuple[int, int]]:
        within = {
            edge
            for edge, (corner, axis) in enumerate(cubes.EDGES)
            if {corner, corner | 1 << axis} <= set(cubes.FACES[face])
        }
        pairs = {
            pair
            for a, b, c in cubes.TABLE[case].tolist()
            if a >= 0
            for pair in ((a, b), (b, c), (c, a))
            if set(pair) <= within
        }
        return {pair for pair in pairs if pair[::-1] not in pairs}

    for axis in range(3):
        low, high = 2 * axis, 2 * axis + 1
        shift = {
            e: cubes.EDGES.index((c & ~(1 << axis), a)) for e, (c, a) in enumerate(cubes.EDGES) if a != axis
        }
        by_signs: dict[tuple[int, ...], set[frozenset[tuple[int, int]]]] = {}
        for case in range(cubes.CASES):
            signs = tuple(case >> corner & 1 for corner in cubes.FACES[low])
            by_signs.setdefault(signs, set()).add(frozenset((b, a) for a, b in sides(case, low)))
            signs = tuple(case >> (corner | 1 << axis) & 1 for corner in cubes.FACES[low])
            by_signs.setdefault(signs, set()).add(
                frozenset((shift[a], shift[b]) for a, b in sides(case, high))
            )
        assert len(by_signs) == 16
        assert all(len(found) == 1 for found in by_signs.values())


def test_every_crossed_edge_of_a_case_is_used_and_no_other():
    for case in range(cubes.CASES):
        crossed = {
            edge
            for edge, (corner, axis) in enumerate(cubes.EDGES)
            if (case >> corner ^ case >> (corner | 1 << axis)) & 1
        }
        assert set(cubes.TABLE[case].reshape(-1).tolist()) - {-1} == crossed


# --- surfaces ---


CASES = [(name, n) for name, n in product(SHAPES, RESOLUTIONS) if not (name == "noise" and n > 32)]


@pytest.mark.parametrize(("name", "resolution"), CASES)
def test_a_surface_is_closed_and_manifold(name, resolution):
    mesh = mesh_of(SHAPES[name], resolution)
    assert_closed_manifold(mesh)
    assert (mesh.vertices >= 0).all()
    assert (mesh.vertices <= SIZE).all()
    assert (mesh.area_faces > 0).all()
    if resolution >= 8 and name not in (
        "noise",
        "thin plate",
    ):  # the plate may lie between two layers of points
        assert mesh.is_volume


@LAWS
@given(st.integers(0, 2**32 - 1), st.sampled_from((2, 4, 8)), st.integers(8, 40), st.booleans())
def test_whatever_the_leaves_say_a_surface_is_closed(seed, unit, resolution, smooth):
    random = np.random.default_rng(seed)
    leaves = boxes(random, unit, 2)
    shape = waves(seed) if smooth else noise
    signs = true_signs(shape, leaves)
    wrong = random.random(len(leaves)) < 0.2
    signs[wrong] = random.integers(-1, 2, int(wrong.sum()), np.int8)
    assert_closed_manifold(mesh_of(shape, resolution, leaves, signs))


@pytest.mark.parametrize("resolution", [24, 37, 48, 96])
@pytest.mark.parametrize(("name", "euler"), [("ball", 2), ("torus", 0)])
def test_a_surface_lies_where_the_distance_is_zero(name, euler, resolution):
    mesh = mesh_of(SHAPES[name], resolution)
    spacing = max(SIZE) / resolution
    assert mesh.euler_number == euler
    volume = {"ball": 4 / 3 * np.pi * 13.3**3, "torus": 2 * np.pi**2 * 12 * 5**2}[name]
    assert mesh.volume == pytest.approx(volume, rel=0.03 * spacing**2)
    assert mesh.volume < volume  # its vertices lie on a surface that bulges, mostly
    # a chord h long lies h * h / 8 r below an arc of radius r; the torus' tube has r = 5
    assert np.abs(SHAPES[name](mesh.vertices)).max() < spacing**2 / 8 / 5 * 1.5
    # central differences, each to the first order in h / r
    assert (mesh.vertex_normals * gradient(SHAPES[name], mesh.vertices)).sum(axis=1).min() > 1 - 0.1 * spacing
    assert (mesh.face_normals * gradient(SHAPES[name], mesh.triangles_center)).sum(axis=1).min() > 0


def gradient(shape: Shape, points: Points) -> Points:
    step = 1e-4
    slopes = np.stack(
        [shape(points + step * axis) - shape(points - step * axis) for axis in np.eye(3)], axis=1
    )
    return slopes / np.linalg.norm(slopes, axis=1, keepdims=True)


@pytest.mark.parametrize("resolution", [31, 48, 96])
def test_what_leaves_are_given_makes_no_difference(resolution):
    """A distance with true signs gives the same mesh from one leaf as from many."""
    whole = np.array([[0, 0, 0, 48]], np.int64)
    expected = mesh_of(torus, resolution, whole, np.zeros(1, np.int8))
    found = mesh_of(torus, resolution)
    assert np.array_equal(found.vertices, expected.vertices)
    assert np.array_equal(found.faces, expected.faces)


def test_the_surface_of_a_whole_box_is_the_box():
    leaves = np.array([[0, 0, 0, 48]], np.int64)
    mesh = mesh_of(lambda points: np.full(len(points), -9.0), 30, leaves, np.array([-1], np.int8))
    assert_closed_manifold(mesh)
    assert mesh.volume == pytest.approx(np.prod(SIZE), rel=0.02)
    assert not mesh_of(
        lambda points: np.full(len(points), 9.0), 30, leaves, np.array([1], np.int8)
    ).faces.size


@pytest.mark.parametrize("resolution", [24, 29, 48, 96])
@pytest.mark.parametrize("around", [0, 1])
@pytest.mark.parametrize("within", [0, -1])
def test_a_leaf_that_is_the_opposite_of_all_others_is_a_cube(resolution, around, within):
    """Whether it is the leaves that say so or the function, which jumps between them."""
    leaves = boxes(np.random.default_rng(0), 8, 0)
    chosen = (leaves[:, :3] == 16).all(axis=1)
    signs = np.where(chosen, within, around).astype(np.int8)

    def distance(points: Points) -> NDArray[np.float32]:
        inside = ((points >= 16) & (points < 24)).all(axis=1)
        return np.where(inside, -TRUNCATION, TRUNCATION).astype(np.float32)

    mesh = joined(extract(distance, SIZE, leaves, signs, resolution, TRUNCATION))
    assert_closed_manifold(mesh)
    spacing = 48 / resolution
    assert (8 - 2 * spacing) ** 3 < mesh.volume < (8 + 2 * spacing) ** 3
    assert np.abs(mesh.bounds - [[16], [24]]).max() < spacing


def test_a_jump_between_leaves_is_found_where_it_is():
    """A leaf with a sign hides how far the surface is: a plane just before such leaves stays where it is."""
    plane = 15.7
    leaves = boxes(np.random.default_rng(3), 4, 0)
    signs = np.where(leaves[:, 2] >= 16, 1, np.where(leaves[:, 2] + 4 <= 12, -1, 0)).astype(np.int8)

    def distance(points: Points) -> NDArray[np.float32]:
        z = points[:, 2]
        blind = np.where(z >= 16, TRUNCATION, np.where(z < 12, -TRUNCATION, z - plane))
        return blind.astype(np.float32)

    for resolution in (48, 37):
        spacing = 48 / resolution
        mesh = joined(extract(distance, SIZE, leaves, signs, resolution, TRUNCATION))
        assert_closed_manifold(mesh)
        inner = ((mesh.vertices > 2) & (mesh.vertices < np.asarray(SIZE) - 2)).all(axis=1)
        assert inner.any()
        assert np.abs(mesh.vertices[inner, 2] - plane).max() < spacing / 2**isosurface.BISECTIONS


def test_no_point_of_the_lattice_is_asked_for_twice():
    asked: list[Points] = []

    def distance(points: Points) -> NDArray[np.float32]:
        asked.append(points.copy())
        return saturated(torus)(points)

    leaves = boxes(np.random.default_rng(5), 4, 2)
    list(extract(distance, SIZE, leaves, true_signs(torus, leaves), 96, TRUNCATION))
    points = np.concatenate(asked)
    assert len(np.unique(points, axis=0)) == len(points)
    assert len(points) < 97**3 / 4  # and of most it is never asked


def test_small_windows_give_the_same_mesh(monkeypatch):
    expected = mesh_of(gyroid, 96)
    monkeypatch.setattr(isosurface, "BLOCKS_AT_ONCE", 3)
    monkeypatch.setattr(isosurface, "POINTS_AT_ONCE", 1000)
    found = mesh_of(gyroid, 96)
    for mine, other in zip(canonical(found), canonical(expected), strict=True):
        assert np.array_equal(mine, other)


def test_progress_grows_and_closing_ends_the_work(monkeypatch):
    monkeypatch.setattr(isosurface, "BLOCKS_AT_ONCE", 64)
    leaves = boxes(np.random.default_rng(5), 4, 2)
    told: list[float] = []
    calls = 0

    def distance(points: Points) -> NDArray[np.float32]:
        nonlocal calls
        calls += 1
        return saturated(gyroid)(points)

    def start() -> Iterator[MeshPart]:
        return extract(distance, SIZE, leaves, true_signs(gyroid, leaves), 96, TRUNCATION, told.append)

    assert len(list(start())) > 3
    assert told == sorted(told)
    assert told[0] == 0
    assert told[-1] == 1
    told.clear()
    parts = start()
    next(parts)
    parts.close()
    before = calls
    assert next(parts, None) is None
    assert calls == before
    assert told[-1] < 1


def test_normals_may_be_asked_for():
    up = np.array([0, 0, 1], np.float32)
    mesh = mesh_of(torus, 20, normal=lambda points: np.broadcast_to(up, points.shape))
    assert (mesh.vertex_normals == up).all()


@pytest.mark.parametrize(
    "change",
    [
        {"resolution": 0},
        {"resolution": isosurface.MAX_RESOLUTION + 1},
        {"truncation": 0.0},
        {"truncation": float("nan")},
        {"size": (0, 1, 1)},
        {"safety": 0.5},
        {"leaves": np.array([[0, 0, 0, 32]], np.int64)},
        {"leaves": np.array([[1, 0, 0, 48]], np.int64)},
        {"leaves": np.empty((0, 4), np.int64), "signs": np.empty(0, np.int8)},
        {"signs": np.array([2], np.int8)},
        {"signs": np.array([0, 0], np.int8)},
    ],
)
def test_what_has_no_meaning_is_refused(change):
    arguments = {
        "distance": saturated(torus),
        "size": SIZE,
        "leaves": np.array([[0, 0, 0, 48]], np.int64),
        "signs": np.zeros(1, np.int8),
        "resolution": 20,
        "truncation": TRUNCATION,
    }
    with pytest.raises(BadRequest):
        extract(**{**arguments, **change})


# --- the native functions ---


def random_blocks(seed: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
    """Values with unknown regions, on blocks in a row of slabs 2 by 2 wide."""
    random = np.random.default_rng(seed)
    places = np.array(list(product(range((count + 3) // 4), range(2), range(2))), np.int32)
    places = places.reshape(-1, 3)[:count]
    rows = {tuple(place): row for row, place in enumerate(places.tolist())}
    neighbours = np.array(
        [
            [
                rows.get(tuple(a + b for a, b in zip(place, offset, strict=True)), -1)
                for offset in product((-1, 0, 1), repeat=3)
            ]
            for place in places.tolist()
        ],
        np.int32,
    ).reshape(-1, 27)
    values = random.normal(0, 1, (count, 8, 8, 8)).astype(np.float32)
    values[random.random(values.shape) < 0.1] = 0
    values[random.random(values.shape) < 0.02] = np.nan
    return values, neighbours, np.ascontiguousarray(places[:, ::-1] * 8)


@pytest.fixture
def native() -> ModuleType:
    return pytest.importorskip(
        "acorn_svc.field.ops.marching_native", reason="the native module was not built"
    )


@LAWS
@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.floats(0.01, 100), st.data())
def test_native_equals_reference(seed, count, spacing, data):
    native = pytest.importorskip("acorn_svc.field.ops.marching_native")
    values, neighbours, corners = random_blocks(seed, count)
    carried, whole = data.draw(st.integers(0, count)), data.draw(st.integers(0, count))
    expected = marching_reference.cross_edges(values, neighbours, corners, spacing, carried, whole)
    found = native.cross_edges(values, neighbours, corners, spacing, carried, whole)
    for name in marching.Crossings._fields:
        np.testing.assert_array_equal(
            getattr(found, name), getattr(expected, name), err_msg=name, strict=True
        )
    numbers = np.random.default_rng(seed).integers(0, 1 << 30, (*values.shape, 3), np.int32)
    np.testing.assert_array_equal(
        native.triangles(values, neighbours, numbers, whole),
        marching_reference.triangles(values, neighbours, numbers, whole),
        strict=True,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_surfaces_of_native_and_reference_are_equal(name, native, monkeypatch):
    meshes = []
    for module in (native, marching_reference):
        monkeypatch.setattr(marching, "choose", lambda module=module: module)
        meshes.append(mesh_of(SHAPES[name], 60))
    assert np.array_equal(meshes[0].vertices, meshes[1].vertices)
    assert np.array_equal(meshes[0].vertex_normals, meshes[1].vertex_normals)
    assert np.array_equal(meshes[0].faces, meshes[1].faces)


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("damage", ["dtype", "strides", "shape"])
def test_arrays_that_do_not_fit_are_refused(position, damage, native):
    arrays = list(random_blocks(0, 2))
    bad = {
        "dtype": lambda array: array.astype(np.float64),
        "strides": lambda array: np.asfortranarray(np.concatenate([array, array], axis=-1))[..., ::2],
        "shape": lambda array: array[..., :-1].copy(),
    }[damage]
    arrays[position] = bad(arrays[position])
    for module in (native, marching_reference):
        with pytest.raises((TypeError, ValueError)):
            module.cross_edges(*arrays, 1.0, 0, 2)


def test_counts_and_neighbours_out_of_range_are_refused(native):
    values, neighbours, corners = random_blocks(0, 2)
    for module in (native, marching_reference):
        for carried, whole in ((-1, 2), (3, 2), (0, 3), (0, -1)):
            with pytest.raises(ValueError, match="carried"):
                module.cross_edges(values, neighbours, corners, 1.0, carried, whole)
        with pytest.raises(ValueError, match="neighbours"):
            module.cross_edges(values, neighbours + 1, corners, 1.0, 0, 2)
