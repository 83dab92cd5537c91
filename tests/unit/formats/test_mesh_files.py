"""Meshes as files: every format gives back the same triangles, to us and to others."""

from __future__ import annotations

import io
import json
import struct
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from small_meshes import triangles_of

from acorn_svc.errors import BadMesh, BadRequest
from acorn_svc.field.mesh import MeshPart
from acorn_svc.formats.glb import to_srgb
from acorn_svc.formats.mesh_files import MeshEncoding, stream_mesh, write_mesh_file
from acorn_svc.formats.meshes import read_mesh

FORMATS: list[MeshEncoding] = ["glb", "ply", "stl", "obj"]
BALL = trimesh.creation.icosphere(subdivisions=2)
# large, off-centre, and of numbers that are not round
VERTICES = (np.asarray(BALL.vertices) * [1, 2, np.pi] + [100, -0.1, 7]).astype(np.float32)
NORMALS = np.asarray(BALL.vertex_normals).astype(np.float32)
COLOURS = np.random.default_rng(0).integers(0, 256, (len(VERTICES), 3)).astype(np.uint8)
FACES = np.asarray(BALL.faces)


def _parts(coloured: bool = True, pieces: int = 4, dtype: type = np.int64) -> Iterator[MeshPart]:
    """The ball in pieces; a face comes as soon as all of its vertices have."""
    ends = np.linspace(0, len(VERTICES), pieces + 1).astype(int)
    last = FACES.max(axis=1)
    for start, end in pairwise(ends):
        colours = COLOURS[start:end] if coloured else None
        faces = FACES[(last >= start) & (last < end)].astype(dtype)
        yield MeshPart(VERTICES[start:end], NORMALS[start:end], colours, faces)


def _by_place(vertices: Any, values: Any) -> dict[tuple[float, ...], list[Any]]:
    places = np.asarray(vertices, np.float32).tolist()
    return {
        tuple(place): list(value) for place, value in zip(places, np.asarray(values).tolist(), strict=True)
    }


@pytest.mark.parametrize("coloured", [False, True])
@pytest.mark.parametrize("pieces", [1, 5])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_read(tmp_path: Path, format: MeshEncoding, pieces: int, coloured: bool) -> None:
    path = tmp_path / "mesh"
    write_mesh_file(_parts(coloured, pieces), format, path)
    reading = read_mesh(path)
    mesh = reading.mesh
    assert reading.format == format
    single = mesh.vertices.astype(np.float32)  # text holds as many digits as these need
    assert np.array_equal(triangles_of(single, mesh.faces), triangles_of(VERTICES, FACES))
    if coloured and format != "stl":
        assert _by_place(mesh.vertices, mesh.colours) == _by_place(VERTICES, COLOURS)
    else:
        assert mesh.colours is None
    assert list(tmp_path.iterdir()) == [path]  # nothing of the spools is left


