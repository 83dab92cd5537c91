"""Laws of the field of a shape: one surface, however it is asked for."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from random_fields import random_field, random_shape, read_by_definition, small_architecture

from acorn_svc.errors import BadModel, BadRequest
from acorn_svc.field.base import empty_tree, initial_parameters
from acorn_svc.field.kinds import as_image, as_shape, field_from_state
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.ops.learning import FEATURES, scale_layers
from acorn_svc.field.shape import ShapeField
from acorn_svc.field.state import FieldState, FitRecord, ShapeSignal
from acorn_svc.field.tree import ABSENT

SIZE = (37, 20, 29)
SHAPES = {
    f"{encoder}-{channels}": random_shape(SIZE, channels, encoder)
    for encoder in ("grid", "coordinate")
    for channels in (1, 4)
}
GRID = SHAPES["grid-4"]
PLANE_NORMAL = np.array([2.0, -1.0, 2.0]) / 3
PLANE_OFFSET = -11.0

each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
each_scale = pytest.mark.parametrize("scale", range(GRID.depth + 1))


def random_points(count: int, seed: int = 0, margin: float = 0.0) -> NDArray[np.float64]:
    """In voxels, in the box and ``margin`` around it."""
    return np.random.default_rng(seed).uniform(-margin, np.array(SIZE) + margin, (count, 3))


def signs_under(shape: ShapeField, positions: NDArray[np.float64], scale: int) -> NDArray[np.int8]:
    """Sign of the deepest block that a scale reads over each point, one level at a time."""
    assert shape.signs is not None
    tree = shape.lattice.tree
    result = np.zeros(len(positions), np.int8)
    for level in range(tree.depth - scale + 1):
        side = shape.architecture.cells << (tree.depth - level)
        rows = tree.find(level, np.floor(positions / side).astype(np.int64))
        result = np.where(rows == ABSENT, result, shape.signs[rows])
    return result


def plane() -> ShapeField:
    """One block, whose decoders give the distance of a plane, in units of what they saturate at."""
    signal = ShapeSignal(SIZE, 1, truncation=8.0, origin=(5.0, -3.0, 0.5), voxel=0.25)
    architecture = small_architecture()
    lattice = Lattice.build(empty_tree(signal, architecture.cells), architecture.cells)
    parameters = initial_parameters(architecture, signal, lattice, torch.Generator().manual_seed(0))
    z, y, x = np.indices((architecture.cells + 1,) * 3).reshape(3, -1) * 2.0**lattice.tree.depth
    rows = lattice.table[0]
    assert (rows > 0).all()
    features = torch.zeros_like(parameters[FEATURES])
    distances = np.stack([x, y, z], axis=1) @ PLANE_NORMAL + PLANE_OFFSET
    features[torch.from_numpy(rows).long(), 0] = torch.from_numpy(distances).float()
    lift = 1e3  # keeps the hidden unit active
    first, last = (
        torch.zeros_like(parameters["decoder.0.weight"]),
        torch.zeros_like(parameters["decoder.1.weight"]),
    )
    first[:, :: architecture.features, 0] = 1
    for scale in range(lattice.tree.depth + 1):
        last[scale, 0, 0] = 1 / (signal.truncation * 2**scale)
    parameters |= {FEATURES: features, "decoder.0.weight": first, "decoder.1.weight": last}
    parameters["decoder.0.bias"] = torch.full_like(parameters["decoder.0.bias"], lift)
    parameters["decoder.1.bias"] = -lift * last[:, 0]
    return ShapeField(signal, architecture, lattice, parameters, signs=np.zeros(1, np.int8))


# --- values ---


@each_shape
@each_scale
def test_values_are_those_of_the_definition(shape: ShapeField, scale: int) -> None:
    if shape.encoder != "grid":
        return  # whose features are computed
    positions = random_points(60, scale)
    signs = signs_under(shape, positions, scale)
    features = shape.parameters[FEATURES].double().numpy()
    hidden = np.stack([read_by_definition(shape.lattice, features, place, scale) for place in positions])
    layers = scale_layers(shape.parameters, scale)
    for number, (weight, bias) in enumerate(layers):
        hidden = hidden @ weight.double().numpy() + bias.double().numpy()
        hidden = np.maximum(hidden, 0) if number < len(layers) - 1 else hidden
    hidden[:, 0] = np.where(signs == 0, hidden[:, 0], signs)
    np.testing.assert_allclose(shape.values(positions, scale), hidden, atol=1e-4)


@each_shape
@each_scale
def test_values_have_no_seams_between_blocks_that_hold_surface(shape: ShapeField, scale: int) -> None:
    generator = np.random.default_rng(scale)
    positions = random_points(4000, scale)
    cells = shape.architecture.cells
    on_border = generator.random(positions.shape) < 0.5
    on_border[np.arange(len(positions)), generator.integers(0, 3, len(positions))] = True
    inner = np.clip(np.round(positions / cells), 1, np.array(SIZE) // cells - 1) * cells
    positions = np.where(on_border, inner, positions)
    way = np.where(on_border, 1e-5 * generator.choice([-1, 1], positions.shape), 0.0)
    sides = [positions - way, positions + way]
    kept = np.all([signs_under(shape, side, scale) == 0 for side in sides], axis=0)
    leaves = [
        shape.lattice.tree.leaf_map[tuple(np.floor(side[kept] / cells).astype(int).T[::-1])] for side in sides
    ]
    assert scale > 2 or (leaves[0] != leaves[1]).mean() > 0.2
    assert kept.sum() > 100
    one, other = (shape.values(side[kept], scale) for side in sides)
    np.testing.assert_allclose(one, other, atol=1e-3)
    assert scale == shape.depth or one[:, 0].std() > 0.01


@each_shape
@each_scale
def test_signs_are_obeyed(shape: ShapeField, scale: int) -> None:
    positions = random_points(3000, scale)
    signs = signs_under(shape, positions, scale)
    values, distance = shape.values(positions, scale), shape.distance(positions, scale)
    assert scale > 0 or {*signs.tolist()} == {-1, 0, 1}
    known = signs != 0
    assert np.array_equal(values[known, 0], signs[known])
    assert np.array_equal(distance[known], signs[known] * np.float32(shape.truncation(scale)))
    expected = np.clip(values[:, 0], -1, 1) * shape.truncation(scale)
    np.testing.assert_allclose(distance, expected, rtol=1e-6, atol=1e-6)
    assert shape.truncation(scale) == shape.signal.truncation * 2**scale


@each_shape
def test_outside_the_box_its_border_is_repeated(shape: ShapeField) -> None:
    positions = random_points(2000, margin=15)
    inside = np.clip(positions, 0, SIZE)
    assert (positions != inside).any(axis=1).mean() > 0.5
    for scale in (0, 2):
        np.testing.assert_array_equal(shape.values(positions, scale), shape.values(inside, scale))
        np.testing.assert_array_equal(shape.distance(positions, scale), shape.distance(inside, scale))


def test_colours_are_rounded_and_clipped() -> None:
    positions = random_points(1000)
    colours = GRID.colours(positions)
    assert colours is not None
    assert colours.dtype == np.uint8
    values = np.clip(GRID.values(positions)[:, 1:], 0, 1) * 255
    assert np.abs(colours - values).max() <= 0.5 + 1e-3
    assert len(np.unique(colours)) > 20
    assert SHAPES["grid-1"].colours(positions) is None


def test_no_points_give_no_values() -> None:
    nothing = np.empty((0, 3))
    assert GRID.values(nothing).shape == (0, 4)
    assert GRID.distance(nothing).shape == (0,)
    assert GRID.query(nothing).shape == (0, 4)
    assert GRID.normals(nothing).shape == (0, 3)


# --- in the units of the mesh ---


def test_units_go_there_and_back() -> None:
    positions = random_points(50, margin=5)
    np.testing.assert_allclose(GRID.to_voxels(GRID.to_mesh_units(positions)), positions, atol=1e-9)
    np.testing.assert_allclose(GRID.to_mesh_units(np.zeros((1, 3))), [GRID.signal.origin])
    np.testing.assert_allclose(np.diff(GRID.to_mesh_units(np.array([[0, 0, 0], [8, 8, 8]])), axis=0), 1.0)


@each_shape
def test_a_query_gives_distances_in_the_units_of_the_mesh(shape: ShapeField) -> None:
    positions = random_points(500, margin=3)
    points = shape.to_mesh_units(positions)
    for scale in range(shape.depth + 1):
        answer = shape.query(points, shape.signal.voxel * 2**scale)
        assert answer.shape == (500, shape.signal.channels)
        assert answer.dtype == np.float32
        expected = shape.distance(positions, scale) * shape.signal.voxel
        np.testing.assert_allclose(answer[:, 0], expected, atol=1e-5)
        colours = np.clip(shape.values(positions, scale)[:, 1:], 0, 1)
        np.testing.assert_allclose(answer[:, 1:], colours, atol=1e-5)


@each_shape
def test_a_query_blends_the_scales_around_its_voxel(shape: ShapeField) -> None:
    points = shape.to_mesh_units(random_points(300))
    scales = [shape.query(points, shape.signal.voxel * 2**scale) for scale in range(shape.depth + 1)]
    for scale, share in ((0, 0.25), (0, 0.75), (1, 0.5), (shape.depth - 1, 0.9)):
        blended = shape.query(points, shape.signal.voxel * 2 ** (scale + share))
        expected = (1 - share) * scales[scale] + share * scales[scale + 1]
        np.testing.assert_allclose(blended, expected, atol=1e-5)
        assert not np.allclose(scales[scale], scales[scale + 1], atol=1e-3)
    for voxel_size, scale in ((0.0, 0), (shape.signal.voxel / 3, 0), (1e6, shape.depth)):
        np.testing.assert_allclose(shape.query(points, voxel_size), scales[scale], atol=1e-6)


@pytest.mark.parametrize(
    "points", [[[1, 2]], [1, 2, 3], [], [[[1, 2, 3]]], [[1, 2, np.nan]], [[1, np.inf, 2]]], ids=str
)
def test_points_that_are_none_are_refused(points: Any) -> None:
    with pytest.raises(BadRequest, match="points"):
        GRID.query(points)


@pytest.mark.parametrize("voxel_size", [-1.0, -1e-9, np.nan, np.inf])
def test_voxels_that_are_none_are_refused(voxel_size: float) -> None:
    with pytest.raises(BadRequest, match="voxel_size"):
        GRID.query(np.zeros((1, 3)), voxel_size)


# --- a surface that is known ---


@each_scale
def test_the_distance_of_a_plane(scale: int) -> None:
    field, positions = plane(), random_points(400)
    exact = positions @ PLANE_NORMAL + PLANE_OFFSET
    most = field.truncation(scale)
    assert (np.abs(exact) < most).any()
    np.testing.assert_allclose(field.distance(positions, scale), np.clip(exact, -most, most), atol=2e-3)


@each_scale
def test_normals_point_along_the_gradient(scale: int) -> None:
    field = plane()
    positions = random_points(400)
    exact = positions @ PLANE_NORMAL + PLANE_OFFSET
    reach = 2.0**scale
    inner = (positions > reach).all(axis=1) & (positions < np.array(SIZE) - reach).all(axis=1)
    slope = inner & (np.abs(exact) < field.truncation(scale) - reach)
    normals = field.normals(positions, scale)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(normals[slope], np.broadcast_to(PLANE_NORMAL, (slope.sum(), 3)), atol=5e-3)
    assert scale > 2 or slope.sum() > 20
    flat = np.abs(exact) > field.truncation(scale) + reach
    assert np.array_equal(normals[flat], np.broadcast_to([0, 0, 1], (flat.sum(), 3)))
    assert scale > 0 or flat.sum() > 20


def test_normals_of_any_surface_are_unit_vectors_uphill() -> None:
    positions = random_points(3000)
    normals = GRID.normals(positions)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, rtol=1e-5)
    step = 0.05 * normals
    rise = GRID.distance(positions + step) - GRID.distance(positions - step)
    moving = np.abs(rise) > 1e-4
    assert moving.sum() > 200
    assert (rise[moving] > 0).mean() > 0.9  # half a voxel away there may be a ridge


# --- plain data ---


@each_shape
def test_a_shape_survives_the_way_through_its_state(shape: ShapeField) -> None:
    shape = replace(shape, record=FitRecord("draft", 7, 3, iou=0.5))
    again = field_from_state(shape.to_state())
    assert isinstance(again, ShapeField)
    positions = random_points(500, margin=2)
    for scale in range(shape.depth + 1):
        assert np.array_equal(again.values(positions, scale), shape.values(positions, scale))
    assert again.info() == shape.info()
    assert again.signal == shape.signal
    assert np.array_equal(again.leaf_signs(), shape.leaf_signs())


def test_a_summary_counts_what_there_is() -> None:
    info = GRID.info()
    assert (info.kind, info.size, info.channels) == ("shape", SIZE, 4)
    assert info.blocks == len(GRID.blocks()) == len(GRID.leaf_signs())
    assert info.surface_blocks == (GRID.leaf_signs() == 0).sum()
    assert 0 < info.surface_blocks < info.blocks


def tampered(change: str, value: Any) -> FieldState:
    """A state with one thing changed: an entry of the header, by its path, or an array."""
    state = random_shape(splits=5).to_state()
    assert state.signs is not None
    if change == "signs":
        return replace(state, signs=value(state))
    header: dict[str, Any] = copy.deepcopy(state.header)
    *path, key = change.split(".")
    part: Any = header
    for name in path:
        part = part[name]
    if value is DROPPED:
        del part[key]
    else:
        assert key == "surprise" or part[key] != value or type(part[key]) is not type(value)
        part[key] = value
    return replace(state, header=header)


DROPPED = object()


def altered_signs(state: FieldState, leaf: bool, sign: int) -> NDArray[np.int8]:
    assert state.signs is not None
    signs = state.signs.copy()
    is_leaf = random_shape(splits=5).lattice.tree.is_leaf
    signs[np.flatnonzero(is_leaf == leaf)[0]] = sign
    return signs


CHANGES: list[tuple[str, Any]] = [
    *((key, DROPPED) for key in ("size", "channels", "truncation", "origin", "voxel", "kind")),
    *((key, DROPPED) for key in ("architecture", "tree", "fit", "tree.depth", "tree.extent")),
    *(("size", size) for size in ([37, 20], [37, 20, 29, 1], [37, 20, 0], [37, -20, 29], [90, 20, 29])),
    *(("size", size) for size in ([37.5, 20, 29], ["x", 20, 29], 37, None, [37, 20, 2**40])),
    *(("channels", channels) for channels in (0, 2, 3, 5, -1, 1, 4.0, "x", None)),
    *(("truncation", number) for number in (0, -1.0, 65.0, float("nan"), float("inf"), "x", None)),
    *(("voxel", number) for number in (0, -1.0, float("nan"), float("inf"), "x", None)),
    *(("origin", origin) for origin in ([0, 0], [0, 0, 0, 0], [0, 0, float("nan")], ["x", 0, 0], 1, None)),
    *(("kind", kind) for kind in ("image", "video", None, 3)),
    ("architecture.encoder", "other"),
    *(("architecture.cells", cells) for cells in (0, 3, 8, 128, "x")),
    *(("architecture.features", features) for features in (2, 3, -1)),
    *(("architecture.decoder_width", width) for width in (3, "x")),
    *(("architecture.decoder_layers", layers) for layers in (0, 2, "x")),
    *(("architecture.surprise", 1), ("fit.surprise", 1)),
    *(("tree.depth", depth) for depth in (-1, 3, 9, "x")),
    *(("tree.dimension", dimension) for dimension in (2, 4)),
    *(("tree.extent", extent) for extent in ([10, 5], [10, 5, 9], [11, 5, 8], 3)),
    ("signs", lambda state: None),
    ("signs", lambda state: state.signs[:-1]),
    ("signs", lambda state: np.append(state.signs, np.int8(0))),
    ("signs", lambda state: state.signs.astype(np.float32)),
    *(
        ("signs", lambda state, leaf=leaf, sign=sign: altered_signs(state, leaf, sign))
        for leaf, sign in ((False, 1), (False, -1), (True, 2), (True, -2), (True, 127), (True, -128))
    ),
]


def name_of(part: object) -> str:
    """The same in every process, so that tests can be shared out."""
    if part is DROPPED:
        return "dropped"
    return "made" if callable(part) else str(part)[:30]


@pytest.mark.parametrize(("change", "value"), CHANGES, ids=name_of)
def test_a_tampered_state_is_no_model(change: str, value: Any) -> None:
    state = tampered(change, value)
    with pytest.raises(BadModel):
        ShapeField.from_state(state)


def test_the_untampered_state_is_a_model() -> None:
    state = random_shape(splits=5).to_state()
    assert ShapeField.from_state(state).info() == random_shape(splits=5).info()


def test_each_kind_is_rebuilt_as_what_it_is() -> None:
    picture = random_field((19, 30), splits=5)
    assert as_image(field_from_state(picture.to_state())).info() == picture.info()
    assert as_shape(field_from_state(GRID.to_state())).info() == GRID.info()
    for kind in ("video", None, 3):
        state = GRID.to_state()
        with pytest.raises(BadModel, match="kind"):
            field_from_state(replace(state, header={**state.header, "kind": kind}))
    with pytest.raises(BadRequest, match="picture"):
        as_shape(picture)
    with pytest.raises(BadRequest, match="shape"):
        as_image(GRID)
