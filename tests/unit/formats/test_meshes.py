"""Mesh files: every kind becomes the same plain triangles; everything else is one of our errors."""

from __future__ import annotations

import base64
import multiprocessing
import re
import resource
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from small_meshes import (
    CUBE_FACES,
    CUBE_QUADS,
    CUBE_VERTICES,
    Builder,
    chunk,
    cube_builder,
    glb,
    triangles_of,
    volume,
)

from acorn_svc.errors import AcornError, BadMesh, LimitExceeded, UnsupportedMedia
from acorn_svc.field.mesh import Mesh
from acorn_svc.formats.glb import to_linear, to_srgb
from acorn_svc.formats.images import encode_image
from acorn_svc.formats.mesh_pieces import triangulate
from acorn_svc.formats.meshes import MeshHeader, MeshLimits, MeshReading, inspect_mesh, read_mesh

DATA = Path(__file__).parents[4] / "shared" / "data"
BAD = DATA / "bad" / "meshes"
READ_SECONDS = 60
READ_BYTES = 2**30

Save = Callable[[bytes | str], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a file whose name says nothing about its kind."""

    def write(content: bytes | str) -> Path:
        path = tmp_path / "mesh.bin"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def _obj(vertices: Any, faces: Any, first: int = 1) -> str:
    lines = ["v " + " ".join(f"{x:.9g}" for x in vertex) for vertex in vertices]
    return "\n".join([*lines, *("f " + " ".join(str(i + first) for i in face) for face in faces)]) + "\n"


def _ply(order: str, vertices: Any, faces: Any, count: str = "uchar", extra: str = "") -> bytes:
    """A binary PLY with faces of any lengths."""
    sign, code = {"little": "<", "big": ">"}[order], {"uchar": "B", "uint": "I", "int": "i"}[count]
    head = (
        f"ply\nformat binary_{order}_endian 1.0\nelement vertex {len(vertices)}\n"
        f"property double x\nproperty double y\nproperty double z\n{extra}"
        f"element face {len(faces)}\nproperty list {count} int vertex_indices\nend_header\n"
    )
    body = b"".join(struct.pack(f"{sign}3d", *vertex) for vertex in vertices)
    body += b"".join(struct.pack(f"{sign}{code}{len(face)}i", len(face), *face) for face in faces)
    return head.encode() + body


CUBE = trimesh.Trimesh(CUBE_VERTICES, CUBE_FACES, process=False)
CUBE_OBJ = _obj(CUBE_VERTICES, CUBE_FACES)
INDEX = re.compile(r"(?<=^f )(\d+) (\d+)", re.MULTILINE)
CUBE_FILES = {
    "ply ascii": CUBE.export(file_type="ply", encoding="ascii"),
    "ply little": _ply("little", CUBE_VERTICES, CUBE_FACES),
    "ply big": _ply("big", CUBE_VERTICES, CUBE_FACES, "uint"),
    "ply trimesh": CUBE.export(file_type="ply"),
    "ply quads": _ply("little", CUBE_VERTICES, CUBE_QUADS),
    "ply mixed": _ply("big", CUBE_VERTICES, [*CUBE_QUADS[:5], *CUBE_QUADS[5, [[0, 1, 2], [0, 2, 3]]]]),
    "stl binary": CUBE.export(file_type="stl"),
    "stl ascii": CUBE.export(file_type="stl_ascii"),
    "stl named": CUBE.export(file_type="stl_ascii").replace("solid", "solid \xdf", 1).encode("latin-1"),
    "obj": CUBE_OBJ,
    "obj quads": _obj(CUBE_VERTICES, CUBE_QUADS),
    "obj negative": _obj(CUBE_VERTICES, CUBE_FACES - 8, first=0),
    "obj bytes before": "\ufeff" + CUBE_OBJ,
    "obj windows": CUBE_OBJ.replace("\n", "\r\n"),
    "obj utf-16": CUBE_OBJ.encode("utf-16"),
    "obj normals": "mtllib a.mtl\nvn 0 0 1\nusemtl b\n" + INDEX.sub(r"\1//1 \2/7/1", CUBE_OBJ),
    "off": CUBE.export(file_type="off"),
    "glb": cube_builder().bytes(),
    "glb trimesh": CUBE.export(file_type="glb"),
}  # fmt: skip


@pytest.mark.parametrize("name", CUBE_FILES)
def test_every_kind_holds_the_same_cube(save: Save, name: str) -> None:
    reading = read_mesh(save(CUBE_FILES[name]))
    mesh = reading.mesh
    assert reading.format == name.split()[0]
    assert (mesh.vertices.dtype, mesh.faces.dtype) == (np.float64, np.int32)
    assert len(mesh.vertices) == 8
    assert volume(mesh.vertices, mesh.faces) == pytest.approx(1)
    if "quads" not in name and "mixed" not in name:
        expected = triangles_of(CUBE_VERTICES, CUBE_FACES)
        assert np.array_equal(triangles_of(mesh.vertices, mesh.faces), expected)
    assert mesh.colours is mesh.texture is mesh.normals is None


def test_vertices_keep_their_order_and_value(save: Save) -> None:
    vertices = CUBE_VERTICES * [1e-3, 1e6, np.pi] + [0.1, -7, 1e5]
    mesh = read_mesh(save(_ply("little", vertices, CUBE_FACES))).mesh
    assert np.array_equal(mesh.vertices, vertices)
    assert np.array_equal(mesh.faces, CUBE_FACES)


def test_the_header_tells_what_reading_gives(save: Save) -> None:
    assert inspect_mesh(save(CUBE_OBJ)) == MeshHeader(8, 12, "obj", has_colours=False)


# polygons


def _areas(vertices: Any, faces: Any) -> Any:
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


@pytest.mark.parametrize("start", range(4))
def test_concave_quads_are_cut_inside(start: int) -> None:
    dart = np.array([[0, 0, 0], [2, 1, 0], [0, 2, 0], [0.5, 1, 0]], np.float64)
    ring = np.roll(np.arange(4), start)
    faces, owners = triangulate(dart, ring, np.array([4]), MeshLimits())
    assert owners.tolist() == [0, 0]
    assert _areas(dart, faces).sum() == pytest.approx(1.5)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("turn", [1, -1])
def test_concave_polygons_are_cut_inside(axis: int, turn: int) -> None:
    """A star: its triangles add up to its area, all turn the same way, and each edge stays."""
    angles = np.arange(16) / 16 * 2 * np.pi * turn
    radii = np.where(np.arange(16) % 2, 0.3, 1.0)
    flat = np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
    star = np.insert(flat, axis, 0.25, axis=1)
    x, y = flat.T
    area = abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
    faces, _ = triangulate(star, np.arange(16), np.array([16]), MeshLimits())
    assert len(faces) == 14
    assert _areas(star, faces).sum() == pytest.approx(area)
    edges = {(int(a), int(b)) for f in faces for a, b in zip(f, np.roll(f, -1), strict=True)}
    assert {(i, (i + 1) % 16) for i in range(16)} <= edges


def test_polygons_with_two_corners_are_left_out_and_told(save: Save) -> None:
    reading = read_mesh(save(CUBE_OBJ + "f 1 2\n"))
    assert len(reading.mesh.faces) == 12
    assert reading.repairs == ["dropped 1 face with fewer than three corners"]


def test_relative_indices_count_from_where_they_stand(save: Save) -> None:
    above = "".join(f"v {x} 0 0\nv {x} 1 0\nv {x} 0 1\nf -3 -2 -1\n" for x in range(3))
    mesh = read_mesh(save(above)).mesh
    assert mesh.vertices[mesh.faces][:, :, 0].tolist() == [[0] * 3, [1] * 3, [2] * 3]


# colours


RAINBOW = np.random.default_rng(3).integers(0, 256, (8, 3)).astype(np.uint8)


def _coloured(mesh: Mesh) -> dict[tuple[float, ...], tuple[int, ...]]:
    assert mesh.colours is not None
    assert mesh.colours.dtype == np.uint8
    return {tuple(v.tolist()): tuple(c.tolist()) for v, c in zip(mesh.vertices, mesh.colours, strict=True)}


def _expected() -> dict[tuple[float, ...], tuple[int, ...]]:
    return {tuple(v.tolist()): tuple(c.tolist()) for v, c in zip(CUBE_VERTICES, RAINBOW, strict=True)}


def _coloured_files() -> dict[str, bytes | str]:
    coloured = trimesh.Trimesh(CUBE_VERTICES, CUBE_FACES, vertex_colors=RAINBOW, process=False)
    rows = [f"v {' '.join(map(str, [*v, *(c / 255)]))}" for v, c in zip(CUBE_VERTICES, RAINBOW, strict=True)]
    bytes_rows = [f"v {' '.join(map(str, [*v, *c]))}" for v, c in zip(CUBE_VERTICES, RAINBOW, strict=True)]
    faces = ["f " + " ".join(map(str, face + 1)) for face in CUBE_FACES]
    linear = to_linear(RAINBOW)
    files: dict[str, bytes | str] = {
        "ply": coloured.export(file_type="ply"),
        "ply ascii": coloured.export(file_type="ply", encoding="ascii"),
        "obj": "\n".join(rows + faces),
        "obj bytes": "\n".join(bytes_rows + faces),
    }
    for name, array in {
        "glb float": linear.astype(np.float32),
        "glb 16 bit": np.rint(np.c_[linear, np.ones(8)] * 65_535).astype(np.uint16),
    }.items():
        builder = Builder()
        colours = builder.accessor(array, normalized=array.dtype != np.float32)
        builder.primitive(CUBE_VERTICES, CUBE_FACES, attributes=[("COLOR_0", colours)])
        files[name] = builder.bytes()
    return files


@pytest.mark.parametrize("name", list(_coloured_files()))
def test_vertex_colours_are_read(save: Save, name: str) -> None:
    assert _coloured(read_mesh(save(_coloured_files()[name])).mesh) == _expected()


def test_colours_that_are_no_numbers_are_black(save: Save) -> None:
    rows = [f"v {x} {y} {z} nan nan inf" for x, y, z in CUBE_VERTICES]
    faces = ["f " + " ".join(map(str, face + 1)) for face in CUBE_FACES]
    colours = read_mesh(save("\n".join(rows + faces))).mesh.colours
    assert colours is not None
    assert colours.tolist() == [[0, 0, 255]] * 8


def test_face_colours_split_the_vertices(save: Save) -> None:
    colours = np.random.default_rng(5).integers(0, 256, (12, 3)).astype(np.uint8)
    lines = [
        "ply", "format ascii 1.0", "element vertex 8", "property float x", "property float y",
        "property float z", "element face 12", "property list uchar int vertex_index",
        "property uchar red", "property uchar green", "property uchar blue", "end_header",
        *(" ".join(map(str, v)) for v in CUBE_VERTICES),
        *(" ".join(map(str, [3, *f, *c])) for f, c in zip(CUBE_FACES, colours, strict=True)), "",
    ]  # fmt: skip
    mesh = read_mesh(save("\n".join(lines))).mesh
    assert mesh.colours is not None
    assert np.array_equal(mesh.colours[mesh.faces], np.repeat(colours[:, None], 3, axis=1))
    assert np.array_equal(mesh.vertices[mesh.faces], CUBE_VERTICES[CUBE_FACES])


def test_every_stored_colour_survives_being_linear() -> None:
    stored = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_srgb(np.rint(to_linear(stored) * 65_535) / 65_535), stored)


# GLB scenes and materials


def test_nodes_put_their_meshes_where_they_say(save: Save) -> None:
    builder = cube_builder()
    turned = {"mesh": 0, "rotation": [0, 0, np.sqrt(0.5), np.sqrt(0.5)], "scale": [2, 1, 1]}
    matrix = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 10, 0, 0, 1]
    builder.document["nodes"] = [{"children": [1], "matrix": matrix}, {**turned, "translation": [0, 5, 0]}]
    mesh = read_mesh(save(builder.bytes())).mesh
    # scaled along x, turned by 90 degrees about z (x to y), moved by (10, 5, 0)
    expected = np.stack([-CUBE_VERTICES[:, 1] + 10, 2 * CUBE_VERTICES[:, 0] + 5, CUBE_VERTICES[:, 2]], 1)
    assert np.allclose(mesh.vertices, expected)


def test_a_mirrored_node_keeps_its_outside_out(save: Save) -> None:
    open_box = CUBE_FACES[1:]  # not closed: nothing but the mirror tells which side is out
    builder = Builder()
    builder.primitive(CUBE_VERTICES, open_box)
    builder.document["nodes"] = [{"mesh": 0, "scale": [-1, 1, 1]}]
    mesh = read_mesh(save(builder.bytes())).mesh
    assert volume(mesh.vertices, mesh.faces) > 0


def test_instances_are_joined(save: Save) -> None:
    builder = cube_builder()
    builder.document["scenes"] = [{"nodes": [0, 1, 2]}]
    builder.document["nodes"] = [{"mesh": 0, "translation": [3 * i, 0, 0]} for i in range(3)]
    mesh = read_mesh(save(builder.bytes())).mesh
    assert (len(mesh.vertices), len(mesh.faces)) == (24, 36)
    assert volume(mesh.vertices, mesh.faces) == pytest.approx(3)


@pytest.mark.parametrize(("mode", "order"), [(5, [0, 1, 2, 3]), (6, [0, 1, 3, 2])])
def test_strips_and_fans(save: Save, mode: int, order: list[int]) -> None:
    square = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], np.float64)
    builder = Builder()
    builder.primitive(square, np.array(order), mode=mode)
    mesh = read_mesh(save(builder.bytes())).mesh
    normals = np.cross(*(mesh.vertices[mesh.faces[:, i]] - mesh.vertices[mesh.faces[:, 0]] for i in (1, 2)))
    assert normals.tolist() == [[0, 0, 1]] * 2


def test_points_and_lines_beside_triangles_are_left_out(save: Save) -> None:
    builder = cube_builder()
    builder.primitive(CUBE_VERTICES, None, mode=0)
    assert len(read_mesh(save(builder.bytes())).mesh.faces) == 12


SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float64)
SQUARE_FACES = np.array([[0, 1, 2], [0, 2, 3]])
# glTF's v points down: the first vertex sees the upper left pixel
SQUARE_UV = np.array([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]], np.float32)
FOUR = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
SEEN = [[255, 0, 0], [0, 255, 0], [255, 255, 0], [0, 0, 255]]


def _textured(images: list[Any], factor: list[float] | None = None, **more: Any) -> Builder:
    builder = Builder()
    for index, pixels in enumerate(images):
        uv = builder.accessor(SQUARE_UV)
        texture = builder.image(encode_image(pixels, "png"))
        material = builder.material(factor, texture)
        attributes = [("TEXCOORD_0", uv)]
        builder.primitive(
            SQUARE + np.array([0, 0, index]), SQUARE_FACES, attributes=attributes, material=material
        )
    return builder


def _look_up(mesh: Mesh) -> Any:
    """Colours at the vertices as `Texture` says: v points up, the first row is at v = 1."""
    assert mesh.texture is not None
    assert mesh.colours is None
    height, width = mesh.texture.pixels.shape[:2]
    u, v = mesh.texture.coordinates.T
    return mesh.texture.pixels[((1 - v) * height).astype(int), (u * width).astype(int)].tolist()


def test_a_texture_is_kept(save: Save) -> None:
    reading = read_mesh(save(_textured([FOUR]).bytes()))
    assert _look_up(reading.mesh) == SEEN
    assert not any("texture" in sentence for sentence in reading.repairs)


def test_a_texture_in_a_data_uri_is_kept(save: Save) -> None:
    builder = _textured([FOUR])
    uri = "data:image/png;base64," + base64.b64encode(encode_image(FOUR, "png")).decode()
    builder.document["images"] = [{"uri": uri}]
    assert _look_up(read_mesh(save(builder.bytes())).mesh) == SEEN


def test_a_texture_is_multiplied_by_its_factor_in_linear_light(save: Save) -> None:
    mesh = read_mesh(save(_textured([FOUR], [0.5, 1, 0, 1]).bytes())).mesh
    assert _look_up(mesh) == [[188, 0, 0], [0, 255, 0], [188, 255, 0], [0, 0, 0]]


def test_a_transformed_texture(save: Save) -> None:
    builder = _textured([FOUR])
    # half a picture to the right: columns change places
    info = builder.document["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]
    info["extensions"] = {"KHR_texture_transform": {"offset": [0.5, 0.0]}}
    mesh = read_mesh(save(builder.bytes())).mesh
    assert mesh.texture is not None
    mesh.texture.coordinates[:, 0] %= 1
    assert _look_up(mesh) == [SEEN[i] for i in (1, 0, 3, 2)]


def test_several_textures_become_colours_and_that_is_told(save: Save) -> None:
    reading = read_mesh(save(_textured([FOUR, FOUR[::-1]]).bytes()))
    assert reading.mesh.texture is None
    assert reading.mesh.colours is not None
    assert reading.mesh.colours.tolist() == SEEN + [SEEN[i] for i in (3, 2, 1, 0)]
    assert any("2 textures" in sentence for sentence in reading.repairs)


def test_a_plain_material_colours_the_vertices(save: Save) -> None:
    builder = Builder()
    builder.primitive(SQUARE, SQUARE_FACES, material=builder.material([1, 0.5, 0, 1]))
    colours = read_mesh(save(builder.bytes())).mesh.colours
    assert colours is not None
    assert colours.tolist() == [[255, 188, 0]] * 4
    builder.material()
    builder.document["meshes"][0]["primitives"][0]["material"] = 1
    assert read_mesh(save(builder.bytes())).mesh.colours is None


def test_seams_of_a_texture_stay(save: Save) -> None:
    """Vertices at one place with two texture coordinates stay two, and are one for the windings."""
    builder = Builder()
    corners = CUBE_FACES.ravel()
    faces = np.arange(36).reshape(-1, 3)
    faces[4] = faces[4][::-1]
    uv = builder.accessor(np.random.default_rng(0).random((36, 2)).astype(np.float32))
    material = builder.material(None, builder.image(encode_image(FOUR, "png")))
    builder.primitive(CUBE_VERTICES[corners], faces, attributes=[("TEXCOORD_0", uv)], material=material)
    reading = read_mesh(save(builder.bytes()))
    assert len(reading.mesh.vertices) == 36
    assert reading.repairs == ["turned 1 face round to agree with the others"]
    assert volume(reading.mesh.vertices, reading.mesh.faces) == pytest.approx(1)


# repairs


def _read(save: Save, vertices: Any, faces: Any) -> MeshReading:
    return read_mesh(save(_ply("little", vertices, faces)))


def _sphere(radius: float, centre: tuple[float, float, float] = (0, 0, 0)) -> tuple[Any, Any]:
    ball = trimesh.creation.icosphere(subdivisions=2, radius=radius)
    return np.asarray(ball.vertices) + centre, np.asarray(ball.faces)


def _together(*meshes: tuple[Any, Any]) -> tuple[Any, Any]:
    starts = np.cumsum([0, *(len(v) for v, _ in meshes)])
    return (
        np.concatenate([v for v, _ in meshes]),
        np.concatenate([f + s for (_, f), s in zip(meshes, starts, strict=False)]),
    )


def test_a_sound_mesh_needs_no_repair(save: Save) -> None:
    assert _read(save, *_sphere(1)).repairs == []


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_faces_agree_with_the_majority(save: Save, share: float) -> None:
    vertices, faces = _sphere(1)
    wrong = np.random.default_rng(1).permutation(len(faces))[: int(share * len(faces))]
    mixed = faces.copy()
    mixed[wrong] = mixed[wrong][:, ::-1]
    reading = _read(save, vertices, mixed)
    assert np.array_equal(
        triangles_of(reading.mesh.vertices, reading.mesh.faces), triangles_of(vertices, faces)
    )
    assert reading.repairs == [f"turned {len(wrong)} faces round to agree with the others"]


def test_the_majority_decides_for_an_open_sheet(save: Save) -> None:
    vertices, faces = _sphere(1)
    half = faces[vertices[faces][:, :, 2].mean(1) < 0][:, ::-1]  # all inwards: nobody can tell
    reading = _read(save, vertices, half)
    assert np.array_equal(
        triangles_of(reading.mesh.vertices, reading.mesh.faces), triangles_of(vertices, half)
    )


def test_a_closed_part_is_turned_outside_out(save: Save) -> None:
    vertices, faces = _together(_sphere(1), _sphere(1, (5, 0, 0)))
    faces[len(faces) // 2 :] = faces[len(faces) // 2 :, ::-1]
    reading = _read(save, vertices, faces)
    single = volume(*_sphere(1))
    assert volume(reading.mesh.vertices, reading.mesh.faces) == pytest.approx(2 * single)
    assert reading.repairs == ["turned 1 closed part right side out"]


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("cavity", [False, True])
def test_a_cavity_stays_one(save: Save, inverted: bool, cavity: bool) -> None:
    outer, inner = _sphere(2), _sphere(1)
    expected = volume(*outer) + (-1 if cavity else 1) * volume(*inner)
    vertices, faces = _together(outer, (inner[0], inner[1][:, ::-1] if cavity else inner[1]))
    reading = _read(save, vertices, faces[:, ::-1] if inverted else faces)
    assert volume(reading.mesh.vertices, reading.mesh.faces) == pytest.approx(expected)
    assert bool(reading.repairs) == inverted


def test_a_moebius_strip_is_read_and_told(save: Save) -> None:
    steps, turns = 24, np.arange(24) / 24 * 2 * np.pi
    sides = [
        np.stack([(2 + w * np.cos(turns / 2)) * np.cos(turns), (2 + w * np.cos(turns / 2)) * np.sin(turns),
                  w * np.sin(turns / 2)], 1)
        for w in (-0.5, 0.5)
    ]  # fmt: skip
    quads = [[i, i + 1, steps + i + 1, steps + i] for i in range(steps - 1)]
    quads.append([steps - 1, steps, 0, 2 * steps - 1])
    reading = _read(save, np.concatenate(sides), quads)
    assert len(reading.mesh.faces) == 2 * steps
    assert any("one side only" in sentence for sentence in reading.repairs)


def test_what_says_nothing_is_dropped_and_told(save: Save) -> None:
    vertices = np.concatenate([CUBE_VERTICES, [[9, 9, 9]], CUBE_VERTICES[:1]])
    more = [[0, 9, 1], CUBE_FACES[3][[1, 2, 0]], [5, 5, 6]]
    reading = _read(save, vertices, [*CUBE_FACES, *more])
    assert reading.repairs == [
        "dropped 1 vertex that no face uses",
        "dropped 2 faces with two corners at the same place",
        "dropped 1 face that another repeats",
        "joined 1 vertex with others at the same place",
    ]
    assert np.array_equal(reading.mesh.vertices, CUBE_VERTICES)
    assert np.array_equal(reading.mesh.faces, CUBE_FACES)


def test_holes_and_tangles_are_counted(save: Save) -> None:
    hole = _read(save, CUBE_VERTICES, CUBE_FACES[1:])
    assert hole.repairs == ["3 boundary edges: the shape has holes; they are closed by winding number"]
    side = np.concatenate([CUBE_VERTICES, CUBE_VERTICES + np.array([1, 1, 0])])
    touching = _read(save, side, np.concatenate([CUBE_FACES, CUBE_FACES + 8]))
    assert "1 edge where more than two faces meet" in touching.repairs
    assert volume(touching.mesh.vertices, touching.mesh.faces) == pytest.approx(2)


def test_touching_parts_are_turned_one_by_one(save: Save) -> None:
    side = np.concatenate([CUBE_VERTICES, CUBE_VERTICES + np.array([1, 1, 0])])
    reading = _read(save, side, np.concatenate([CUBE_FACES, CUBE_FACES[:, ::-1] + 8]))
    assert volume(reading.mesh.vertices, reading.mesh.faces) == pytest.approx(2)


def test_a_sheet_with_two_faces_has_no_inside_to_turn(save: Save) -> None:
    rows, columns = np.meshgrid(np.arange(5) * 0.1, np.arange(5) * 0.3, indexing="ij")
    sheet = np.stack([rows, columns, np.sin(rows + columns)], axis=-1).reshape(-1, 3)
    corners = np.arange(20).reshape(4, 5)[:, :4].ravel()[:, None]
    faces = np.concatenate([corners + np.array([0, 5, 6]), corners + np.array([0, 6, 1])])
    reading = _read(save, sheet, np.concatenate([faces, faces[:, ::-1]]))
    assert len(reading.mesh.faces) == 2 * len(faces)
    assert not any("right side out" in sentence for sentence in reading.repairs)


def test_too_many_textures_are_refused(save: Save) -> None:
    with pytest.raises(LimitExceeded) as caught:
        read_mesh(save(_textured([FOUR, FOUR[::-1]]).bytes()), MeshLimits(max_textures=1))
    assert (caught.value.limit, caught.value.value) == ("max_mesh_textures", 1)


def test_the_size_does_not_matter(save: Save) -> None:
    for scale in (1e-20, 1e20):
        assert len(_read(save, CUBE_VERTICES * scale, CUBE_FACES).mesh.faces) == 12


# limits and other kinds


def test_limits_are_told_by_name(save: Save) -> None:
    for content in CUBE_FILES.values():
        with pytest.raises(LimitExceeded) as caught:
            read_mesh(save(content), MeshLimits(max_faces=11))
        assert (caught.value.limit, caught.value.value) == ("max_mesh_faces", 11)
        with pytest.raises(LimitExceeded) as caught:
            read_mesh(save(content), MeshLimits(max_vertices=7))
        assert (caught.value.limit, caught.value.value) == ("max_mesh_vertices", 7)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (encode_image(FOUR, "png"), "PNG"), (encode_image(FOUR, "jpg"), "JPEG"),
        (encode_image(FOUR, "webp"), "WebP"), (encode_image(FOUR, "tif"), "TIFF"),
        (b"GIF89a" + bytes(99), "GIF"), (b"%PDF-1.7", "PDF"), (b"PK\x03\x04" + bytes(99), "ZIP"),
        (b"Kaydara FBX Binary  \0", "FBX"), (b'{"asset": {"version": "2.0"}}', "glTF"),
        (b"<?xml version='1.0'?><COLLADA>", "XML"), (b"hello", "known kind"), (bytes(999), "known kind"),
        (b"# only a comment\n", "known kind"), (b"DRACO\x02\x02", "Draco"),
    ],
)  # fmt: skip
def test_other_kinds_are_refused_with_their_name(save: Save, content: bytes, name: str) -> None:
    with pytest.raises(UnsupportedMedia, match=r"PLY, STL, OBJ, OFF and GLB are read") as caught:
        read_mesh(save(content))
    assert name in str(caught.value)


# hostile files


def _refused(save: Save, content: bytes | str) -> str:
    with pytest.raises((BadMesh, UnsupportedMedia, LimitExceeded)) as caught:
        read_mesh(save(content))
    return str(caught.value)


TEXTS = ["off", "ply ascii", "stl ascii"]
CUT = ["ply little", "ply big", "ply mixed", "stl binary", "glb", "glb trimesh", *TEXTS]


@pytest.mark.parametrize("name", CUT)
def test_no_cut_file_is_read(save: Save, name: str) -> None:
    content = CUBE_FILES[name]
    whole = content.encode() if isinstance(content, str) else content
    if name in TEXTS:
        whole = whole.rstrip(b"\n")
    # a text cut within its last number still holds a number
    shortest = 2 if name in ("off", "ply ascii") else 1
    for length in range(0, len(whole) - shortest + 1, 5 if len(whole) < 2000 else 37):
        _refused(save, whole[:length])
    _refused(save, whole[:-shortest])


@pytest.mark.parametrize("name", ["ply little", "ply mixed", "stl binary"])
def test_no_file_with_more_behind_is_read(save: Save, name: str) -> None:
    content = CUBE_FILES[name]
    assert isinstance(content, bytes)
    _refused(save, content + b"\1")


@pytest.mark.parametrize("byte", [0, 10, 32, 65, 118, 255])
def test_files_of_one_byte(save: Save, byte: int) -> None:
    _refused(save, bytes([byte]))


def test_an_empty_file_is_a_bad_mesh(save: Save) -> None:
    with pytest.raises(BadMesh, match="empty"):
        read_mesh(save(b""))


@pytest.mark.parametrize("count", [13, 10**9, 2**32 - 1, 10**14, 10**30])
@pytest.mark.parametrize("element", ["vertex", "face"])
@pytest.mark.parametrize("name", ["ply little", "ply ascii"])
def test_lying_counts_in_ply(save: Save, name: str, element: str, count: int) -> None:
    content = CUBE_FILES[name]
    text = content if isinstance(content, bytes) else content.encode()
    right = 8 if element == "vertex" else 12
    _refused(
        save, text.replace(f"element {element} {right}\n".encode(), f"element {element} {count}\n".encode())
    )


@pytest.mark.parametrize("count", [0, 11, 13, 2**31, 2**32 - 1])
def test_lying_counts_in_stl(save: Save, count: int) -> None:
    content = CUBE_FILES["stl binary"]
    assert isinstance(content, bytes)
    _refused(save, content[:80] + struct.pack("<I", count) + content[84:])


@pytest.mark.parametrize(
    "counts", ["8 13", "9 12", "-1 12", "8 -1", "1e99 12", "nan nan", "8", "", f"{10**30} 1"]
)
def test_lying_counts_in_off(save: Save, counts: str) -> None:
    content = CUBE_FILES["off"]
    assert isinstance(content, str)
    _refused(save, content.replace("8 12 0", counts))


@pytest.mark.parametrize("length", [2**31 - 1, -1, -(2**31), 10**6])
@pytest.mark.parametrize("at", [0, 5])
def test_a_list_bomb_in_ply(save: Save, length: int, at: int) -> None:
    content = bytearray(_ply("little", CUBE_VERTICES, CUBE_FACES, "int"))
    face = len(content) - 12 * 16 + at * 16
    content[face : face + 4] = struct.pack("<i", length)
    assert "damaged" in _refused(save, bytes(content))


@pytest.mark.parametrize("index", [-1, 8, 999_999_999, -(2**31), 2**31 - 1])
def test_indices_out_of_range(save: Save, index: int) -> None:
    faces = CUBE_FACES.copy()
    faces[7, 1] = index
    assert "doesn't exist" in _refused(save, _ply("little", CUBE_VERTICES, faces))
    content = CUBE_FILES["off"]
    assert isinstance(content, str)
    _refused(save, content.replace("3 0 1 3", f"3 0 {index} 3"))
    builder = Builder()
    builder.primitive(CUBE_VERTICES, faces.astype(np.uint32))
    _refused(save, builder.bytes())
    obj_index = index + 1 if index > 0 else -9
    _refused(save, CUBE_OBJ + f"f 1 2 {obj_index}\n")
    _refused(save, CUBE_OBJ + "f 0 1 2\n")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_coordinates_that_are_no_numbers(save: Save, value: float) -> None:
    vertices = CUBE_VERTICES.copy()
    vertices[3, 1] = value
    _refused(save, _ply("little", vertices, CUBE_FACES))
    _refused(save, _obj(vertices, CUBE_FACES))
    with np.errstate(over="ignore"):
        builder = Builder()
        builder.primitive(vertices.astype(np.float32), CUBE_FACES)
    _refused(save, builder.bytes())


@pytest.mark.parametrize(
    "text", ["v 1 2", "v 1 2 x", "v 1 2 3.1+e2", "v", "f 1 2 x", "f 1.5 2 3", "f 1 2 99999999999999999999"]
)
def test_damaged_lines_in_obj(save: Save, text: str) -> None:
    _refused(save, text + " \n" + CUBE_OBJ)


def test_a_face_with_a_million_corners(save: Save) -> None:
    angles = np.arange(1000) / 500 * np.pi
    vertices = _obj(np.stack([np.cos(angles), np.sin(angles), angles], 1), [])
    path = save(vertices + "f" + (" " + " ".join(map(str, range(1, 1001)))) * 1000)
    with pytest.raises(LimitExceeded):
        read_mesh(path, MeshLimits(max_faces=999_997))
    assert len(read_mesh(path, MeshLimits(max_faces=999_998)).mesh.faces) < 999_998


def test_meshes_without_a_surface(save: Save) -> None:
    flat = CUBE_VERTICES * [1, 0, 0]
    for vertices in (flat, CUBE_VERTICES * 0, CUBE_VERTICES * 0 + 5):
        _refused(save, _ply("little", vertices, CUBE_FACES))
    assert "no triangles" in _refused(save, _ply("little", CUBE_VERTICES, []))
    assert "no triangles" in _refused(save, "v 0 0 0\nv 1 0 0\nl 1 2\n")
    builder = Builder()
    builder.primitive(CUBE_VERTICES, None, mode=1)
    assert "no triangles" in _refused(save, builder.bytes())


@pytest.mark.parametrize(
    "uri", ["file:///etc/passwd", "/etc/passwd", "mesh.bin", "http://localhost/a", "", "DATA:,x"]
)
@pytest.mark.parametrize("kind", ["buffers", "images"])
def test_nothing_outside_a_glb_is_opened(save: Save, kind: str, uri: str) -> None:
    builder = cube_builder()
    builder.bytes()
    builder.document.setdefault(kind, []).append({"uri": uri, "byteLength": 4})
    with pytest.raises(BadMesh, match="other files"):
        read_mesh(save(glb(builder.document, builder.binary)))


OPENED: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and OPENED is not None:
        OPENED.append(str(arguments[0]))


sys.addaudithook(_note)


def test_materials_of_an_obj_are_not_opened(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mtl").write_text("newmtl a\nmap_Kd a.png\n")
    monkeypatch.chdir(tmp_path)
    path = save("mtllib a.mtl\nusemtl a\nvt 0 0\n" + CUBE_OBJ)
    monkeypatch.setattr(sys.modules[__name__], "OPENED", [])
    read_mesh(path)
    assert [str(path)] == OPENED


HOSTILE_DOCUMENTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "count 2^31": lambda d: d["accessors"][0].update(count=2**31),
    "count 2^70": lambda d: d["accessors"][0].update(count=2**70),
    "count -1": lambda d: d["accessors"][0].update(count=-1),
    "count 0": lambda d: d["accessors"][1].update(count=0),
    "count true": lambda d: d["accessors"][0].update(count=True),
    "count float": lambda d: d["accessors"][0].update(count=8.0),
    "count text": lambda d: d["accessors"][0].update(count="8"),
    "indices not in threes": lambda d: d["accessors"][1].update(count=35),
    "offset": lambda d: d["accessors"][0].update(byteOffset=4),
    "negative offset": lambda d: d["accessors"][0].update(byteOffset=-4),
    "view too long": lambda d: d["bufferViews"][0].update(byteLength=10**9),
    "view starts behind": lambda d: d["bufferViews"][0].update(byteOffset=10**9),
    "stride": lambda d: d["bufferViews"][0].update(byteStride=252),
    "stride 0": lambda d: d["bufferViews"][0].update(byteStride=0),
    "buffer too long": lambda d: d["buffers"][0].update(byteLength=10**9),
    "no buffers": lambda d: d.pop("buffers"),
    "no accessors": lambda d: d.pop("accessors"),
    "no views": lambda d: d.pop("bufferViews"),
    "accessors no list": lambda d: d.update(accessors={"0": 1}),
    "accessor no object": lambda d: d.update(accessors=[1, 2]),
    "component": lambda d: d["accessors"][0].update(componentType=5),
    "component list": lambda d: d["accessors"][0].update(componentType=[]),
    "type": lambda d: d["accessors"][0].update(type="MAT4"),
    "type list": lambda d: d["accessors"][0].update(type=["VEC3"]),
    "positions scalar": lambda d: d["accessors"][0].update(type="SCALAR"),
    "float indices": lambda d: d["accessors"][1].update(componentType=5126),
    "sparse": lambda d: d["accessors"][0].update(sparse={"count": 1}),
    "no position": lambda d: d["meshes"][0]["primitives"][0].update(attributes={}),
    "attributes list": lambda d: d["meshes"][0]["primitives"][0].update(attributes=[]),
    "primitive null": lambda d: d["meshes"][0].update(primitives=[None]),
    "mode list": lambda d: d["meshes"][0]["primitives"][0].update(mode=[]),
    "index": lambda d: d["meshes"][0]["primitives"][0].update(indices=7),
    "index null": lambda d: d["meshes"][0]["primitives"][0].update(indices=None),
    "material": lambda d: d["meshes"][0]["primitives"][0].update(material=3),
    "node loop": lambda d: d["nodes"][0].update(children=[0]),
    "node twice": lambda d: d.update(nodes=[{"mesh": 0}, {"children": [0, 0]}], scenes=[{"nodes": [1]}]),
    "node list": lambda d: d.update(scenes=[{"nodes": [[0]]}]),
    "scene": lambda d: d.update(scene=9),
    "matrix": lambda d: d["nodes"][0].update(matrix=[1, 2, 3]),
    "matrix inf": lambda d: d["nodes"][0].update(matrix=[float("inf")] * 16),
    "matrix huge": lambda d: d["nodes"][0].update(matrix=[10**400] * 16),
    "scale text": lambda d: d["nodes"][0].update(scale=["a", "b", "c"]),
    "scale 0": lambda d: d["nodes"][0].update(scale=[0, 0, 0]),
    "scale huge": lambda d: d["nodes"][0].update(scale=[1e308, 1e308, 1e308]),
    "mesh": lambda d: d["nodes"][0].update(mesh=-1),
    "extension": lambda d: d.update(extensionsRequired=["KHR_something_else"]),
    "extension odd": lambda d: d.update(extensionsRequired=["../../etc/passwd"]),
    "extension number": lambda d: d.update(extensionsRequired=[5]),
    "no meshes": lambda d: d.update(meshes=[], nodes=[]),
    "colours": lambda d: d["meshes"][0]["primitives"][0]["attributes"].update(COLOR_0=1),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_DOCUMENTS)
def test_hostile_descriptions(save: Save, name: str) -> None:
    builder = cube_builder()
    builder.bytes()
    HOSTILE_DOCUMENTS[name](builder.document)
    with pytest.raises(BadMesh):
        read_mesh(save(glb(builder.document, builder.binary)))


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 500_000,
        b'{"a":' * 500_000,
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b'{"asset": ' + b"9" * 10_000 + b"}",
        b"",
    ],
)
def test_json_bombs(save: Save, text: bytes) -> None:
    _refused(save, glb(text))


def test_a_description_can_be_too_large(save: Save) -> None:
    with pytest.raises(LimitExceeded) as caught:
        read_mesh(save(cube_builder().bytes()), MeshLimits(max_gltf_json_bytes=100))
    assert (caught.value.limit, caught.value.value) == ("max_gltf_json_bytes", 100)


def test_many_instances_are_counted_before_they_are_made(save: Save) -> None:
    builder = cube_builder()
    builder.document["nodes"] = [{"mesh": 0}] * 100_000
    builder.document["scenes"] = [{"nodes": list(range(100_000))}]
    with pytest.raises(LimitExceeded) as caught:
        read_mesh(save(builder.bytes()), MeshLimits(max_faces=100_000))
    assert caught.value.limit == "max_mesh_faces"
    with pytest.raises(LimitExceeded) as caught:
        read_mesh(save(builder.bytes()))
    assert caught.value.limit == "max_mesh_parts"


@pytest.mark.parametrize(
    ("extension", "name"),
    [("KHR_draco_mesh_compression", "Draco"), ("EXT_meshopt_compression", "meshopt")],
)
def test_compressed_meshes_are_refused_with_a_clear_sentence(save: Save, extension: str, name: str) -> None:
    builder = cube_builder()
    builder.document["extensionsRequired"] = [extension]
    with pytest.raises(BadMesh, match=f"compressed with {name}"):
        read_mesh(save(builder.bytes()))


@pytest.mark.parametrize(
    "content", [b"GIF89a" + bytes(99), b"<svg/>", b"\x89PNG\r\n\x1a\n", b"\xabKTX 20\xbb"]
)
def test_textures_pass_the_same_gate_as_images(save: Save, content: bytes) -> None:
    builder = _textured([FOUR])
    builder.document["images"][0]["bufferView"] = builder.view(content)
    with pytest.raises(BadMesh, match="texture"):
        read_mesh(save(builder.bytes()))


def test_extra_chunks_are_ignored_and_cut_ones_are_not(save: Save) -> None:
    whole = cube_builder().bytes()
    more = whole + chunk(b"XYZ\0", bytes(8), b"\0")
    fits = more[:8] + struct.pack("<I", len(more)) + more[12:]
    assert len(read_mesh(save(fits)).mesh.faces) == 12
    _refused(save, more[:8] + struct.pack("<I", len(more) + 4) + more[12:])
    _refused(save, whole[:4] + struct.pack("<I", 1) + whole[8:])


@pytest.mark.parametrize("name", CUBE_FILES)
def test_damaged_bytes_never_escape(save: Save, name: str) -> None:
    content = CUBE_FILES[name]
    whole = content.encode() if isinstance(content, str) else content
    random = np.random.default_rng(len(name))
    for _ in range(60):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 3):
            damaged[at] = random.integers(256)
        try:
            mesh = read_mesh(save(bytes(damaged)), MeshLimits(10_000, 10_000)).mesh
        except (BadMesh, UnsupportedMedia, LimitExceeded) as error:
            assert "mesh.bin" not in error.message  # noqa: PT017
        else:
            assert np.isfinite(mesh.vertices).all()
            assert 0 <= mesh.faces.min() <= mesh.faces.max() < len(mesh.vertices)


def test_pillow_is_never_asked(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the image was opened by Pillow")

    monkeypatch.setattr(Image, "open", refuse)
    assert read_mesh(save(_textured([FOUR]).bytes())).mesh.texture is not None


# real files


def test_scans_are_read_whole() -> None:
    if not (DATA / "meshes").is_dir():
        pytest.skip("there is no folder 'meshes' of scans beside us")
    reading = read_mesh(DATA / "meshes" / "spot_6k.obj")
    assert (len(reading.mesh.faces), reading.repairs) == (5856, [])
    assert volume(reading.mesh.vertices, reading.mesh.faces) > 0


# Verdicts by hand, from a look at each file: ok with its number of faces, or the code of the error.
VERDICTS: dict[str, str | int] = {
    "OutOfMemory.off": "bad_mesh",  # says it has 353535235358 vertices
    "assimp_Spider_ascii.stl": 1312,  # of 1368, 56 have two corners at one place
    "assimp_Spider_binary.stl": 1312,
    "assimp_box_UTF16BE.obj": 12,  # has its mark: no reason to refuse a sound cube
    "assimp_box_without_lineending.obj": 12,
    "assimp_concave_polygon.obj": 62,  # 66 corners in one plane, two of them twice
    "assimp_cube_binary.ply": 12,
    "assimp_invalid.off": "bad_mesh",  # "3 4" faces, of which one is there
    "assimp_issue623.ply": "bad_mesh",  # its faces' line is missing in the header
    "assimp_number_formats.obj": "bad_mesh",  # 3.1+e2 is no number anywhere
    "assimp_point_cloud.obj": "bad_mesh",
    "assimp_points.ply": "bad_mesh",
    "assimp_regr_3429812.obj": 2,  # a quad, and its two triangles again
    "assimp_sphereWithHole.stl": 285,
    "assimp_testline.obj": "bad_mesh",  # lines
    "assimp_triangle_with_empty_solid.stl": 1,
    "assimp_triangle_with_two_solids.stl": 2,
    "empty.obj": "bad_mesh",
    "empty.off": "bad_mesh",
    "empty.ply": "bad_mesh",
    "malformed.obj": "bad_mesh",  # faces with corners 12 and 0, of 8
    "malformed2.obj": 10,  # one face is empty: a cube without its front
    "trimesh_busted.STL": 3878,
    "trimesh_comments.off": 12,
    "trimesh_empty.obj": "unsupported_media",  # one comment: it could be anything
    "trimesh_empty.ply": "bad_mesh",
    "trimesh_empty.stl": "bad_mesh",
    "trimesh_featuretype.STL": 3476,  # binary although its name starts with "ddlid"
    "trimesh_joined_tetrahedra.obj": 8,
    "trimesh_mirror.ply": 286,
    "trimesh_multibody.stl": 32,
    "trimesh_nancolor.obj": 12,  # a colour that is no number is none
    "trimesh_negative_indices.obj": 12,
    "trimesh_not_convex.obj": 96,
    "trimesh_notenoughindices.obj": 1,  # a face of two corners, and a sound one
    "trimesh_obj_wireframe.obj": "bad_mesh",  # lines
    "trimesh_ply_empty_header.ply": "bad_mesh",
    "trimesh_points_emptyface.ply": "bad_mesh",
    "trimesh_polygonfaces.obj": 3,
    "trimesh_quadknot.obj": 2880,
    "trimesh_rabbit.obj": 1252,
    "trimesh_shared.STL": 24,
    "trimesh_soup.stl": 100,
    "trimesh_stl_empty_bin.stl": "bad_mesh",
    "trimesh_whitespace.off": 12,
}


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + READ_BYTES, resource.RLIM_INFINITY))


def _verdict(path: Path) -> str | int:
    try:
        return len(read_mesh(path).mesh.faces)
    except AcornError as error:
        return error.code


def test_odd_and_broken_files_get_their_verdicts() -> None:
    """In a process of their own, which may use 1 GiB, so that a crash would be seen as one."""
    if not BAD.is_dir():
        pytest.skip("there is no folder 'bad/meshes' of bad files beside us")
    files = sorted(BAD.iterdir())
    assert {path.name for path in files} == set(VERDICTS)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_limit_memory) as child:
        found = dict(zip(files, child.map(_verdict, files, timeout=READ_SECONDS), strict=True))
    assert {path.name: verdict for path, verdict in found.items()} == VERDICTS
