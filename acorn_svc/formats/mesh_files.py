"""Meshes as files: GLB, PLY, STL and OBJ, written part by part.

A mesh arrives in parts because it may be larger than memory. OBJ is written as the parts come; the
other formats say at their beginning how much will follow, so the parts go to temporary files first.
Coordinates are written as they are in every format.
"""

from __future__ import annotations

import contextlib
import json
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from acorn_svc.errors import BadRequest
from acorn_svc.field.mesh import MeshPart
from acorn_svc.formats.files import replace_file
from acorn_svc.formats.glb import to_linear

MeshEncoding = Literal["glb", "ply", "stl", "obj"]

COPY_BYTES = 2**20
TEXT_ROWS = 16_384
GENERATOR = "Acorn"
MAX_GLB_BYTES = 2**32 - 1  # the format writes its length as 32 bits
MAX_STL_TRIANGLES = 2**32 - 1
MAX_PLY_VERTICES = 2**31 - 1
GLB_ALIGNMENT = 4
JSON_CHUNK, BINARY_CHUNK = 0x4E4F534A, 0x004E4942
FLOAT, UNSIGNED_SHORT, UNSIGNED_INT = 5126, 5123, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
WHITE_16_BIT = 65_535
DRACO = "KHR_draco_mesh_compression"
DRACO_COLOUR_ID = 2
DRACO_POSITION_BITS, DRACO_NORMAL_BITS = 14, 10
GLB_VERTEX = np.dtype([("position", "<f4", 3), ("normal", "<f4", 3)])
GLB_COLOURED_VERTEX = np.dtype([*GLB_VERTEX.descr, ("colour", "<u2", 4)])
VERTEX_OFFSETS = (0, 12, 24)  # of the fields, in bytes
PLY_VERTEX = np.dtype([("position", "<f4", 3), ("normal", "<f4", 3)])
PLY_COLOURED_VERTEX = np.dtype([*PLY_VERTEX.descr, ("colour", "u1", 3)])
PLY_FACE = np.dtype([("count", "u1"), ("corners", "<i4", 3)])
STL_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
STL_HEADER_BYTES = 80
UPRIGHT = np.array([0, 0, 1], np.float32)

Floats = NDArray[np.float32]


def stream_mesh(
    parts: Iterable[MeshPart], format: MeshEncoding, spool: Path, *, draco: bool = False
) -> Iterator[bytes]:
    """The bytes of a mesh file.

    Args:
        parts: of one mesh, see `MeshPart`; taken one by one.
        format: `glb`, `ply` (binary), `stl` (binary, no colours) or `obj` (text, colours behind the
            coordinates as most programs read them).
        spool: a folder for temporary files as large as the mesh; they are gone when the iterator
            ends or is closed.
        draco: compresses a GLB with Draco: positions to 14 bits of the mesh's size, normals to 10.
            The whole mesh is held in memory.

    Raises:
        BadRequest: there are no triangles; the mesh is too large for the format, whose limit the
            error names; `draco` is asked for another format or isn't installed.
        ValueError: a part is of the wrong shape, has coordinates that are no numbers, or refers to
            vertices that haven't come yet.
        OSError: the spool cannot be written.
    """
    if format not in get_args(MeshEncoding):
        raise BadRequest(f"There is no mesh format {format!r}; glb, ply, stl and obj are written.")
    if draco and format != "glb":
        raise BadRequest("Only GLB files are compressed with Draco.")
    checked = _Checked(parts)
    writer = _draco_glb if draco else _WRITERS[format]
    return writer(checked, spool)


def write_mesh_file(
    parts: Iterable[MeshPart], format: MeshEncoding, path: Path, *, draco: bool = False
) -> None:
    """Writes a mesh to `path`, which is replaced at once when all is written.

    Raises as `stream_mesh` does.
    """
    replace_file(path, stream_mesh(parts, format, path.parent, draco=draco))


