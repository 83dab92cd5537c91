"""Measures of surfaces, against what spheres and plates have by geometry."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import trimesh
from numpy.typing import NDArray

from acorn_svc.errors import BadMesh, BadRequest
from acorn_svc.field.base import empty_tree, initial_parameters
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.mesh import Mesh, MeshPart
from acorn_svc.field.metrics import decibels, overlap
from acorn_svc.field.shape import ShapeField
from acorn_svc.field.state import Architecture
from acorn_svc.training.distance import SurfaceIndex
from acorn_svc.training.shape_metrics import (
    F_DISTANCE,
    NEAR,
    colour_psnr,
    difference,
    evaluate_shape,
    index_of,
    iou,
    joined,
    near_iou,
    near_points,
)
from acorn_svc.training.targets import ShapeTarget

COUNT = 40_000
BALL = trimesh.creation.icosphere(subdivisions=5)
FACES = np.array(BALL.faces, np.int32)


def sphere(radius: float, centre: float = 0.0) -> SurfaceIndex:
    return SurfaceIndex(np.array(BALL.vertices) * radius + centre, FACES)


def ball(radius: float) -> Callable[[NDArray[np.float64]], NDArray[np.bool_]]:
    return lambda points: np.linalg.norm(points, axis=1) < radius


def plate(degrees: float = 0.0, height: float = 0.0) -> SurfaceIndex:
    """A square of side 1, turned about the x axis."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float64) - [0.5, 0.5, 0]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = corners @ np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]])
    return SurfaceIndex(turned + np.array([0, 0, height]), np.array([[0, 1, 2], [0, 2, 3]], np.int32))


def test_overlap_is_that_of_sets() -> None:
    a, b = np.array([1, 1, 1, 0, 0], bool), np.array([0, 1, 1, 1, 0], bool)
    assert overlap(a, b) == overlap(b, a) == 0.5
    assert overlap(a, a) == overlap(~a & a, ~a & a) == 1
    assert overlap(a, ~a) == 0


@pytest.mark.parametrize("radius", [0.7, 0.95])
def test_the_iou_of_balls_is_the_ratio_of_their_volumes(radius: float) -> None:
    expected = radius**3
    found = iou(ball(radius), sphere(1.0), COUNT)
    inside = math.pi / 6 * COUNT  # points that count
    assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / inside) + 2e-3  # facets
    assert iou(sphere(1.0).inside, sphere(1.0), COUNT) == 1


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e4])
def test_the_near_iou_of_balls_is_that_of_their_shells(size: float) -> None:
    reach = NEAR * math.sqrt(12)
    off = reach / 3
    expected = ((1 - off) ** 3 - (1 - reach) ** 3) / (1 - (1 - reach) ** 3)
    found = near_iou(ball((1 - off) * size), sphere(size), COUNT)
    assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / (COUNT / 2)) + 5e-3  # facets
    assert near_iou(sphere(size).inside, sphere(size), COUNT) == 1


def test_near_points_fill_the_shell_evenly() -> None:
    surface, reach = sphere(1.0, centre=7.0), 0.08
    points = near_points(surface, reach, COUNT, 0)
    assert points.shape == (COUNT, 3)
    assert (surface.closest(points).distance <= reach * (1 + 1e-6)).all()
    from_centre = points - 7.0
    low, high = (1 - reach) ** 3, (1 + reach) ** 3
    volumes = (np.sort(np.linalg.norm(from_centre, axis=1)) ** 3 - low) / (high - low)
    assert np.abs(volumes - (np.arange(COUNT) + 0.5) / COUNT).max() < 1.95 / math.sqrt(COUNT) + 5e-3
    assert np.abs(from_centre.mean(axis=0)).max() < 4 / math.sqrt(3 * COUNT)


