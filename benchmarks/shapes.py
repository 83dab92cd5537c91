"""Quality, time and size of fits of shapes, beside coded meshes and beside a hash grid.

Times are those of a clock. ``end to end`` is all that `fit` does: the index of the triangles, the tree, the
truth at the samples, every step, and the measurement of the quality. The hash grid learns from the same
samples by the same loss on the same threads; it has as many parameters, and is told for free which blocks
are wholly inside or outside.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from acorn_svc.field.isosurface import extract
from acorn_svc.field.kinds import as_shape
from acorn_svc.field.mesh import MeshPart
from acorn_svc.field.ops.learning import RUN, Samples
from acorn_svc.field.shape import ShapeField
from acorn_svc.formats.container import field_to_bytes, read_field
from acorn_svc.formats.meshes import read_mesh
from acorn_svc.training.distance import SurfaceIndex
from acorn_svc.training.loop import fit
from acorn_svc.training.presets import FitConfig, configure
from acorn_svc.training.shape_metrics import (
    MeshDifference,
    Points,
    colour_psnr,
    difference,
    index_of,
    iou,
    joined,
    near_iou,
)
from acorn_svc.training.shapes import ShapeTask
from acorn_svc.training.targets import ShapeTarget
from benchmarks import coded_meshes, hash_grid
from benchmarks.measurement import Measurement

DATA = Path(__file__).parents[2] / "shared" / "data" / "meshes"
STANDARD_MESH = DATA / "nefertiti_100k.obj"
PRESETS = ("draft", "standard")
POINTS = 300_000
RESOLUTIONS = (256, 512)
BITS = (11, 12, 14)
LEVELS = (8,)  # 12 do worse at equal parameters
COARSER = (1, 2)
NETWORKS = ((32, 1), (64, 2))
AT_ONCE = 1 << 16

Distance = Callable[[Points], NDArray[np.float32]]


class Effort(NamedTuple):
    """How much is measured.

    Attributes:
        points: of each measure of quality.
        resolutions: of extracted meshes.
        levels: of hash grids.
        coarser: how many times longer than a voxel the cells of their finest level are: with few parameters
            2 does better than 1, for fewer vertices share a row.
        networks: of hash grids, width and hidden layers.
        bits: of coded coordinates.
    """

    points: int = POINTS
    resolutions: tuple[int, ...] = RESOLUTIONS
    levels: tuple[int, ...] = LEVELS
    coarser: tuple[int, ...] = COARSER
    networks: tuple[tuple[int, int], ...] = NETWORKS
    bits: tuple[int, ...] = BITS


QUICK = Effort(20_000, (64,), (8,), (2,), ((32, 1),), (12,))


class Fitted(NamedTuple):
    """A fit that is done.

    Attributes:
        field: as its file holds it.
        config: how it was fitted.
        learning: seconds without index, tree, truth and the last measurement.
        points: that were learned from, of all scales.
    """

    field: ShapeField
    config: FitConfig
    learning: float
    points: int


def measure(
    seconds: Sequence[float] = (),
    meshes: Sequence[Path] = (),
    blocks: int | None = None,
    threads: int = 1,
    effort: Effort | None = None,
) -> Iterator[Measurement]:
    """Fits `nefertiti_100k.obj`, or the given meshes: with two presets, or for each of ``seconds``."""
    paths = list(meshes) or [STANDARD_MESH]
    for path in paths:
        if not path.is_file():
            print(f"shapes: there is no {path.name}; name a mesh with --mesh", file=sys.stderr)
            continue
        target = ShapeTarget(read_mesh(path).mesh)
        for case, config in _cases(target, seconds, blocks, threads):
            yield from _measure(f"{path.name}, {case}, threads {threads}", target, config, effort or Effort())


def _cases(
    target: ShapeTarget, seconds: Sequence[float], blocks: int | None, threads: int
) -> Iterator[tuple[str, FitConfig]]:
    for limit in seconds:
        yield f"standard, {limit:g} s", configure(target, seconds=limit, blocks=blocks, threads=threads)
    for preset in () if seconds else PRESETS:
        yield preset, configure(target, preset, blocks=blocks, threads=threads)


def _measure(case: str, target: ShapeTarget, config: FitConfig, effort: Effort) -> Iterator[Measurement]:
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        surface = index_of(target)
        start = time.perf_counter()
        task = ShapeTask(target, config)
        indexed = time.perf_counter()
        sampling = task.sampling(task.initial_tree())
        sampled = time.perf_counter()
        yield Measurement(case, "index", indexed - start, "s")
        yield Measurement(case, "tree and truth", sampled - indexed, "s")
        rows, fitted = _fit(case, target, config)
        yield from rows
        ours = iou(_inside(fitted.field, fitted.field.distance), surface, effort.points)
        yield from _field_quality(case, fitted.field, target, surface, effort)
        yield from _coded(case, target, surface, ours, effort)
        yield from _hash_grids(case, fitted, sampling.samples[0], surface, effort)
    finally:
        torch.set_num_threads(before)


def _fit(case: str, target: ShapeTarget, config: FitConfig) -> tuple[list[Measurement], Fitted]:
    start = evaluating = time.perf_counter()
    prepared, last = 0.0, None
    for last in fit(target, config):
        if last.stage == "measuring":  # the seconds of a fit with a time limit count from its begin
            prepared = time.perf_counter() - start
        if last.stage == "evaluating":
            evaluating = time.perf_counter()
    end = time.perf_counter()
    assert last is not None
    drawn = np.asarray(last.state().arrays["counters.drawn"], np.int64)
    data = field_to_bytes(last.field())
    learning, points = last.seconds - prepared, int(drawn.sum()) * RUN
    rows = [
        Measurement(case, "end to end", end - start, "s"),
        Measurement(case, "learning", learning, "s"),
        Measurement(case, "evaluation", end - evaluating, "s"),
        Measurement(case, "samples per second", points / learning, "1/s"),
        Measurement(case, "samples", points, ""),
        Measurement(case, "steps", last.steps, ""),
        Measurement(case, "blocks", last.blocks, ""),
        Measurement(case, "parameters", last.parameters, ""),
        Measurement(case, "file", len(data), "bytes"),
    ]
    return rows, Fitted(as_shape(read_field(data)), config, learning, points)


# --- quality ---


def _inside(field: ShapeField, distance: Distance) -> Callable[[Points], NDArray[np.bool_]]:
    """Of points in the units of the mesh."""
    return lambda points: distance(field.to_voxels(points)) < 0


def _insides(
    case: str, field: ShapeField, distance: Distance, surface: SurfaceIndex, points: int
) -> Iterator[Measurement]:
    inside = _inside(field, distance)
    yield Measurement(case, "iou", iou(inside, surface, points), "")
    yield Measurement(case, "near iou", near_iou(inside, surface, points), "")


def _field_quality(
    case: str, field: ShapeField, target: ShapeTarget, surface: SurfaceIndex, effort: Effort
) -> Iterator[Measurement]:
    yield from _insides(case, field, field.distance, surface, effort.points)
    colours = colour_psnr(field, target, surface, effort.points)
    if colours is not None:
        yield Measurement(case, "psnr of colours", colours, "dB")
    for resolution in effort.resolutions:
        start = time.perf_counter()
        parts = list(field.mesh_parts(resolution))
        taken = time.perf_counter() - start
        yield Measurement(f"{case}, mesh of {resolution}", "extraction", taken, "s")
        yield from _mesh_quality(f"{case}, mesh of {resolution}", parts, surface, effort.points)


def _mesh_quality(
    case: str, parts: Sequence[MeshPart], surface: SurfaceIndex, points: int
) -> Iterator[Measurement]:
    extracted = joined(parts)
    yield Measurement(case, "faces", 0 if extracted is None else len(extracted.faces), "")
    yield Measurement(case, "watertight", extracted is not None and extracted.closed, "")
    if extracted is not None:
        yield from _differences(case, difference(extracted, surface, points))


def _differences(case: str, found: MeshDifference) -> Iterator[Measurement]:
    yield Measurement(case, "chamfer", found.chamfer, "longest side^2")
    yield Measurement(case, "chamfer of samples", found.sampled_chamfer, "longest side^2")
    yield Measurement(case, "f-score", found.f_score, "")
    yield Measurement(case, "normal error", found.normal_error, "degrees")
    yield Measurement(case, "median normal error", found.median_normal_error, "degrees")


# --- the others ---


def _coded(
    case: str, target: ShapeTarget, surface: SurfaceIndex, goal: float, effort: Effort
) -> Iterator[Measurement]:
    """The smallest coded meshes that are as good as the field; NaN where none is."""
    if not (find_spec("DracoPy") and find_spec("fast_simplification")):
        print("shapes: no coded meshes; pip install -e '.[benchmark]'", file=sys.stderr)
        return
    decimator = coded_meshes.Decimator(target.mesh)

    def quality(other: SurfaceIndex) -> float:
        return iou(other.inside, surface, effort.points)

    for bits in effort.bits:
        name = f"{case}, draco {bits} bits of the same iou"

        found = coded_meshes.smallest(decimator, bits, quality, goal)
        yield Measurement(name, "file", math.nan if found is None else found.bytes, "bytes")
        if found is not None:
            yield Measurement(name, "faces", found.faces, "")
            yield Measurement(name, "iou", quality(found.surface), "")
            yield Measurement(name, "near iou", near_iou(found.surface.inside, surface, effort.points), "")
            yield from _differences(name, difference(found.surface, surface, effort.points))


def _hash_grids(
    case: str, fitted: Fitted, samples: Samples, surface: SurfaceIndex, effort: Effort
) -> Iterator[Measurement]:
    """Hash grids of as many parameters that learn for as long, and from as many points."""
    limits = {"same time": (fitted.learning, math.inf), "same samples": (math.inf, float(fitted.points))}
    side = max(fitted.field.signal.size)
    for levels, coarser, (width, hidden) in product(effort.levels, effort.coarser, effort.networks):
        for name, (seconds, points) in limits.items():
            cells = hash_grid.resolutions(levels, side // coarser)
            sizes = f"{levels} levels to {cells[-1]} cells, network {width}x{hidden}"
            named = f"{case}, hash grid of {sizes}, {name}"
            learn = partial(
                hash_grid.learn,
                samples=samples,
                scale=float(side),
                runs=fitted.config.patches,
                loss=fitted.config.loss,
                final_rate=fitted.config.final_rate,
                seed=fitted.config.seed,
            )
            learn(_hash_grid(fitted.field, cells, width, hidden), points=1)  # the first step is slow
            model = _hash_grid(fitted.field, cells, width, hidden)
            drawn, taken = learn(model, seconds=seconds, points=points)
            yield Measurement(named, "learning", taken, "s")
            yield Measurement(named, "samples", drawn, "")
            yield Measurement(named, "parameters", model.parameter_count, "")
            distance = with_signs(fitted.field, _values(model, side))
            yield from _insides(named, fitted.field, distance, surface, effort.points)
            for resolution in effort.resolutions:
                parts = mesh_parts(fitted.field, distance, resolution)
                yield from _mesh_quality(f"{named}, mesh of {resolution}", parts, surface, effort.points)


def _hash_grid(field: ShapeField, cells: Sequence[int], width: int, hidden: int) -> hash_grid.HashGrid:
    network = hash_grid.network_sizes(len(cells), width, hidden, field.signal.channels)
    rows = hash_grid.rows_for(field.parameter_count, cells, network)
    return hash_grid.HashGrid(cells, rows, network, torch.Generator().manual_seed(0))


def _values(model: hash_grid.HashGrid, scale: int) -> Distance:
    """The first channel, of points in voxels."""

    def values(positions: Points) -> NDArray[np.float32]:
        found = np.empty(len(positions), np.float32)
        with torch.inference_mode():
            for start in range(0, len(positions), AT_ONCE):
                part = torch.from_numpy(positions[start : start + AT_ONCE]) / scale
                found[start : start + AT_ONCE] = model(part.float().clamp(0, 1))[:, 0].numpy()
        return found

    return values


def with_signs(field: ShapeField, values: Distance) -> Distance:
    """Distances in voxels by ``values``, -1 to 1, but for the blocks of a field that know their sign."""
    unit = field.architecture.cells
    shape = -(-np.asarray(field.signal.size) // unit)
    signs = np.zeros(shape, np.int8)
    for (*corner, side, _), sign in zip(field.blocks(), field.leaf_signs(), strict=True):
        x, y, z = np.asarray(corner) // unit
        width = side // unit
        signs[x : x + width, y : y + width, z : z + width] = sign

    def distance(positions: Points) -> NDArray[np.float32]:
        x, y, z = np.clip(np.floor(positions / unit).astype(np.int64), 0, shape - 1).T
        found = signs[x, y, z].astype(np.float32)
        rows = np.flatnonzero(found == 0)
        found[rows] = np.clip(values(positions[rows]), -1, 1)
        scaled: NDArray[np.float32] = found * np.float32(field.truncation())
        return scaled

    return distance


def mesh_parts(field: ShapeField, distance: Distance, resolution: int) -> list[MeshPart]:
    """The surface of another function in the box and with the leaves of a field."""
    leaves, signs = field.blocks()[:, :4], field.leaf_signs()
    parts = extract(distance, field.signal.size, leaves, signs, resolution, field.truncation())
    return [
        replace(part, vertices=field.to_mesh_units(part.vertices.astype(np.float64)).astype(np.float32))
        for part in parts
    ]