@dataclass
class _Checked:
    """Parts that are checked as they pass, and what they add up to.

    Attributes:
        vertices, faces: how many have passed.
        coloured: whether they have colours; None before the first.
        low, high: the box around all vertices.
    """

    parts: Iterable[MeshPart]
    vertices: int = 0
    faces: int = 0
    coloured: bool | None = None
    low: Floats = field(default_factory=lambda: np.full(3, np.inf, np.float32))
    high: Floats = field(default_factory=lambda: np.full(3, -np.inf, np.float32))

    def __iter__(self) -> Iterator[MeshPart]:
        for part in self.parts:
            self._check(part)
            yield part
        if not self.faces:
            raise BadRequest("There is no surface to be written.")

    def _check(self, part: MeshPart) -> None:
        count = len(part.vertices)
        shapes = [part.vertices.shape, part.normals.shape]
        if part.colours is not None:
            shapes.append(part.colours.shape)
        if any(shape != (count, 3) for shape in shapes) or part.faces.shape[1:] != (3,):
            raise ValueError("a part of the mesh has arrays of the wrong shape")
        if self.coloured not in (None, part.colours is not None):
            raise ValueError("some parts of the mesh have colours and some have none")
        if not np.isfinite(part.vertices).all():
            raise ValueError("a part of the mesh has coordinates that are not numbers")
        self.coloured = part.colours is not None
        self.vertices += count
        self.faces += len(part.faces)
        if part.faces.size and (part.faces.min() < 0 or part.faces.max() >= self.vertices):
            raise ValueError("a part of the mesh refers to vertices that haven't come yet")
        if count:
            self.low = np.minimum(self.low, part.vertices.min(axis=0))
            self.high = np.maximum(self.high, part.vertices.max(axis=0))


def _check_limit(found: int, allowed: int, name: str, words: str) -> None:
    if found > allowed:
        message = f"The mesh would have {found} {words}; the format allows at most {allowed}."
        raise BadRequest(message, limit=name, value=allowed)