@pytest.mark.parametrize("coloured", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_others_read_the_same(format: MeshEncoding, coloured: bool, tmp_path: Path) -> None:
    content = b"".join(stream_mesh(_parts(coloured), format, tmp_path))
    scene = trimesh.load_scene(io.BytesIO(content), file_type=format, process=False)
    (loaded,) = scene.geometry.values()
    single = loaded.vertices.astype(np.float32)
    assert np.array_equal(triangles_of(single, loaded.faces), triangles_of(VERTICES, FACES))
    if format != "stl":
        assert np.allclose(
            _sorted(loaded.vertices, loaded.vertex_normals), _sorted(VERTICES, NORMALS), atol=1e-5
        )
    if coloured and format in ("ply", "obj"):
        assert _by_place(loaded.vertices, loaded.visual.vertex_colors[:, :3]) == _by_place(VERTICES, COLOURS)


def _sorted(vertices: Any, values: Any) -> Any:
    places = np.asarray(vertices, np.float32)
    return np.asarray(values)[np.lexsort(places.T)]


def test_facets_of_an_stl_have_their_normals(tmp_path: Path) -> None:
    content = b"".join(stream_mesh(_parts(False), "stl", tmp_path))
    loaded = trimesh.load(io.BytesIO(content), file_type="stl", process=False)
    a, b, c = (np.asarray(loaded.vertices)[loaded.faces[:, i]] for i in range(3))
    expected = np.cross(b - a, c - a)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    stored = np.frombuffer(content[84:], np.dtype([("n", "<f4", 3), ("rest", "V38")]))["n"]
    assert np.allclose(stored, expected, atol=1e-5)


@pytest.mark.parametrize("coloured", [False, True])
@pytest.mark.parametrize("draco", [False, True])
def test_the_validator_finds_nothing(
    tmp_path: Path, gltf_errors: Callable[[Path], list[str]], coloured: bool, draco: bool
) -> None:
    if draco:
        pytest.importorskip("DracoPy")
    path = tmp_path / "mesh.glb"
    write_mesh_file(_parts(coloured), "glb", path, draco=draco)
    assert gltf_errors(path) == []


def test_the_validator_would_find_something(tmp_path: Path, gltf_errors: Callable[[Path], list[str]]) -> None:
    path = tmp_path / "mesh.glb"
    write_mesh_file(_parts(), "glb", path)
    path.write_bytes(path.read_bytes().replace(b'"POSITION"', b'"POSITIOX"'))
    assert gltf_errors(path) != []


def test_normals_without_a_direction_still_make_a_valid_file(
    tmp_path: Path, gltf_errors: Callable[[Path], list[str]]
) -> None:
    odd = NORMALS * 3
    odd[:3], odd[3:6] = 0, np.nan
    path = tmp_path / "mesh.glb"
    write_mesh_file([MeshPart(VERTICES, odd, None, FACES)], "glb", path)
    assert gltf_errors(path) == []


def _document(content: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<I", content[12:16])
    document: dict[str, Any] = json.loads(content[20 : 20 + length])
    return document


def test_a_glb_says_what_is_in_it(tmp_path: Path) -> None:
    content = b"".join(stream_mesh(_parts(), "glb", tmp_path))
    document = _document(content)
    assert document["asset"]["generator"] == "Acorn"
    assert struct.unpack("<I", content[8:12]) == (len(content),)
    positions = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    assert positions["min"] == VERTICES.min(axis=0).tolist()
    assert positions["max"] == VERTICES.max(axis=0).tolist()
    assert all(view["byteLength"] % 4 == 0 for view in document["bufferViews"])


def test_parts_are_taken_one_by_one(tmp_path: Path) -> None:
    """An OBJ is there as its parts come."""
    taken: list[int] = []

    def parts() -> Iterator[MeshPart]:
        for part in _parts(pieces=6):
            taken.append(len(part.vertices))
            yield part

    stream = stream_mesh(parts(), "obj", tmp_path)
    text = next(stream) + next(stream)
    assert b"v " in text
    assert len(taken) == 1
    assert b"".join([text, *stream]).count(b"\nv ") == len(VERTICES)
    assert len(taken) == 6


@pytest.mark.parametrize("format", FORMATS)
def test_a_closed_stream_leaves_no_files(tmp_path: Path, format: MeshEncoding) -> None:
    stream = stream_mesh(_parts(), format, tmp_path)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def test_faces_of_either_width_are_the_same(tmp_path: Path) -> None:
    for format in FORMATS:
        narrow = b"".join(stream_mesh(_parts(dtype=np.int32), format, tmp_path))
        assert narrow == b"".join(stream_mesh(_parts(), format, tmp_path))


# Draco


def test_draco_keeps_the_shape_to_its_precision(tmp_path: Path) -> None:
    codec = pytest.importorskip("DracoPy")
    plain = b"".join(stream_mesh(_parts(), "glb", tmp_path))
    content = b"".join(stream_mesh(_parts(), "glb", tmp_path, draco=True))
    assert len(content) < len(plain) / 2
    document = _document(content)
    (primitive,) = document["meshes"][0]["primitives"]
    view = document["bufferViews"][primitive["extensions"]["KHR_draco_mesh_compression"]["bufferView"]]
    start = len(content) - document["buffers"][0]["byteLength"]
    out = codec.decode(content[start : start + view["byteLength"]])
    ids = primitive["extensions"]["KHR_draco_mesh_compression"]["attributes"]
    assert set(ids) == {"POSITION", "NORMAL", "COLOR_0"}
    positions, normals, colours = (out.get_attribute_by_unique_id(i)["data"] for i in ids.values())
    assert len(positions) == document["accessors"][0]["count"] == len(VERTICES)
    assert out.faces.size == document["accessors"][-1]["count"] == FACES.size
    # the codec re-orders vertices: find each again
    distance = np.linalg.norm(positions[:, None] - VERTICES[None], axis=2)
    nearest = distance.argmin(axis=1)
    step = np.ptp(VERTICES, axis=0).max() / 2**14
    assert distance.min(axis=1).max() < step
    assert sorted(nearest.tolist()) == list(range(len(VERTICES)))
    assert ((normals * NORMALS[nearest]).sum(axis=1) > 0.999).all()
    assert np.array_equal(to_srgb(colours[:, :3] / 65_535), COLOURS[nearest])
    assert {frozenset(face) for face in nearest[out.faces].tolist()} == {frozenset(f) for f in FACES.tolist()}


def test_a_compressed_file_is_refused_on_reading(tmp_path: Path) -> None:
    pytest.importorskip("DracoPy")
    path = tmp_path / "mesh"
    write_mesh_file(_parts(), "glb", path, draco=True)
    with pytest.raises(BadMesh, match="Draco"):
        read_mesh(path)


def test_draco_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    with pytest.raises(BadRequest, match="not installed"):
        stream_mesh(_parts(), "glb", tmp_path, draco=True)


@pytest.mark.parametrize("format", ["ply", "stl", "obj"])
def test_only_glb_is_compressed(tmp_path: Path, format: MeshEncoding) -> None:
    with pytest.raises(BadRequest, match="Only GLB"):
        stream_mesh(_parts(), format, tmp_path, draco=True)


# what cannot be written


@pytest.mark.parametrize(
    ("format", "constant", "limit"),
    [
        ("glb", "MAX_GLB_BYTES", "max_glb_bytes"),
        ("ply", "MAX_PLY_VERTICES", "max_ply_vertices"),
        ("stl", "MAX_STL_TRIANGLES", "max_stl_triangles"),
    ],
)
def test_the_limits_of_formats_are_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: MeshEncoding, constant: str, limit: str
) -> None:
    monkeypatch.setattr(f"acorn_svc.formats.mesh_files.{constant}", 100)
    path = tmp_path / "mesh"
    with pytest.raises(BadRequest) as caught:
        write_mesh_file(_parts(), format, path)
    assert (caught.value.limit, caught.value.value) == (limit, 100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_cannot_be_written(tmp_path: Path, format: MeshEncoding) -> None:
    lonely = MeshPart(VERTICES, NORMALS, None, FACES[:0])
    for parts in ([], [lonely]):
        with pytest.raises(BadRequest, match="no surface"):
            b"".join(stream_mesh(parts, format, tmp_path))


def test_an_unknown_format_is_a_bad_request(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no mesh format"):
        stream_mesh(_parts(), "fbx", tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (MeshPart(VERTICES, NORMALS[1:], None, FACES), "wrong shape"),
        (MeshPart(VERTICES, NORMALS, COLOURS[:, :2], FACES), "wrong shape"),
        (MeshPart(VERTICES, NORMALS, None, FACES[:, :2]), "wrong shape"),
        (MeshPart(VERTICES * np.float32(np.nan), NORMALS, None, FACES), "not numbers"),
        (MeshPart(VERTICES, NORMALS, None, FACES + 1), "haven't come yet"),
        (MeshPart(VERTICES, NORMALS, None, FACES - 1), "haven't come yet"),
    ],
)
def test_parts_that_make_no_sense(
    tmp_path: Path, format: MeshEncoding, part: MeshPart, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        b"".join(stream_mesh([part], format, tmp_path))


@pytest.mark.parametrize("format", FORMATS)
def test_all_parts_have_colours_or_none(tmp_path: Path, format: MeshEncoding) -> None:
    first, *others = _parts(coloured=True)
    bare = MeshPart(first.vertices, first.normals, None, first.faces)
    with pytest.raises(ValueError, match="some have none"):
        b"".join(stream_mesh([bare, *others], format, tmp_path))
