"""How well a surface is represented: its inside, its place, its normals and its colours.

Everything is in the units of the mesh. Points and samples depend on the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from acorn_svc.errors import BadRequest
from acorn_svc.field.mesh import MeshPart
from acorn_svc.field.metrics import overlap, psnr
from acorn_svc.field.shape import ShapeField
from acorn_svc.training.distance import Samples, SurfaceIndex
from acorn_svc.training.targets import ShapeTarget

Points = NDArray[np.float64]
Inside = Callable[[Points], NDArray[np.bool_]]

POINTS = 300_000
"""Points and samples of each measure: as many as ACORN's reference code samples of a mesh."""
RESOLUTION = 256
NEAR = 0.01
"""Of the diagonal of the bounding box: how far from the surface a point is near."""
F_DISTANCE = 1e-3
"""Of the longest side of the bounding box: how far off a sample still counts as right."""
CANDIDATES = 1 << 18


class MeshDifference(NamedTuple):
    """How two surfaces differ, as seen from samples that are spread evenly over the area of both.

    Lengths are those that remain when the longest side of the true surface's bounding box is scaled to 1.

    Attributes:
        chamfer: mean squared distance of our samples to the closest points of the true surface, plus the same
            the other way round.
        sampled_chamfer: the same to the closest of the other surface's samples, as ACORN's reference code
            has it (``compute_trimesh_chamfer``): never below what the distance of the samples among
            themselves makes it, about ``2 area / (pi count)``.
        f_score: harmonic mean of the shares of our and of the true samples that are no farther than
            ``F_DISTANCE`` from the other surface.
        normal_error: mean angle, in degrees, between the triangle of a sample and the closest triangle of the
            other surface, over the samples of both.
        median_normal_error: the median of the same angles.
    """

    chamfer: float
    sampled_chamfer: float
    f_score: float
    normal_error: float
    median_normal_error: float


class ShapeQuality(NamedTuple):
    """How well a field represents a shape.

    Attributes:
        iou: intersection over union of the insides, over points spread evenly over the bounding box.
        near_iou: the same over points spread evenly over all of space no farther than ``NEAR`` from the
            surface.
        difference: of the extracted mesh; None if there is none.
        psnr: of the colours on the surface, in decibels, 8 bits; None for a shape without colour.
    """

    iou: float
    near_iou: float
    difference: MeshDifference | None
    psnr: float | None

    def to_json(self) -> dict[str, float | None]:
        """The numbers by name."""
        nothing = dict.fromkeys(MeshDifference._fields)
        difference = nothing if self.difference is None else self.difference._asdict()
        return {"iou": self.iou, "near_iou": self.near_iou, **difference, "psnr": self.psnr}


def evaluate_shape(
    field: ShapeField,
    target: ShapeTarget,
    points: int = POINTS,
    resolution: int = RESOLUTION,
    seed: int = 0,
) -> ShapeQuality:
    """Measures a field against the surface that it was fitted to.

    Args:
        field: what is measured.
        target: the truth.
        points: of each measure, 1 or more.
        resolution: cells of the extracted mesh along the longest side of the field's box.
        seed: of the points.

    Raises:
        BadRequest: the resolution or the number of points is out of range.
        BadMesh: the target has no area.
    """
    if points < 1:
        raise BadRequest("at least one point is needed")
    surface = index_of(target)

    def inside(places: Points) -> NDArray[np.bool_]:
        return field.distance(field.to_voxels(places)) < 0

    extracted = joined(field.mesh_parts(resolution))
    return ShapeQuality(
        iou(inside, surface, points, seed),
        near_iou(inside, surface, points, seed),
        None if extracted is None else difference(extracted, surface, points, seed),
        colour_psnr(field, target, surface, points, seed),
    )


def index_of(target: ShapeTarget) -> SurfaceIndex:
    """The surface that is fitted, in its own units."""
    mesh = target.mesh
    return SurfaceIndex(np.ascontiguousarray(mesh.vertices), np.ascontiguousarray(mesh.faces))


def joined(parts: Iterable[MeshPart]) -> SurfaceIndex | None:
    """The surface of an extracted mesh, if there is any."""
    held = list(parts)
    if not any(len(part.faces) for part in held):
        return None
    vertices = np.concatenate([part.vertices for part in held]).astype(np.float64)
    return SurfaceIndex(vertices, np.concatenate([part.faces for part in held]).astype(np.int32))


# --- insides ---


def iou(inside: Inside, surface: SurfaceIndex, count: int = POINTS, seed: int = 0) -> float:
    """Intersection over union over points spread evenly over the bounding box of the true surface.

    Args:
        inside: whether points ``[n, 3]`` are inside ours.
        surface: the truth: inside is where it goes around a point.
        count: of the points.
        seed: of the points.
    """
    low, high = bounds(surface)
    points = np.random.default_rng([seed, 0]).uniform(low, high, (count, 3))
    return overlap(inside(points), surface.inside(points))


