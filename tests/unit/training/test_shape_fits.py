"""The fit of a shape: what its target, its task and its samples promise, and small fits of a sphere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from numpy.typing import NDArray

from acorn_svc.errors import BadMesh, BadRequest
from acorn_svc.field.mesh import Mesh, Texture
from acorn_svc.field.ops.learning import RUN
from acorn_svc.field.shape import ShapeField
from acorn_svc.field.tree import ABSENT, morton_encode
from acorn_svc.formats.checkpoint import read_state, write_state
from acorn_svc.training import loop
from acorn_svc.training.loop import Progress, fit
from acorn_svc.training.presets import FitConfig, configure
from acorn_svc.training.shapes import LEAST_SAMPLES, NEAR_ERROR, START_SHARE, ShapeTask
from acorn_svc.training.state import FitState
from acorn_svc.training.targets import MARGIN, ShapeTarget

RADIUS, CENTRE = 2.5, np.array([10.0, -4.0, 0.5])
RESOLUTION = 48
STEPS = 8


def sphere(subdivisions: int = 4, coloured: bool = False) -> Mesh:
    """With colours that grow linearly from side to side."""
    ball = trimesh.creation.icosphere(subdivisions=subdivisions, radius=RADIUS)
    directions = np.asarray(ball.vertices) / RADIUS
    colours = np.rint((directions + 1) * 127.5).astype(np.uint8) if coloured else None
    return Mesh(directions * RADIUS + CENTRE, np.asarray(ball.faces, np.int32), colours=colours)


BALL = ShapeTarget(sphere())
COLOURED = ShapeTarget(sphere(coloured=True))


def small_config(target: ShapeTarget = BALL, **options: Any) -> FitConfig:
    config = configure(target, "draft", **{"steps": STEPS, "blocks": 1200, "threads": 1, **options})
    changes = {"reallocations": 2, "reallocation_interval": 1, "alpha": 0.01}  # merges seem cheap
    return replace(
        config, resolution=RESOLUTION, samples_per_block=32, patches=64, coarse_patches=16, **changes
    )


TASK = ShapeTask(BALL, small_config())
TREE = TASK.initial_tree()


def in_voxels(task: ShapeTask = TASK) -> tuple[NDArray[np.float64], float, float]:
    """Centre of the ball, and the radii between which its surface lies."""
    outer = RADIUS / task.signal.voxel
    triangles = np.asarray(sphere().vertices[sphere().faces]) - CENTRE
    inner = np.linalg.norm(triangles.mean(axis=1), axis=1).min() / task.signal.voxel
    assert 0.99 * outer < inner < outer
    return (CENTRE - np.array(task.signal.origin)) / task.signal.voxel, inner, outer


def on_surface(count: int) -> NDArray[np.float64]:
    """Points of the surface, in voxels."""
    mesh = sphere()
    generator = np.random.default_rng(3)
    weights = generator.dirichlet(np.ones(3), count)
    corners = mesh.vertices[mesh.faces[generator.integers(0, len(mesh.faces), count)]]
    points = (corners * weights[:, :, None]).sum(axis=1)
    return (points - np.array(TASK.signal.origin)) / TASK.signal.voxel


# --- the target ---


NO_FACES = np.empty((0, 3), np.int32)
ONE_FACE = np.array([[0, 1, 2]], np.int32)


@pytest.mark.parametrize(
    ("vertices", "faces"),
    [
        (np.eye(3), NO_FACES),
        (np.empty((0, 3)), NO_FACES),
        (np.ones((3, 3)), ONE_FACE),
        (np.diag([1, np.nan, 1]), ONE_FACE),
        (np.diag([1, np.inf, 1]), ONE_FACE),
        (np.concatenate([np.ones((3, 3)), np.eye(3)]), ONE_FACE),
        (1.7e308 * (2 * np.eye(3) - 1), ONE_FACE),
        (np.eye(3), ONE_FACE + 1),
        (np.eye(3), ONE_FACE - 1),
    ],
    ids=["no faces", "nothing", "a point", "nan", "inf", "a point of some", "endless", "high", "low"],
)
def test_bad_meshes_are_refused(vertices: NDArray[np.float64], faces: NDArray[np.int32]) -> None:
    with pytest.raises(BadMesh):
        ShapeTarget(Mesh(vertices, faces))


def test_vertices_without_faces_are_no_matter() -> None:
    mesh = sphere()
    for stray in (1e9, np.nan):
        vertices = np.concatenate([mesh.vertices, np.full((1, 3), stray)])
        assert ShapeTarget(Mesh(vertices, mesh.faces)).signal(64) == BALL.signal(64)


@pytest.mark.parametrize("resolution", [16, 48, 128])
@pytest.mark.parametrize("stretch", [(1, 1, 1), (0.3, 1, 0.01), (1, 0, 0.5), (0.2, 0.1, 5)], ids=str)
def test_the_box_has_a_margin_around_the_surface(resolution: int, stretch: tuple[float, ...]) -> None:
    mesh = sphere()
    target = ShapeTarget(Mesh(mesh.vertices * np.array(stretch), mesh.faces))
    signal = target.signal(resolution)
    assert max(signal.size) == resolution
    assert min(signal.size) >= 2 * MARGIN
    low, high = ((end - np.array(signal.origin)) / signal.voxel for end in (target.low, target.high))
    np.testing.assert_allclose(low, np.array(signal.size) - high, atol=1e-6)
    assert (low >= MARGIN - 1e-6).all()
    assert (low < MARGIN + 1).all()
    assert signal.channels == 1


def test_colours_of_vertices_are_interpolated() -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 51], [9, 9, 9]], np.uint8)
    vertices, faces = np.eye(4)[:, :3], np.array([[3, 1, 0], [0, 1, 2]], np.int32)
    target = ShapeTarget(Mesh(vertices, faces, colours=colours))
    assert target.has_colour
    assert target.signal(64).channels == 4
    weights = np.array([[1, 0, 0], [0.25, 0.75, 0], [0.2, 0.3, 0.5]], np.float32)
    found = target.colours(np.array([0, 1, 1]), weights)
    assert found.dtype == np.float32
    expected = np.array([[9 / 255] * 3, [0.25, 0.75, 0], [0.2, 0.3, 0.1]])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_textures_are_looked_up_bilinearly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)
    places = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    target = ShapeTarget(Mesh(np.eye(3), ONE_FACE, texture=Texture(places, pixels)))
    assert target.has_colour

    def at(x: float, y: float) -> NDArray[np.float64]:
        """Of the place in pixels, from the upper left."""
        u, v = x / 5, 1 - y / 3
        weights = np.array([[1 - u - v, u, v]], np.float64)
        return target.colours(np.array([0]), weights)[0] * 255.0

    for row in range(3):
        for column in range(5):
            np.testing.assert_allclose(at(column + 0.5, row + 0.5), pixels[row, column], atol=1e-3)
    values = pixels.astype(np.float64)
    mixed = 0.75 * (0.5 * values[1, 2] + 0.5 * values[2, 2]) + 0.25 * (
        0.5 * values[1, 3] + 0.5 * values[2, 3]
    )
    np.testing.assert_allclose(at(2.75, 2.0), mixed, atol=1e-3)
    np.testing.assert_allclose(at(0, 0.5), (values[0, 0] + values[0, 4]) / 2, atol=1e-3)  # repeats
    np.testing.assert_allclose(at(0.5, 0), (values[0, 0] + values[2, 0]) / 2, atol=1e-3)
    np.testing.assert_allclose(at(-4.5, 3.5), values[0, 0], atol=1e-3)


# --- the tree ---


def test_the_first_tree_holds_the_surface_within_its_budget() -> None:
    finest = int(TREE.levels.max())
    assert 2 < finest <= TREE.depth
    assert len(TREE.leaf_rows) <= START_SHARE * TASK._config.blocks
    blocks = np.floor(on_surface(5000) / 4).astype(int)
    leaves = TREE.leaf_map[tuple(blocks.T[::-1])]
    assert (TREE.levels[leaves] == finest).all()
    larger = ShapeTask(BALL, small_config(blocks=20_000)).initial_tree()
    assert int(larger.levels.max()) > finest or finest == TREE.depth


@pytest.mark.parametrize("blocks", [1, 9, 40, 100_000])
def test_any_budget_has_a_tree(blocks: int) -> None:
    task = ShapeTask(BALL, small_config(blocks=blocks))
    tree = task.initial_tree()
    assert len(tree.leaf_rows) <= max(1, START_SHARE * blocks)
    task.sampling(tree)
    assert len(task.signs(tree)) == len(tree)


def test_all_vertices_near_the_surface_exist_on_each_level() -> None:
    points = np.floor(on_surface(3000))
    way = np.random.default_rng(1).uniform(-1, 1, points.shape)
    for level in range(1, int(TREE.levels.max()) + 1):
        cell = 1 << (TREE.depth - level)
        blocks = np.floor((points + cell * way) / (cell * 4)).astype(np.int64)
        blocks = blocks[TREE.inside(level, blocks)]
        assert (TREE.find(level, blocks) != ABSENT).all()


def test_signs_are_right() -> None:
    centre, inner, outer = in_voxels()
    signs = TASK.signs(TREE)
    assert signs.dtype == np.int8
    assert not signs[~TREE.is_leaf].any()
    leaves = TREE.leaf_rows
    side = 4.0 * (1 << (TREE.depth - TREE.levels[leaves].astype(int)))[:, None]
    low = TREE.coordinates[leaves] * side - centre
    nearest = np.linalg.norm(np.clip(0, low, low + side), axis=1)
    farthest = np.linalg.norm(np.maximum(np.abs(low), np.abs(low + side)), axis=1)
    found = signs[leaves]
    assert {*found.tolist()} == {-1, 0, 1}
    assert (nearest[found == 1] >= inner).all()
    assert (farthest[found == -1] <= outer).all()
    voxel = np.sqrt(3)  # surface is found by the voxel
    assert (nearest[found == 0] <= outer + voxel).all()
    assert (farthest[found == 0] >= inner - voxel).all()
    assert (found[(nearest < inner - voxel) & (farthest > outer + voxel)] == 0).all()


# --- samples ---


@pytest.mark.parametrize("scale", range(TREE.depth + 1))
def test_samples_are_sorted_and_true(scale: int) -> None:
    centre, inner, outer = in_voxels()
    positions, truth = TASK.sampling(TREE).samples[scale]
    assert positions.dtype == truth.dtype == torch.float32
    assert len(positions) % RUN == 0
    assert len(positions) >= LEAST_SAMPLES
    assert truth.shape == (len(positions), 1)
    places = positions.double().numpy()
    assert (places >= 0).all()
    assert (places < TASK.signal.size).all()
    codes = morton_encode(np.floor(places / 2.0**scale).astype(np.int64))
    assert (codes[1:] >= codes[:-1]).all()
    most = TASK.signal.truncation * 2.0**scale
    from_centre = np.linalg.norm(places - centre, axis=1)
    low, high = np.clip((from_centre - outer) / most, -1, 1), np.clip((from_centre - inner) / most, -1, 1)
    values = truth[:, 0].double().numpy()
    assert (low - 1e-5 <= values).all()
    assert (values <= high + 1e-5).all()
    assert (np.abs(values) < 1).mean() > 0.5
    assert 0.2 < (values < 0).mean() < 0.8


def test_samples_have_the_colour_of_the_surface() -> None:
    task = ShapeTask(COLOURED, small_config(COLOURED))
    centre, _, _ = in_voxels(task)
    positions, truth = task.sampling(task.initial_tree()).samples[0]
    assert truth.shape == (len(positions), 4)
    away = positions.double().numpy() - centre
    directions = away / np.linalg.norm(away, axis=1, keepdims=True)
    np.testing.assert_allclose(truth[:, 1:], (directions + 1) / 2, atol=0.02)
    plain = ShapeTask(BALL, small_config())._truth(positions.double().numpy(), 0)
    np.testing.assert_allclose(truth[:, 0], plain[:, 0], atol=1e-5)


def test_samples_are_those_of_their_seed() -> None:
    one, same, other = (ShapeTask(BALL, small_config(seed=seed)).sampling(TREE) for seed in (1, 1, 2))
    for scale in range(TREE.depth + 1):
        assert torch.equal(one.samples[scale].positions, same.samples[scale].positions)
        assert torch.equal(one.samples[scale].truth, same.samples[scale].truth)
        assert not torch.equal(one.samples[scale].positions, other.samples[scale].positions)
    assert (one.seed, one.loss, one.runs, one.coarse_runs) == (1, "distance", 64, 16)


def test_leaves_without_surface_have_no_errors_unless_surface_reads_them() -> None:
    seen = np.random.default_rng(0).uniform(1, 2, (2, len(TREE.leaf_rows)))
    errors = TASK.leaf_errors(TREE, seen)
    holds = TASK.signs(TREE)[TREE.leaf_rows] == 0
    assert 0 < holds.sum() < len(holds)
    assert np.array_equal(errors[holds], seen[0][holds])
    others, little = errors[~holds], NEAR_ERROR * seen[0][holds].mean()
    assert np.isin(others, [0, little]).all()
    assert np.array_equal(others > 0, near_leaves()[~holds])


def near_leaves() -> NDArray[np.bool_]:
    """Leaves whose parent has surface within a cell of theirs: by the distance to a dense cloud of it."""
    rows = TREE.leaf_rows
    side = small_config().architecture.cells << (TREE.depth - TREE.levels[rows].astype(np.int64))
    low = (TREE.coordinates[rows] >> 1) * 2 * side[:, None]
    cell = side / small_config().architecture.cells
    voxels = TASK._voxels
    return np.array(
        [
            bool(((voxels + 1 > start - margin) & (voxels < start + 2 * length + margin)).all(axis=1).any())
            for start, length, margin in zip(low, side, cell, strict=True)
        ]
    )


# --- whole fits ---


@pytest.fixture
def every_step_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 0.0)


def last(progresses: Iterator[Progress]) -> Progress:
    *_, final = progresses
    return final


def overlap(field: ShapeField) -> float:
    """Intersection over union with the ball itself, on points of its own."""
    centre, inner, outer = in_voxels()
    points = centre + np.random.default_rng(9).uniform(-outer, outer, (40_000, 3))
    ours = field.distance(points) < 0
    truth = np.linalg.norm(points - centre, axis=1) < (inner + outer) / 2
    return float((ours & truth).sum() / (ours | truth).sum())


@pytest.mark.parametrize(
    ("encoder", "loss", "iou"),
    [
        ("grid", "distance", 0.97),
        ("grid", "occupancy", 0.95),
        ("coordinate", "distance", 0.9),
        ("coordinate", "occupancy", 0.9),
    ],
)
def test_a_fit_learns_the_sphere(encoder: str, loss: str, iou: float) -> None:
    steps = 40 if encoder == "coordinate" else 120 if loss == "distance" else 300
    config = small_config(encoder=encoder, loss=loss, steps=steps)
    if encoder == "coordinate":
        config = replace(config, architecture=replace(config.architecture, encoder_width=64))
    final = last(fit(BALL, config))
    assert final.stage == "done"
    assert final.psnr is None
    assert final.iou is not None
    assert final.iou >= iou
    field = final.field()
    assert isinstance(field, ShapeField)
    assert overlap(field) == pytest.approx(final.iou, abs=0.01)
    again = ShapeField.from_state(field.to_state())
    points = np.random.default_rng(0).uniform(0, RESOLUTION, (1000, 3))
    assert np.array_equal(again.values(points), field.values(points))
    with pytest.raises(BadRequest):
        final.preview(20)


def test_a_fit_learns_colours() -> None:
    final = last(fit(COLOURED, small_config(COLOURED, steps=400)))
    field = final.field()
    assert isinstance(field, ShapeField)
    points = on_surface(2000)
    centre, _, outer = in_voxels()
    colours = field.values(points)[:, 1:]
    assert np.abs(colours - ((points - centre) / outer + 1) / 2).mean() < 0.05
    assert final.iou is not None
    assert final.iou >= 0.97


def assert_same(one: FitState, other: FitState) -> None:
    """Bit for bit, but for the time that passed."""
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert array.dtype == other.arrays[name].dtype, name
        assert array.tobytes() == other.arrays[name].tobytes(), name
    assert {**one.meta, "seconds": 0} == {**other.meta, "seconds": 0}


@pytest.mark.usefixtures("every_step_reports")
@pytest.mark.parametrize(("encoder", "loss"), [("grid", "distance"), ("coordinate", "occupancy")])
def test_a_fit_stopped_at_any_step_ends_as_if_it_had_not_been(encoder: str, loss: str, tmp_path: Any) -> None:
    config = small_config(encoder=encoder, loss=loss)
    if encoder == "coordinate":
        config = replace(config, architecture=replace(config.architecture, encoder_width=16))
    states, trees, progress = [], set(), None
    for progress in fit(BALL, config):
        states.append(progress.state())
        trees.add(states[-1].arrays["tree.indices"].tobytes())
    assert progress is not None
    assert len(trees) > 1, "the tree never changed: nothing is shown about re-allocation"
    final = progress.state()
    for state in (states[1], states[STEPS // 2]):
        write_state(tmp_path / "fit.state", state)
        ended = last(fit(BALL, small_config(seed=99), read_state(tmp_path / "fit.state")))
        assert_same(ended.state(), final)
        assert ended.iou == progress.iou


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    ends = [last(fit(BALL, small_config(threads=threads))).state() for threads in (1, 2, 3)]
    for state in ends:
        state.meta["config"]["threads"] = 1
    assert_same(ends[0], ends[1])
    assert_same(ends[0], ends[2])


def test_a_fit_stops_at_the_quality_asked_for() -> None:
    final = last(fit(BALL, small_config(steps=2000, iou=0.9)))
    assert final.step < 2000
    assert final.iou is not None
    assert final.iou >= 0.9