@contextlib.contextmanager
def _spools(folder: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Two files without a name, for vertices and faces."""
    with tempfile.TemporaryFile(dir=folder) as first, tempfile.TemporaryFile(dir=folder) as second:
        yield first, second


def _copied(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while block := file.read(COPY_BYTES):
        yield block


def _unit(normals: Floats) -> Floats:
    """Normals of length 1; those without a direction point up."""
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = normals / lengths
    return np.where(np.isfinite(unit).all(axis=1, keepdims=True), unit, UPRIGHT)


def _linear_colours(colours: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """`[n, 4]` as glTF has them: linear, opaque. 16 bits keep every dark tone."""
    rgba = np.full((len(colours), 4), WHITE_16_BIT, np.uint16)
    rgba[:, :3] = np.rint(to_linear(colours) * WHITE_16_BIT)
    return rgba


def _stream_glb(parts: _Checked, spool: Path) -> Iterator[bytes]:
    with _spools(spool) as (vertices, faces):
        for part in parts:
            vertices.write(_glb_records(part).tobytes())
            faces.write(part.faces.astype("<u4").tobytes())
            size = vertices.tell() + faces.tell()
            _check_limit(size, MAX_GLB_BYTES, "max_glb_bytes", "bytes")
        document = _document(parts, vertices.tell(), faces.tell())
        yield _glb_head(document, vertices.tell() + faces.tell())
        yield from _copied(vertices)
        yield from _copied(faces)


def _glb_records(part: MeshPart) -> NDArray[np.void]:
    records = np.empty(len(part.vertices), GLB_VERTEX if part.colours is None else GLB_COLOURED_VERTEX)
    records["position"], records["normal"] = part.vertices, _unit(part.normals)
    if part.colours is not None:
        records["colour"] = _linear_colours(part.colours)
    return records


def _document(parts: _Checked, vertex_bytes: int, face_bytes: int) -> dict[str, Any]:
    stride = vertex_bytes // parts.vertices
    accessors = _accessors(parts.vertices, 3 * parts.faces, parts.low, parts.high, bool(parts.coloured))
    *attributes, indices = accessors
    for accessor, offset in zip(attributes, VERTEX_OFFSETS, strict=False):
        accessor.update(bufferView=0, byteOffset=offset)
    indices.update(bufferView=1, byteOffset=0)
    views = [
        {"buffer": 0, "byteLength": vertex_bytes, "byteStride": stride, "target": ARRAY_BUFFER},
        {"buffer": 0, "byteOffset": vertex_bytes, "byteLength": face_bytes, "target": ELEMENT_ARRAY_BUFFER},
    ]
    return _scene(accessors, views, vertex_bytes + face_bytes)


def _accessors(
    vertices: int, corners: int, low: Floats, high: Floats, coloured: bool
) -> list[dict[str, Any]]:
    """Positions, normals, colours if there are any, and indices, without their places."""
    box = {"min": [float(value) for value in low], "max": [float(value) for value in high]}
    accessors: list[dict[str, Any]] = [
        {"componentType": FLOAT, "count": vertices, "type": "VEC3", **box},
        {"componentType": FLOAT, "count": vertices, "type": "VEC3"},
    ]
    if coloured:
        colour = {"componentType": UNSIGNED_SHORT, "normalized": True, "count": vertices, "type": "VEC4"}
        accessors.append(colour)
    accessors.append({"componentType": UNSIGNED_INT, "count": corners, "type": "SCALAR"})
    return accessors


def _scene(accessors: list[dict[str, Any]], views: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """A glTF document that shows one primitive."""
    names = ["POSITION", "NORMAL", "COLOR_0"][: len(accessors) - 1]
    primitive: dict[str, Any] = {
        "attributes": {name: index for index, name in enumerate(names)},
        "indices": len(accessors) - 1,
        "material": 0,
    }
    return {
        "asset": {"version": "2.0", "generator": GENERATOR},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [{"pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1}}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": size}],
    }


def _glb_head(document: dict[str, Any], size: int) -> bytes:
    """Everything before the binary data, whose `size` is padded."""
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % GLB_ALIGNMENT)
    total = 12 + 8 + len(text) + 8 + size
    _check_limit(total, MAX_GLB_BYTES, "max_glb_bytes", "bytes")
    return (
        struct.pack("<4sII", b"glTF", 2, total)
        + struct.pack("<II", len(text), JSON_CHUNK)
        + text
        + struct.pack("<II", size, BINARY_CHUNK)
    )


def _draco_glb(parts: _Checked, _spool: Path) -> Iterator[bytes]:
    try:
        import DracoPy
    except ImportError as error:
        raise BadRequest("Draco is not installed here: pip install 'acorn-svc[draco]'.") from error
    return _stream_draco(parts, DracoPy)


def _stream_draco(parts: _Checked, codec: Any) -> Iterator[bytes]:
    held = list(parts)
    colours = [part.colours for part in held if part.colours is not None]
    attributes = {DRACO_COLOUR_ID: _linear_colours(np.concatenate(colours))} if colours else None
    data: bytes = codec.encode(
        np.concatenate([np.asarray(part.vertices, np.float32) for part in held]),
        np.concatenate([part.faces for part in held]).astype(np.uint32),
        quantization_bits=DRACO_POSITION_BITS,
        normals=np.concatenate([_unit(part.normals) for part in held]).astype(np.float64),
        normal_quantization_bits=DRACO_NORMAL_BITS,
        generic_attributes=attributes,
    )
    # the codec joins vertices and rounds them: the document tells what comes out
    out = codec.decode(data)
    low, high = out.points.min(axis=0), out.points.max(axis=0)
    accessors = _accessors(len(out.points), out.faces.size, low, high, bool(colours))
    padding = -len(data) % GLB_ALIGNMENT
    document = _scene(accessors, [{"buffer": 0, "byteLength": len(data)}], len(data) + padding)
    primitive = document["meshes"][0]["primitives"][0]
    types = (codec.AttributeType.POSITION, codec.AttributeType.NORMAL, codec.AttributeType.GENERIC)
    found = {attribute["attribute_type"]: attribute["unique_id"] for attribute in out.attributes}
    ids = {name: found[kind] for name, kind in zip(primitive["attributes"], types, strict=False)}
    primitive["extensions"] = {DRACO: {"bufferView": 0, "attributes": ids}}
    document["extensionsUsed"] = document["extensionsRequired"] = [DRACO]
    yield _glb_head(document, len(data) + padding)
    yield data + bytes(padding)


def _stream_ply(parts: _Checked, spool: Path) -> Iterator[bytes]:
    with _spools(spool) as (vertices, faces):
        for part in parts:
            _check_limit(parts.vertices, MAX_PLY_VERTICES, "max_ply_vertices", "vertices")
            dtype = PLY_VERTEX if part.colours is None else PLY_COLOURED_VERTEX
            records = np.empty(len(part.vertices), dtype)
            records["position"], records["normal"] = part.vertices, _unit(part.normals)
            if part.colours is not None:
                records["colour"] = part.colours
            vertices.write(records.tobytes())
            triangles = np.empty(len(part.faces), PLY_FACE)
            triangles["count"], triangles["corners"] = 3, part.faces
            faces.write(triangles.tobytes())
        yield _ply_head(parts)
        yield from _copied(vertices)
        yield from _copied(faces)


def _ply_head(parts: _Checked) -> bytes:
    colours = ["red", "green", "blue"] if parts.coloured else []
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment made by {GENERATOR}",
        f"element vertex {parts.vertices}",
        *(f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")),
        *(f"property uchar {name}" for name in colours),
        f"element face {parts.faces}",
        "property list uchar int vertex_indices",
        "end_header\n",
    ]
    return "\n".join(lines).encode()


class _Vertices:
    """All vertices so far, in one array that doubles when it is full."""

    def __init__(self) -> None:
        self._array = np.empty((1024, 3), np.float32)
        self._count = 0

    def add(self, vertices: Floats) -> Floats:
        """All of them, the new ones at the end."""
        needed = self._count + len(vertices)
        if needed > len(self._array):
            larger = np.empty((max(needed, 2 * len(self._array)), 3), np.float32)
            larger[: self._count] = self._array[: self._count]
            self._array = larger
        self._array[self._count : needed] = vertices
        self._count = needed
        return self._array[:needed]


def _stream_stl(parts: _Checked, spool: Path) -> Iterator[bytes]:
    known = _Vertices()
    with tempfile.TemporaryFile(dir=spool) as triangles:
        for part in parts:
            _check_limit(parts.faces, MAX_STL_TRIANGLES, "max_stl_triangles", "triangles")
            corners = known.add(part.vertices)[part.faces]
            records = np.zeros(len(part.faces), STL_TRIANGLE)
            records["corners"] = corners
            records["normal"] = _face_normals(corners)
            triangles.write(records.tobytes())
        yield GENERATOR.encode().ljust(STL_HEADER_BYTES, b"\0") + struct.pack("<I", parts.faces)
        yield from _copied(triangles)


def _face_normals(corners: Floats) -> Floats:
    """Unit normals, 0 for triangles without an area, as the format asks for."""
    a, b, c = (corners[:, i].astype(np.float64) for i in range(3))
    normals = np.cross(b - a, c - a)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return (normals / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _stream_obj(parts: _Checked, _spool: Path) -> Iterator[bytes]:
    yield f"# made by {GENERATOR}\n".encode()
    for part in parts:
        values: NDArray[Any] = part.vertices
        line = "v %.9g %.9g %.9g\n"
        if part.colours is not None:
            values = np.concatenate([part.vertices, part.colours / 255.0], axis=1, dtype=np.float64)
            line = "v %.9g %.9g %.9g %.4f %.4f %.4f\n"
        yield from _lines(line, values)
        yield from _lines("vn %.5f %.5f %.5f\n", _unit(part.normals))
        yield from _lines("f %d//%d %d//%d %d//%d\n", np.repeat(part.faces + 1, 2, axis=1))


def _lines(line: str, rows: NDArray[Any]) -> Iterator[bytes]:
    for start in range(0, len(rows), TEXT_ROWS):
        block = rows[start : start + TEXT_ROWS]
        yield ((line * len(block)) % tuple(block.ravel().tolist())).encode()


_WRITERS: dict[str, Callable[[_Checked, Path], Iterator[bytes]]] = {
    "glb": _stream_glb, "ply": _stream_ply, "stl": _stream_stl, "obj": _stream_obj,
}  # fmt: skip
