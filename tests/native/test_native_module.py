"""The native module refuses what its kernels cannot take, whoever calls it, and bears threads and forks."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from acorn_svc.field import cubes
from acorn_svc.field.geometry import Geometry, geometry_of
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.ops.learning import RUN
from acorn_svc.field.tree import Tree

native = pytest.importorskip("acorn_svc._native", reason="the native module was not built (no C++ compiler)")

CHANNELS, OUTPUTS, COUNT = 4, 3, 40
INPUTS = 5 * CHANNELS
WIDEST = ""
SOME_THREADS = 3

Call = dict[str, Any]


def lattice() -> Lattice:
    root = Tree.root(4, (9, 16))
    return Lattice.build(root.split(root.leaf_rows), 4)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def layers(*widths: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(numbers(a, b), numbers(b)) for a, b in pairwise(widths)]


def calls() -> dict[str, Call]:
    """Arguments of every function that computes."""
    vertices = lattice().vertices
    geometry, features, positions = geometry_of(lattice()), numbers(vertices + 1, CHANNELS), numbers(COUNT, 2)
    corners = np.arange(2 * COUNT).reshape(COUNT, 2) % 8 * 4
    decoder, parameters = layers(INPUTS, 7, OUTPUTS), (INPUTS + 1) * 7 + 8 * OUTPUTS
    places = {"geometry": geometry, "positions": positions.astype(np.float64) * 40}
    patches = {"geometry": geometry, "corners": corners}
    how, shared = {"scale": 1, "lanes": WIDEST}, {"scale": 1, "lanes": WIDEST, "threads": SOME_THREADS}
    read = {"features": features, "folded": None}
    on = {"lanes": WIDEST, "threads": SOME_THREADS}
    samples = numbers(COUNT, INPUTS)
    return {
        "locate": {**places, "out": np.empty(COUNT, np.int32)},
        "encode_points": {**places, **read, **shared, "out": empty(COUNT, INPUTS)},
        "encode_points_backward": {
            **places,
            **how,
            "features_gradient": np.zeros_like(features),
            "gradient": samples,
        },
        "encode_patches": {**patches, **read, **shared, "out": empty(COUNT, 16, INPUTS)},
        "encode_patches_backward": {
            **patches,
            **how,
            "features_gradient": np.zeros_like(features),
            "gradient": numbers(COUNT, 16, INPUTS),
        },
        "decode": {"inputs": samples, "layers": decoder, **on, "out": empty(COUNT, OUTPUTS)},
        "decode_backward": {
            "inputs": samples,
            "layers": decoder,
            "gradient": numbers(COUNT, OUTPUTS),
            "inputs_gradient": empty(COUNT, INPUTS),
            "parameters_gradient": np.zeros(parameters, np.float32),
            "lanes": WIDEST,
        },
        "render_points": {**places, **read, "layers": decoder, **shared, "out": empty(COUNT, OUTPUTS)},
        "render_image": {
            "geometry": geometry,
            **read,
            "layers": decoder,
            **shared,
            "x": 1,
            "y": 2,
            "out": empty(9, 11, OUTPUTS),
        },
        "learn": {
            **patches,
            "features": features,
            "layers": decoder,
            **shared,
            "truth": numbers(COUNT, 16, OUTPUTS),
            "weights": np.ones((COUNT, 16), np.float32),
            "factor": 0.1,
            "features_gradient": np.zeros_like(features),
            "parameters_gradient": np.zeros(parameters, np.float32),
            "squares": np.empty(COUNT),
        },
        "train": training(geometry, features) | pictures(),
        "train_points": training(geometry, features) | runs_of_points(),
        **surface_calls(),
    }


def empty(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def training(geometry: Geometry, features: np.ndarray) -> Call:
    scales = geometry.depth + 1
    parameters = {
        "encoder.features": features,
        "decoder.0.weight": numbers(scales, INPUTS, OUTPUTS),
        "decoder.0.bias": numbers(scales, OUTPUTS),
    }
    return {
        "geometry": geometry,
        "parameters": parameters,
        "first": {name: np.zeros_like(values) for name, values in parameters.items()},
        "second": {name: np.zeros_like(values) for name, values in parameters.items()},
        "last": np.zeros(len(features), np.float32),
        "gradient": np.zeros_like(features),
        "encoder_steps": np.zeros(1, np.float32),
        "decoder_steps": np.zeros(scales, np.float32),
        "drawn": np.zeros(scales, np.int64),
        "seed": 1,
        "scales": np.array([0, 1, 0], np.int32),
        "encoder_rates": np.full(3, 0.01, np.float32),
        "decoder_rates": np.full(3, 0.01, np.float32),
        "errors": np.zeros((2, geometry.nodes)),
        "lanes": WIDEST,
        "threads": SOME_THREADS,
    }


def surface_calls() -> dict[str, Call]:
    """Arguments of the functions that extract surfaces: one block, of which one point is inside."""
    values = np.ones((1, 8, 8, 8), np.float32)
    values[0, 3, 3, 3] = -1
    neighbours = np.full((1, 27), -1, np.int32)
    neighbours[0, 13] = 0
    blocks = {"values": values, "neighbours": neighbours, "whole": 1, "threads": SOME_THREADS}
    edges = {"carried": 0, **blocks}
    starts = np.ascontiguousarray(np.array(cubes.EDGES, np.int32).T)
    cells = {"table": cubes.TABLE, "starts": starts, **blocks}
    return {
        "count_crossings": {**edges, "counts": np.empty(1, np.int32)},
        "cross_edges": {
            **edges,
            "corners": np.zeros((1, 3), np.int32),
            "spacing": 1.0,
            "closest": 1e-3,
            "farthest": 2.0,
            "offsets": np.array([0, 6]),
            "vertices": empty(6, 3),
            "normals": empty(6, 3),
            "edges": np.empty(6, np.int32),
            "spans": empty(6),
        },
        "count_triangles": {**cells, "counts": np.empty(1, np.int32)},
        "triangles": {
            **cells,
            "numbers": np.zeros((1, 8, 8, 8, 3), np.int32),
            "offsets": np.array([0, 8]),
            "faces": np.empty((8, 3), np.int32),
        },
    }


def pictures() -> Call:
    pyramid = [np.full((33, 21, OUTPUTS), 7, np.uint8), np.full((17, 11, OUTPUTS), 0.5, np.float32)]
    return {"pyramid": pyramid, "patches": 9, "coarse_patches": 5}


def runs_of_points() -> Call:
    samples = [(40 * numbers(count, 2), numbers(count, OUTPUTS)) for count in (11 * RUN, 3 * RUN)]
    return {"samples": samples, "runs": 9, "coarse_runs": 5, "loss": "distance"}


FUNCTIONS = list(calls())
WRITTEN = {
    "out", "features_gradient", "inputs_gradient", "parameters_gradient", "squares", "last", "encoder_steps",
    "decoder_steps", "drawn", "errors", "counts", "vertices", "normals", "edges", "spans", "faces",
}  # fmt: skip
ARRAYS = [(n, a) for n, call in calls().items() for a, value in call.items() if isinstance(value, np.ndarray)]
# More rows than the geometry has vertices are no harm, and a picture is as large as its region.
ANY_LENGTH = {
    *((name, "features") for name in ("encode_points", "encode_patches", "render_points", "render_image")),
    ("encode_points_backward", "features_gradient"),
    ("encode_patches_backward", "features_gradient"),
    ("render_image", "out"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_takes_what_it_should(name: str) -> None:
    call = calls()[name]
    getattr(native, name)(**call)
    for argument in WRITTEN & call.keys():
        assert np.isfinite(call[argument]).all()


def strided(values: np.ndarray) -> np.ndarray:
    return np.repeat(values, 2, axis=-1)[..., ::2]


def widely_strided(values: np.ndarray) -> np.ndarray:
    """Elements that lie a terabyte apart: whoever touches the second one dies."""
    return np.lib.stride_tricks.as_strided(values, strides=(1 << 40,) * values.ndim)


def other_dtype(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16 if values.dtype.kind == "f" else np.int16)


def doubled(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32 if values.dtype == np.float64 else np.float64)


WRONG_KINDS = [strided, widely_strided, other_dtype, doubled, np.ndarray.tolist, lambda values: None]


@pytest.mark.parametrize("change", WRONG_KINDS)
@pytest.mark.parametrize(("name", "argument"), ARRAYS)
def test_nothing_is_converted_silently(
    name: str, argument: str, change: Callable[[np.ndarray], object]
) -> None:
    call = calls()[name]
    if change in (strided, widely_strided) and call[argument].size == 1:
        return  # has no strides
    call[argument] = change(call[argument])
    with pytest.raises(TypeError):
        getattr(native, name)(**call)


@pytest.mark.parametrize(("name", "argument"), [pair for pair in ARRAYS if pair[1] in WRITTEN])
def test_read_only_results_are_refused(name: str, argument: str) -> None:
    call = calls()[name]
    call[argument].setflags(write=False)
    with pytest.raises(TypeError):
        getattr(native, name)(**call)


@pytest.mark.parametrize(("name", "argument"), sorted({*ARRAYS} - ANY_LENGTH))
def test_shapes_must_fit(name: str, argument: str) -> None:
    call = calls()[name]
    call[argument] = np.concatenate([call[argument], call[argument][:1]])
    with pytest.raises(ValueError, match=r"shape|must be|length"):
        getattr(native, name)(**call)


@pytest.mark.parametrize(("name", "argument"), sorted({*ARRAYS} - {("render_image", "out")}))
def test_nothing_where_something_must_be(name: str, argument: str) -> None:
    call = calls()[name]
    call[argument] = call[argument][:0]
    with pytest.raises(ValueError, match=r"shape|must be|length|rows|vertices|features"):
        getattr(native, name)(**call)


def with_field(name: str, value: object) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        call["geometry"] = call["geometry"]._replace(**{name: value})

    return change


def with_argument(name: str, value: object) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        assert name in call
        call[name] = value

    return change


GEOMETRIES = {
    "cells": with_field("cells", 3),
    "fewer cells": with_field("cells", 2),
    "more cells": with_field("cells", 8),
    "depth": with_field("depth", 3),
    "extent": with_field("extent", (9, 15)),
    "dimension": with_field("extent", (9, 4, 4)),
    "one dimension": with_field("extent", (144,)),
}


@pytest.mark.parametrize("change", GEOMETRIES.values(), ids=GEOMETRIES.keys())
@pytest.mark.parametrize("name", [name for name, call in calls().items() if "geometry" in call])
def test_a_geometry_must_fit_together(name: str, change: Callable[[Call], None]) -> None:
    call = calls()[name]
    change(call)
    with pytest.raises(ValueError, match=r"must be|cover"):
        getattr(native, name)(**call)


def wherever(argument: str, value: object, message: str) -> list[tuple[str, Callable[[Call], None], str]]:
    """A bad value for every function that has the argument."""
    return [
        (name, with_argument(argument, value), message) for name in FUNCTIONS if argument in calls()[name]
    ]


REFUSED = [
    *wherever("lanes", "avx7", "does not run avx7"),
    *wherever("scale", -1, "scale"),
    *wherever("scale", 5, "scale"),
    *wherever("layers", [], "1 to 8"),
    *wherever("layers", layers(INPUTS, *[4] * 8, OUTPUTS), "1 to 8"),
    *wherever("layers", layers(INPUTS + 1, OUTPUTS), "before it"),
    *wherever("layers", [*layers(INPUTS, 6), *layers(7, OUTPUTS)], "before it"),
    *wherever("layers", [(numbers(INPUTS, 3), numbers(4))], "a layer is"),
    *wherever("features", numbers(200, 3), "1, 2, 4 or 8"),
    *wherever("features", numbers(200), "must be"),
    ("render_image", with_argument("x", -1), "region"),
    ("render_image", with_argument("y", -1), "region"),
    *wherever("carried", 2, "carried"),
    *wherever("whole", -1, "whole"),
    *wherever("neighbours", np.full((1, 27), 1, np.int32), "neighbours"),
    *wherever("offsets", np.array([0, 7]), "offsets"),
    *wherever("starts", np.full((2, 12), 8, np.int32), "corners"),
    *wherever("table", np.full((256, 5, 3), 12, np.int8), "edges"),
    ("train", with_argument("patches", 0), "something to learn from"),
    ("train", with_argument("coarse_patches", -3), "something to learn from"),
    *wherever("scales", np.array([0, 2, 0], np.int32), "nothing to learn from at that scale"),
    *wherever("scales", np.array([-1, 0, 0], np.int32), "nothing to learn from at that scale"),
    ("train", with_argument("pyramid", [numbers(8, 8, 4)]), "channels"),
    ("train", with_argument("pyramid", [numbers(0, 8, OUTPUTS)]), "picture"),
    ("train_points", with_argument("runs", 0), "something to learn from"),
    ("train_points", with_argument("coarse_runs", -3), "something to learn from"),
    ("train_points", with_argument("loss", "squares"), "distance or occupancy"),
    ("train_points", with_argument("samples", []), "nothing to learn from at that scale"),
    *(
        ("train_points", with_argument("samples", [(numbers(*positions), numbers(*truth))] * 2), message)
        for positions, truth, message in (
            ((RUN, 3), (RUN, OUTPUTS), "must be"),
            ((2 * RUN,), (RUN, OUTPUTS), "must be"),
            ((RUN, 2), (RUN, OUTPUTS + 1), "must be"),
            ((RUN, 2), (RUN * OUTPUTS,), "must be"),
            ((RUN, 2), (2 * RUN, OUTPUTS), "whole runs"),
            ((RUN + 1, 2), (RUN + 1, OUTPUTS), "whole runs"),
            ((0, 2), (0, OUTPUTS), "whole runs"),
        )
    ),
]


@pytest.mark.parametrize(
    ("name", "change", "message"), REFUSED, ids=lambda part: part if type(part) is str else ""
)
def test_what_no_kernel_can_do_is_refused(name: str, change: Callable[[Call], None], message: str) -> None:
    call = calls()[name]
    change(call)
    with pytest.raises(ValueError, match=message):
        getattr(native, name)(**call)


TABLES = [
    (table, name) for table in ("parameters", "first", "second") for name in calls()["train"][table]
    if (table, name) != ("first", "encoder.features")
]  # fmt: skip


@pytest.mark.parametrize("function", ["train", "train_points"])
@pytest.mark.parametrize(("table", "name"), TABLES)
def test_tables_of_training_are_checked_too(table: str, name: str, function: str) -> None:
    for change, error in ((strided, TypeError), (doubled, TypeError), (longer, ValueError)):
        call = calls()[function]
        call[table][name] = change(call[table][name])
        with pytest.raises(error):
            getattr(native, function)(**call)


@pytest.mark.parametrize("change", WRONG_KINDS)
@pytest.mark.parametrize("part", [0, 1])
def test_samples_are_checked_too(part: int, change: Callable[[np.ndarray], object]) -> None:
    call = calls()["train_points"]
    pair = [*call["samples"][1]]
    pair[part] = change(pair[part])
    call["samples"][1] = pair
    with pytest.raises(TypeError):
        native.train_points(**call)


def test_only_pictures_are_learned_from_a_pyramid() -> None:
    root = Tree.root(4, (3, 2, 5))
    solid = Lattice.build(root.split(root.leaf_rows), 4)
    call = training(geometry_of(solid), numbers(solid.vertices + 1, CHANNELS)) | pictures()
    with pytest.raises(ValueError, match="only pictures"):
        native.train(**call)


def longer(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, values[:1]])


def test_no_reference_leaks_at_exit() -> None:
    code = (
        "import numpy as np; from acorn_svc import _native as n;"
        "a, layer = np.ones((2, 3), 'f4'), (np.ones((3, 1), 'f4'), np.ones(1, 'f4'));"
        "n.decode(a, [layer], np.empty((2, 1), 'f4'), '', 3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert "nanobind" not in done.stderr


def trained() -> Call:
    call = calls()["train"]
    native.train(**call)
    return call


def same(mine: Call, other: Call) -> bool:
    tables = all(np.array_equal(mine["parameters"][n], other["parameters"][n]) for n in mine["parameters"])
    return tables and all(np.array_equal(mine[name], other[name]) for name in WRITTEN & mine.keys())


def test_callers_on_several_threads_do_not_disturb_each_other() -> None:
    alone = trained()
    with ThreadPoolExecutor(4) as callers:
        results = list(callers.map(lambda _: trained(), range(40)))
    assert all(same(result, alone) for result in results)


def _train_in_child(connection: Any) -> None:
    connection.send([*trained()["parameters"].values()])


def test_a_forked_child_can_compute() -> None:
    """Threads do not survive a fork: the child starts its own."""
    before = trained()
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_train_in_child, args=(there,))
    with warnings.catch_warnings():
        # what is tested is what Python 3.12 warns of
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    assert here.poll(60), "the child does not answer"
    for mine, other in zip(here.recv(), before["parameters"].values(), strict=True):
        np.testing.assert_array_equal(mine, other)
    child.join(60)
    assert child.exitcode == 0


def test_triangles_refuse_what_does_not_fit() -> None:
    vertices, faces = np.eye(3), np.array([[0, 1, 2]], np.int32)
    for wrong in (faces + 1, faces - 1, faces[:0]):
        with pytest.raises(ValueError, match=r"face|triangle"):
            native.Triangles(vertices, wrong, 1)
    with pytest.raises(ValueError, match="not finite"):
        native.Triangles(vertices * np.nan, faces, 1)
    for other in (vertices.astype(np.float32), strided(vertices), widely_strided(vertices)):
        with pytest.raises(TypeError):
            native.Triangles(other, faces, 1)
    triangles, points = native.Triangles(vertices, faces, 1), np.zeros((5, 3))
    with pytest.raises(ValueError, match="another shape"):
        triangles.winding(points, 2.0, empty(4), WIDEST, 1)
    with pytest.raises(ValueError, match="accuracy"):
        triangles.signed_distance(points, 1.0, 0.5, empty(5), WIDEST, 1)
    with pytest.raises(ValueError, match="saturate"):
        triangles.signed_distance(points, -1.0, 2.0, empty(5), WIDEST, 1)
    with pytest.raises(ValueError, match="not finite"):
        triangles.winding(points * np.nan, 2.0, empty(5), WIDEST, 1)
    with pytest.raises(ValueError, match="does not run"):
        triangles.winding(points, 2.0, empty(5), "abacus", 1)
    with pytest.raises(ValueError, match="grid"):
        triangles.occupied(0.0, 0.0, 0.0, 0.0, 1, 1, 1, 1)
    with pytest.raises(TypeError):
        triangles.winding(np.zeros((5, 3), np.float32), 2.0, empty(5), WIDEST, 1)
