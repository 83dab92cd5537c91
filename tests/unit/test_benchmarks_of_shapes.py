"""What a field is compared with: a hash grid, coded meshes."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from acorn_svc.field.base import empty_tree, initial_parameters
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.mesh import Mesh
from acorn_svc.field.ops.learning import RUN, Samples
from acorn_svc.field.shape import ShapeField
from acorn_svc.field.state import Architecture, ShapeSignal
from acorn_svc.training.distance import SurfaceIndex
from acorn_svc.training.shape_metrics import iou
from benchmarks import coded_meshes, hash_grid, shapes
from benchmarks.hash_grid import HashGrid


def grid(rows: int, cells: tuple[int, ...] = (4, 7)) -> HashGrid:
    network = hash_grid.network_sizes(len(cells), 8, 1, 1)
    model = HashGrid(cells, rows, network, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.table.copy_(torch.rand(model.table.shape, generator=torch.Generator().manual_seed(1)))
    return model


def row_of(corner: tuple[int, int, int], cells: int, rows: int) -> int:
    x, y, z = corner
    if (cells + 1) ** 3 <= rows:
        return x + (cells + 1) * (y + (cells + 1) * z)
    return (x ^ y * 2_654_435_761 ^ z * 805_459_861) % rows


def features_one_by_one(model: HashGrid, position: Tensor, cells: tuple[int, ...], rows: int) -> Tensor:
    found, start = [], 0
    for side in cells:
        scaled = position * side
        lower = [min(int(value), side - 1) for value in scaled.tolist()]
        total = torch.zeros(2)
        for step in product((0, 1), repeat=3):
            weight = math.prod(
                1 - abs(value - low - up) for value, low, up in zip(scaled.tolist(), lower, step, strict=True)
            )
            x, y, z = (low + up for low, up in zip(lower, step, strict=True))
            total += weight * model.table[start + row_of((x, y, z), side, rows)]
        found.append(total)
        start += min(rows, (side + 1) ** 3)
    return torch.cat(found)


@pytest.mark.parametrize("rows", [130, 1000])  # the second level hashed, or dense
def test_a_hash_grid_interpolates_the_rows_of_its_corners(rows: int) -> None:
    cells = (4, 7)
    model, positions = grid(rows, cells), torch.rand(20, 3, generator=torch.Generator().manual_seed(2))
    positions = torch.cat([positions, torch.eye(3), torch.zeros(1, 3), torch.ones(1, 3)])
    features = torch.stack([features_one_by_one(model, position, cells, rows) for position in positions])
    torch.testing.assert_close(model(positions), model.network(features), rtol=1e-4, atol=1e-5)
    loss = model(positions).square().sum()
    expected = torch.autograd.grad(model.network(features).square().sum(), model.table)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, model.table)[0], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("levels", "width", "hidden"), [(8, 32, 1), (12, 64, 2)])
@pytest.mark.parametrize("budget", [20_000, 117_400])
def test_a_hash_grid_has_as_many_parameters_as_it_may(
    levels: int, width: int, hidden: int, budget: int
) -> None:
    cells, network = hash_grid.resolutions(levels, 256), hash_grid.network_sizes(levels, width, hidden, 1)
    assert (cells[0], cells[-1], len(cells)) == (16, 256, levels)
    rows = hash_grid.rows_for(budget, cells, network)
    model = HashGrid(cells, rows, network, torch.Generator())
    assert budget - 2 * levels < model.parameter_count <= budget


def test_a_hash_grid_learns_a_ball_from_so_many_points() -> None:
    positions = torch.rand(RUN * 64, 3, generator=torch.Generator().manual_seed(0)) * 10
    truth = ((positions - 5).norm(dim=1, keepdim=True) - 3).clamp(-1, 1)
    model = grid(1000)
    before = (model(positions / 10) - truth).abs().mean()
    drawn, seconds = hash_grid.learn(
        model, Samples(positions, truth), 10.0, 16, "distance", 0.03, points=16 * RUN * 40
    )
    assert drawn == 16 * RUN * 40
    assert seconds > 0
    assert (model(positions / 10) - truth).abs().mean() < before / 3


def test_a_hash_grid_stops_when_its_time_is_over() -> None:
    ticks = iter(range(1000))
    samples = Samples(torch.rand(RUN * 4, 3), torch.zeros(RUN * 4, 1))
    drawn, _ = hash_grid.learn(
        grid(100), samples, 1.0, 2, "distance", 0.03, seconds=5.0, clock=lambda: float(next(ticks))
    )
    assert drawn == 5 * 2 * RUN
    for limits in ({}, {"seconds": -1.0}, {"points": 0.0}):
        with pytest.raises(ValueError, match="limit"):
            hash_grid.learn(grid(100), samples, 1.0, 2, "distance", 0.03, **limits)


def random_shape() -> ShapeField:
    signal = ShapeSignal((37, 20, 29), 1, truncation=2.0, origin=(-1.5, 0.25, 3.0), voxel=0.125)
    architecture = Architecture(cells=4, features=2, decoder_width=4)
    random = np.random.default_rng(0)
    tree = empty_tree(signal, architecture.cells)
    for _ in range(9):
        tree = tree.split(random.choice(tree.leaf_rows[tree.levels[tree.leaf_rows] < tree.depth], 1))
    lattice = Lattice.build(tree, architecture.cells)
    parameters = initial_parameters(architecture, signal, lattice, torch.Generator().manual_seed(0))
    signs = np.where(tree.is_leaf, random.integers(-1, 2, len(tree)), 0).astype(np.int8)
    return ShapeField(signal, architecture, lattice, parameters, signs=signs)


def test_another_function_gets_the_signs_of_a_fields_blocks() -> None:
    field = random_shape()
    positions = np.random.default_rng(1).uniform(0, field.signal.size, (5000, 3))
    same = shapes.with_signs(field, lambda places: field.values(places)[:, 0])
    np.testing.assert_allclose(same(positions), field.distance(positions), atol=1e-5)
    elsewhere = shapes.with_signs(field, lambda places: np.full(len(places), 9, np.float32))(positions)
    assert (elsewhere == field.truncation()).any()
    assert (elsewhere == -field.truncation()).any()
    parts = shapes.mesh_parts(field, same, 32)
    for part, ours in zip(parts, field.mesh_parts(32), strict=True):
        np.testing.assert_array_equal(part.faces, ours.faces)
        np.testing.assert_allclose(part.vertices, ours.vertices, atol=1e-4)


def ball(subdivisions: int = 4) -> Mesh:
    trimesh = pytest.importorskip("trimesh")
    made = trimesh.creation.icosphere(subdivisions=subdivisions)
    return Mesh(np.array(made.vertices, np.float64), np.array(made.faces, np.int32))


def test_the_smallest_coded_mesh_is_just_good_enough() -> None:
    pytest.importorskip("DracoPy", reason="DracoPy is not installed")
    pytest.importorskip("fast_simplification", reason="fast-simplification is not installed")
    mesh = ball()
    surface = SurfaceIndex(mesh.vertices, mesh.faces)
    decimator = coded_meshes.Decimator(mesh)

    def quality(other: SurfaceIndex) -> float:
        return iou(other.inside, surface, 20_000)

    fine, coarse = (coded_meshes.smallest(decimator, 12, quality, goal) for goal in (0.99, 0.97))
    assert fine is not None
    assert coarse is not None
    assert quality(fine.surface) >= 0.99
    assert quality(coarse.surface) >= 0.97
    assert coarse.faces < fine.faces < decimator.faces
    assert coarse.bytes < fine.bytes
    less = decimator.coded(round(fine.faces * 0.9), 12)
    assert quality(less.surface) < 0.99 + 2e-3
    assert coded_meshes.smallest(decimator, 12, quality, 1.0001) is None


@pytest.mark.slow
def test_a_shape_is_measured_beside_others(tmp_path: Path) -> None:
    mesh = ball(2)
    lines = [
        *(f"v {x} {y} {z}" for x, y, z in mesh.vertices),
        *(f"f {a} {b} {c}" for a, b, c in mesh.faces + 1),
    ]
    path = tmp_path / "ball.obj"
    path.write_text("\n".join(lines))
    effort = shapes.QUICK._replace(points=2000, resolutions=(24,))
    rows = list(shapes.measure([0.5], [path], blocks=200, effort=effort))
    values = {(row.case, row.metric): row.value for row in rows}
    assert len(values) == len(rows)
    case = "ball.obj, standard, 0.5 s, threads 1"
    assert 0 < values[case, "iou"] <= 1
    assert values[case, "learning"] > 0
    assert values[case, "file"] > 0
    assert values[f"{case}, mesh of 24", "watertight"] == 1
    other = f"{case}, hash grid of 8 levels to 128 cells, network 32x1, same samples"
    assert values[other, "parameters"] <= values[case, "parameters"]
    assert values[other, "samples"] >= values[case, "samples"]


def test_a_mesh_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not list(shapes.measure(meshes=[tmp_path / "none.obj"]))
    assert "none.obj" in capsys.readouterr().err
