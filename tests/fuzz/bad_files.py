"""Thousands of bad files, made from good ones by a seed: cut, flipped, lying, out of range.

Every file has a name that says how it was made, such as `ply/2/lie-17`, so that a failure can be made again.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyvips
import trimesh
from numpy.typing import NDArray
from PIL import Image
from small_fields import make_field, make_shape
from small_meshes import CUBE_FACES, CUBE_QUADS, CUBE_VERTICES, Builder, cube_builder

from acorn_svc.field.kinds import AnyField
from acorn_svc.formats.container import field_to_bytes

CUTS, FLIPS, LIES = 20, 40, 30
EXTREMES = (0, 1, 2**31 - 1, 2**32 - 1, 2**63)
ODD_FLOATS = (float("nan"), float("inf"), -float("inf"), 1e-320, 1.7e308)
HEADER_BYTES = 192
TEXT_NUMBER = re.compile(rb"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])")
Random = np.random.Generator


@dataclass(frozen=True)
class BadFile:
    """A made file; `whole` is what it was made from."""

    name: str
    content: bytes
    whole: bytes

    @property
    def format(self) -> str:
        return self.name.split("/")[0]

    @property
    def how(self) -> str:
        return self.name.split("/")[2].split("-")[0]


def make_all(seed: int = 0) -> Iterator[BadFile]:
    """About a hundred files of each of five good ones of each format, always the same for a seed."""
    for kind in SEEDS:
        for number, whole in enumerate(good_files(kind)):
            random = np.random.default_rng([seed, sorted(SEEDS).index(kind), number])
            for how, content in _mutations(kind, whole, random):
                yield BadFile(f"{kind}/{number}/{how}", content, whole)


@cache
def good_files(kind: str) -> tuple[bytes, ...]:
    """Five files that are read without complaint."""
    return tuple(make() for make in SEEDS[kind])


def _mutations(kind: str, whole: bytes, random: Random) -> Iterator[tuple[str, bytes]]:
    for number, at in enumerate(np.unique(random.integers(0, len(whole), CUTS)).tolist()):
        yield f"cut-{number}", whole[:at]
    for number in range(FLIPS):
        flipped = bytearray(whole)
        flipped[random.integers(len(whole))] ^= 1 << int(random.integers(8))
        yield f"flip-{number}", bytes(flipped)
    lie = _lie_in_text if _is_text(whole) else _lie_in_bytes
    for number in range(LIES):
        yield f"lie-{number}", _sealed(kind, lie(whole, EXTREMES[number % len(EXTREMES)], random))
    yield "empty-0", b""
    others = [name for name in SEEDS if name != kind]
    other = good_files(others[int(random.integers(len(others)))])[0]
    for number, more in enumerate((other, b"PK\x03\x04" + bytes(26), b"%PDF-1.7\n", bytes(4096), b"\n")):
        yield f"polyglot-{number}", whole + more
    yield "polyglot-before", other[: len(other) // 2] + whole
    if kind in ("ply", "obj", "off", "stl", "glb"):
        for number, value in enumerate(ODD_FLOATS):
            yield f"float-{number}", _with_float(whole, value, random)
        yield "degenerate-0", _degenerate(whole)


def _is_text(whole: bytes) -> bool:
    return all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in whole)


def _lie_in_bytes(whole: bytes, value: int, random: Random) -> bytes:
    """A number near the beginning, in any width and order, becomes another."""
    size = int(random.choice((1, 2, 4, 8)))
    at = int(random.integers(0, max(1, min(HEADER_BYTES, len(whole)) - size)))
    order = "little" if random.integers(2) else "big"
    told = (value & (1 << 8 * size) - 1).to_bytes(size, order)  # type: ignore[arg-type]
    return whole[:at] + told + whole[at + size :]


def _lie_in_text(whole: bytes, value: int, random: Random) -> bytes:
    found = list(TEXT_NUMBER.finditer(whole))
    match = found[int(random.integers(min(len(found), 40)))]
    return whole[: match.start()] + str(value).encode() + whole[match.end() :]


def _sealed(kind: str, content: bytes) -> bytes:
    """With the checksums of a PNG's chunks right, so that the lie gets further."""
    return png_sealed(content) if kind == "png" else content


def png_sealed(content: bytes) -> bytes:
    """A PNG file whose checksums are right, as far as its chunks can be followed."""
    sealed, at = bytearray(content), 8
    while at + 12 <= len(sealed):
        end = at + 8 + int.from_bytes(sealed[at : at + 4])
        if end + 4 > len(sealed):
            break
        sealed[end : end + 4] = struct.pack(">I", zlib.crc32(sealed[at + 4 : end]))
        at = end + 4
    return bytes(sealed)