def test_points_depend_on_the_seed_alone() -> None:
    first, again, other = (near_points(sphere(1.0), 0.1, 100, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_nothing_differs_from_itself() -> None:
    found = difference(sphere(3.0), sphere(3.0), COUNT)
    assert found.chamfer < 1e-12
    assert found.f_score == 1
    assert found.normal_error < 1e-3
    assert found.median_normal_error < 1e-6
    floor = 2 * 4 * math.pi * 9 / (math.pi * COUNT) / 6**2  # squared distance to the closest of COUNT samples
    assert found.sampled_chamfer == pytest.approx(floor, rel=0.05)


@pytest.mark.parametrize("scale", [1.0, 250.0])
def test_concentric_spheres_are_their_gap_apart(scale: float) -> None:
    gap = 0.1
    found = difference(sphere((1 - gap) * scale), sphere(scale), COUNT)
    assert found.chamfer == pytest.approx(2 * gap**2 / 2**2, rel=0.01)
    assert found.sampled_chamfer == pytest.approx(found.chamfer, rel=0.02)
    assert found.f_score == 0
    assert found.normal_error < 2  # facets of 2 degrees


def test_a_difference_is_seen_from_both_sides() -> None:
    there, back = difference(plate(0), plate(12), COUNT), difference(plate(12), plate(0), COUNT)
    for one, other in zip(there, back, strict=True):
        assert one == pytest.approx(other, rel=0.05)


@pytest.mark.parametrize("angle", [0.01, 5.0, 80.0])
def test_the_normal_error_of_a_turned_plate_is_its_angle(angle: float) -> None:
    found = difference(plate(angle), plate(0.0), 1000)
    assert found.normal_error == pytest.approx(angle, rel=1e-6)
    assert found.median_normal_error == pytest.approx(angle, rel=1e-6)


def test_a_plate_the_wrong_way_round_is_half_a_turn_off() -> None:
    right = plate()
    wrong = SurfaceIndex(right.vertices, np.ascontiguousarray(right.faces[:, ::-1]))
    assert difference(wrong, right, 1000).normal_error == 180


def test_half_of_the_area_at_the_wrong_place_halves_the_precision() -> None:
    one, other = plate(), plate(height=50 * F_DISTANCE)
    both = SurfaceIndex(
        np.concatenate([one.vertices, other.vertices]), np.concatenate([one.faces, other.faces + 4])
    )
    assert difference(both, one, COUNT).f_score == pytest.approx(2 / 3, abs=0.01)
    assert difference(one, both, COUNT).f_score == pytest.approx(2 / 3, abs=0.01)
    near = plate(height=0.9 * F_DISTANCE)
    assert difference(near, one, 1000).f_score == 1


def test_triangles_without_area_do_not_count() -> None:
    good = plate()
    flat = SurfaceIndex(good.vertices, np.concatenate([[[0, 0, 1], [2, 2, 2]], good.faces]).astype(np.int32))
    assert difference(flat, good, 1000).normal_error == 0
    with pytest.raises(BadMesh):
        difference(good, SurfaceIndex(good.vertices, np.array([[0, 0, 1]], np.int32)), 10)


def coloured(colour: int) -> Mesh:
    vertices = np.array(BALL.vertices)
    return Mesh(vertices, FACES, colours=np.full(vertices.shape, colour, np.uint8))


def one_block(target: ShapeTarget, bias: list[float]) -> ShapeField:
    """A field that has the same values everywhere."""
    signal, architecture = target.signal(32), Architecture(cells=4, features=2, decoder_width=4)
    lattice = Lattice.build(empty_tree(signal, architecture.cells), architecture.cells)
    parameters = initial_parameters(architecture, signal, lattice, torch.Generator().manual_seed(0))
    last = max(name for name in parameters if name.startswith("decoder") and name.endswith("weight"))
    parameters[last].zero_()
    parameters[last.replace("weight", "bias")][:] = torch.tensor(bias)
    return ShapeField(signal, architecture, lattice, parameters, signs=np.zeros(1, np.int8))


def test_the_psnr_of_colours_is_that_of_their_difference() -> None:
    target = ShapeTarget(coloured(51))  # 0.2
    surface = index_of(target)
    right, wrong = (one_block(target, [0, grey, grey, grey]) for grey in (0.2, 0.4))
    assert colour_psnr(right, target, surface, 1000) == 100
    assert colour_psnr(wrong, target, surface, 1000) == pytest.approx(decibels(0.2**2))
    plain = ShapeTarget(Mesh(np.array(BALL.vertices), FACES))
    assert colour_psnr(right, plain, surface, 10) is None
    assert colour_psnr(one_block(plain, [0.0]), target, surface, 10) is None


def test_a_field_without_surface_has_no_mesh_to_compare() -> None:
    target = ShapeTarget(Mesh(np.array(BALL.vertices), FACES))
    found = evaluate_shape(one_block(target, [1.0]), target, 1000, 16)
    assert (found.iou, found.near_iou, found.difference, found.psnr) == (0, 0, None, None)
    numbers = found.to_json()
    assert numbers["iou"] == 0
    assert numbers["chamfer"] is None


def test_a_field_full_of_inside_overlaps_by_the_share_of_the_ball() -> None:
    target = ShapeTarget(Mesh(np.array(BALL.vertices), FACES))
    found = evaluate_shape(one_block(target, [-1.0]), target, 4000, 8)
    assert found.iou == pytest.approx(math.pi / 6, abs=0.04)
    assert found.difference is not None
    assert found.difference.normal_error > 20


def test_a_measure_needs_a_point() -> None:
    target = ShapeTarget(Mesh(np.array(BALL.vertices), FACES))
    with pytest.raises(BadRequest):
        evaluate_shape(one_block(target, [1.0]), target, 0)


def test_parts_of_a_mesh_are_joined() -> None:
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    parts = [
        MeshPart(corners, corners, None, np.array([[0, 1, 2]], np.int32)),
        MeshPart(corners + 1, corners, None, np.array([[3, 4, 0]], np.int32)),
    ]
    whole = joined(parts)
    assert whole is not None
    np.testing.assert_array_equal(whole.faces, [[0, 1, 2], [3, 4, 0]])
    assert whole.vertices.shape == (6, 3)
    assert joined(parts[:0]) is None