def near_iou(inside: Inside, surface: SurfaceIndex, count: int = POINTS, seed: int = 0) -> float:
    """The same over all of space no farther than ``NEAR`` times the diagonal from the true surface."""
    low, high = bounds(surface)
    points = near_points(surface, NEAR * float(np.linalg.norm(high - low)), count, [seed, 1])
    return overlap(inside(points), surface.inside(points))


def near_points(surface: SurfaceIndex, radius: float, count: int, seed: int | list[int]) -> Points:
    """Points ``[count, 3]`` spread evenly over all of space no farther than ``radius`` from a surface.

    Drawn from all cubes of that side that touch the surface or a cube that does, and dropped if they are too
    far: no point of that space lies elsewhere.
    """
    generator = np.random.default_rng(seed)
    low, high = bounds(surface)
    origin = low - 2 * radius  # a cube and its neighbour lie before the lowest that is touched
    counts = np.ceil((high - low) / radius).astype(np.int64) + 5
    cubes = surface.occupied(origin.tolist(), radius, counts.tolist())
    touched = np.ravel_multi_index(tuple(cubes.T), counts)
    steps = [np.dot(way, [counts[1] * counts[2], counts[2], 1]) for way in product((-1, 0, 1), repeat=3)]
    cubes = np.stack(np.unravel_index(np.unique(np.add.outer(steps, touched)), counts), axis=1)
    found, missing = [], count
    while missing > 0:
        chosen = cubes[generator.integers(len(cubes), size=CANDIDATES)]
        points = origin + (chosen + generator.random(chosen.shape)) * radius
        points = points[surface.closest(points, radius).face >= 0][:missing]
        found.append(points)
        missing -= len(points)
    return np.concatenate(found)


def bounds(surface: SurfaceIndex) -> tuple[Points, Points]:
    """The lowest and the highest corner of the bounding box ``[3]`` of the triangles."""
    used = surface.vertices[np.unique(surface.faces)]
    return used.min(axis=0), used.max(axis=0)


# --- surfaces ---


def difference(ours: SurfaceIndex, truth: SurfaceIndex, count: int = POINTS, seed: int = 0) -> MeshDifference:
    """Compares two surfaces by ``count`` samples of each; see :class:`MeshDifference`.

    Raises:
        BadMesh: a surface has no area.
    """
    low, high = bounds(truth)
    scale = float((high - low).max())
    samples = ours.sample(count, np.random.default_rng([seed, 2]))
    true_samples = truth.sample(count, np.random.default_rng([seed, 3]))
    there, there_angles = _to_surface(ours, samples, truth)
    back, back_angles = _to_surface(truth, true_samples, ours)
    sampled = _to_samples(samples, true_samples) + _to_samples(true_samples, samples)
    angles = np.concatenate([there_angles, back_angles])
    return MeshDifference(
        chamfer=float(np.square(there).mean() + np.square(back).mean()) / scale**2,
        sampled_chamfer=sampled / scale**2,
        f_score=_harmonic((there <= F_DISTANCE * scale).mean(), (back <= F_DISTANCE * scale).mean()),
        normal_error=float(np.nanmean(angles)),
        median_normal_error=float(np.nanmedian(angles)),
    )


def _to_surface(source: SurfaceIndex, samples: Samples, target: SurfaceIndex) -> tuple[Points, Points]:
    """Distances ``[n]`` of a surface's samples to another one, and angles, in degrees, to the triangle there.

    An angle is not a number where the closest triangle has no area.
    """
    closest = target.closest(samples.points)
    own, other = _face_normals(source, samples.face), _face_normals(target, closest.face)
    sine, cosine = np.linalg.norm(np.cross(own, other), axis=1), np.sum(own * other, axis=1)
    with_area = (own != 0).any(axis=1) & (other != 0).any(axis=1)
    # an arc cosine would lose all angles below 1e-6 degrees
    angles = np.where(with_area, np.degrees(np.arctan2(sine, cosine)), np.nan)
    return closest.distance.astype(np.float64), angles


def _face_normals(surface: SurfaceIndex, faces: NDArray[np.int32]) -> Points:
    """Unit normals ``[n, 3]`` of triangles, 0 for those without area."""
    corners = surface.vertices[surface.faces[faces]]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    unit: Points = np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)
    return unit


def _to_samples(source: Samples, target: Samples) -> float:
    """Mean squared distance of samples to the closest of the others."""
    distance, _ = cKDTree(target.points).query(source.points, workers=torch.get_num_threads())
    return float(np.square(distance).mean())


def _harmonic(precision: float, recall: float) -> float:
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


# --- colours ---


def colour_psnr(
    field: ShapeField, target: ShapeTarget, surface: SurfaceIndex, count: int = POINTS, seed: int = 0
) -> float | None:
    """PSNR in decibels of the field's colours on the true surface; None unless both have colour."""
    if not (field.signal.has_colour and target.has_colour):
        return None
    samples = surface.sample(count, np.random.default_rng([seed, 4]))
    seen = field.colours(field.to_voxels(samples.points))
    assert seen is not None
    return psnr(np.asarray(seen / 255, np.float32), target.colours(samples.face, samples.barycentric))