def _with_float(whole: bytes, value: float, random: Random) -> bytes:
    """A coordinate becomes an odd number."""
    if _is_text(whole):
        found = [match for match in TEXT_NUMBER.finditer(whole) if b"." in match[0]]
        match = found[int(random.integers(len(found)))]
        return whole[: match.start()] + repr(value).encode() + whole[match.end() :]
    at = len(whole) // 2 + 4 * int(random.integers(len(whole) // 16))
    with np.errstate(over="ignore"):
        return whole[:at] + np.float32(value).tobytes() + whole[at + 4 :]


def _degenerate(whole: bytes) -> bytes:
    """All numbers of a text become the same, and the second half of other files zero."""
    if _is_text(whole):
        return TEXT_NUMBER.sub(lambda match: b"1" if b"." in match[0] else match[0], whole)
    return whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)


# --- good files ---

PIXELS = np.random.default_rng(7).integers(0, 256, (24, 20, 4), np.uint8)
BALL = trimesh.creation.icosphere(1)


def _pillow(mode: str, kind: str, **options: object) -> Callable[[], bytes]:
    def make() -> bytes:
        file = io.BytesIO()
        Image.fromarray(PIXELS).convert("RGB").convert(mode).save(file, kind, **options)
        return file.getvalue()

    return make


def _vips(save: str, channels: int = 3, dtype: type = np.uint8, **options: object) -> Callable[[], bytes]:
    def make() -> bytes:
        pixels = np.ascontiguousarray(PIXELS[..., :channels]).astype(dtype) * (
            257 if dtype == np.uint16 else 1
        )
        spaces = {1: "b-w", 3: "srgb", 4: "srgb"} if dtype == np.uint8 else {1: "grey16", 3: "rgb16"}
        image = pyvips.Image.new_from_array(pixels.astype(dtype)).copy(interpretation=spaces[channels])
        return bytes(getattr(image, f"{save}save_buffer")(**options))

    return make


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return bytes(exif.tobytes())


def _trimesh(kind: str, coloured: bool = False, **options: object) -> Callable[[], bytes]:
    def make() -> bytes:
        mesh = BALL.copy()
        if coloured:
            mesh.visual.vertex_colors = np.random.default_rng(1).integers(0, 256, (len(mesh.vertices), 4))
        content = mesh.export(file_type=kind, **options)
        return content.encode() if isinstance(content, str) else bytes(content)

    return make


def _ply_of_polygons(order: str) -> bytes:
    """Quads and triangles together, in binary."""
    kinds = {"<": "binary_little_endian", ">": "binary_big_endian"}
    head = (
        f"ply\nformat {kinds[order]} 1.0\nelement vertex 8\nproperty double x\nproperty double y\n"
        "property double z\nelement face 7\nproperty list uchar int vertex_indices\nend_header\n"
    )
    faces = [*CUBE_QUADS[:5].tolist(), *CUBE_FACES[[5, 11]].tolist()]
    rows = b"".join(struct.pack(f"{order}B{len(face)}i", len(face), *face) for face in faces)
    return head.encode() + CUBE_VERTICES.astype(f"{order}f8").tobytes() + rows


def _text(vertices: NDArray[np.float64], faces: list[list[int]], vertex: str, face: str, first: int) -> str:
    lines = [vertex + " ".join(f"{value:.3f}" for value in row) for row in vertices]
    return "\n".join(
        [*lines, *(face.format(len(row)) + " ".join(str(i + first) for i in row) for row in faces)]
    )


def _obj(kind: str) -> bytes:
    quads = CUBE_QUADS.tolist()
    if kind == "negative":
        return _text(CUBE_VERTICES, quads, "v ", "f ", -8).encode() + b"\n"
    if kind == "coloured":
        return _text(np.hstack([CUBE_VERTICES, CUBE_VERTICES]), quads, "v ", "f ", 1).encode() + b"\n"
    plain = _text(CUBE_VERTICES, quads, "v ", "f ", 1)
    slashes = re.sub(r"(?<=[f\d]) (\d+)(?=[ \n]|$)", r" \1/1/1", plain.split("f ", 1)[1])
    head = "mtllib /etc/passwd\no cube\nvt 0.5 0.5\nvn 0.0 0.0 1.0\n"
    return (head + plain.split("f ", 1)[0] + "f " + slashes).encode() + b"\n"


def _off(head: str, quads: bool = True) -> bytes:
    faces = (CUBE_QUADS if quads else CUBE_FACES).tolist()
    return f"{head}\n8 {len(faces)} 0\n{_text(CUBE_VERTICES, faces, '', '{} ', 0)}\n".encode()


def _stl(solids: int) -> bytes:
    facet = "facet normal 0 0 1\nouter loop\n{}\nendloop\nendfacet"
    facets = [
        facet.format("\n".join("vertex " + " ".join(f"{x:.2f}" for x in corner) for corner in corners))
        for corners in CUBE_VERTICES[CUBE_FACES]
    ]
    parts = np.array_split(facets, solids)
    return "".join(
        f"solid {i}\n" + "\n".join(part) + f"\nendsolid {i}\n" for i, part in enumerate(parts)
    ).encode()


def _textured_glb() -> bytes:
    builder = Builder()
    uv = np.random.default_rng(0).random((8, 2)).astype(np.float32)
    material = builder.material(texture=builder.image(_vips("png")()))
    attributes = [("TEXCOORD_0", builder.accessor(uv))]
    builder.primitive(CUBE_VERTICES, CUBE_FACES, attributes=attributes, material=material)
    return builder.bytes()


def _moved_glb() -> bytes:
    builder = cube_builder()
    moved = {"mesh": 0, "translation": [2.0, 0.0, 1.0], "rotation": [0.0, 0.0, 0.6, 0.8]}
    builder.document["nodes"] = [{"children": [1, 2]}, {"mesh": 0}, {**moved, "scale": [1.0, -2.0, 0.5]}]
    return builder.bytes()


def _coloured_glb(mode: int) -> bytes:
    builder = Builder()
    colours = np.random.default_rng(0).integers(0, 256, (8, 4), np.uint8)
    attributes = [("COLOR_0", builder.accessor(colours, normalized=True))]
    builder.primitive(CUBE_VERTICES, CUBE_FACES, attributes=attributes, mode=mode)
    return builder.bytes()


def _field(make: Callable[[], AnyField]) -> Callable[[], bytes]:
    return lambda: field_to_bytes(make())


SEEDS: dict[str, list[Callable[[], bytes]]] = {
    "png": [
        _vips("png"), _vips("png", 1, np.uint16), _vips("png", 4), _vips("png", 3, interlace=True),
        _pillow("P", "PNG"),
    ],
    "jpeg": [
        _pillow("RGB", "JPEG"), _pillow("L", "JPEG"), _pillow("CMYK", "JPEG"),
        _pillow("RGB", "JPEG", progressive=True), _pillow("RGB", "JPEG", exif=_exif()),
    ],
    "webp": [
        _vips("webp"), _vips("webp", 4), _vips("webp", 3, lossless=True), _vips("webp", 4, lossless=True),
        _pillow("RGB", "WEBP", exif=_exif()),
    ],
    "tiff": [
        _vips("tiff"), _vips("tiff", 3, np.uint16, compression="lzw"),
        _vips("tiff", tile=True, tile_width=16, tile_height=16, compression="deflate"),
        _vips("tiff", bigtiff=True, compression="jpeg"), _vips("tiff", 4, pyramid=True, tile=True),
    ],
    "ply": [
        _trimesh("ply"), _trimesh("ply", encoding="ascii"), _trimesh("ply", True),
        lambda: _ply_of_polygons("<"), lambda: _ply_of_polygons(">"),
    ],
    "obj": [
        _trimesh("obj"), _trimesh("obj", True), lambda: _obj("negative"), lambda: _obj("coloured"),
        lambda: _obj("slashes"),
    ],
    "stl": [
        _trimesh("stl"), _trimesh("stl_ascii"), lambda: _stl(1), lambda: _stl(2),
        lambda: bytes(trimesh.creation.box((1, 2, 3)).export(file_type="stl")),
    ],
    "glb": [
        lambda: cube_builder().bytes(), _textured_glb, _moved_glb, lambda: _coloured_glb(4),
        lambda: _coloured_glb(5),
    ],
    "off": [
        _trimesh("off"), lambda: _off("OFF"), lambda: _off("OFF # a cube"), lambda: _off("OFF", False),
        lambda: _off("OFF\n# a comment"),
    ],
    "acorn": [
        _field(lambda: make_field("grid")), _field(lambda: make_field("coordinate")),
        _field(lambda: make_shape("grid", 1, splits=3)), _field(lambda: make_shape("grid", 4, splits=5)),
        _field(lambda: make_shape("coordinate", 4, splits=5)),
    ],
}  # fmt: skip
