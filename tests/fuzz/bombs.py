"""Files that were built to do harm, each with the verdict that it must get, written by hand.

A verdict is `ok`, or the code of the error with the limit that it must name, if any.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from bad_files import PIXELS, good_files, png_sealed
from PIL import Image
from small_meshes import CUBE_FACES, CUBE_VERTICES, Builder, cube_builder, glb

Verdict = str | tuple[str, str]
LARGE, MANY = 2**31, 10**15


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, data: bytes, *more: bytes, kind: int = 0) -> bytes:
    """Gray unless `kind` says something else; `data` is compressed already."""
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *more, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def zeros(size: int) -> bytes:
    packer = zlib.compressobj(9)
    blocks = [packer.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return b"".join([*blocks, packer.compress(bytes(size % (1 << 20))), packer.flush()])


def profile_bomb() -> bytes:
    """A colour profile of 200 MB that takes 200 kB."""
    return png(8, 8, zlib.compress(bytes(72)), chunk(b"iCCP", b"x\0\0" + zeros(200 << 20)))


def text_bomb() -> bytes:
    text = zeros(50 << 20)
    texts = [chunk(b"zTXt", b"x%d\0\0" % number + text) for number in range(20)]
    return png(8, 8, zlib.compress(bytes(72)), *texts)


def jpeg(width: int, height: int) -> bytes:
    """A good JPEG whose frame says that it is larger."""
    content = bytearray(good_files("jpeg")[0])
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG that refines the same coefficients again and again."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((2000, 2000), np.uint8)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def tiff(width: int, height: int, offsets: int, following: int | None = 0, counts: int = 1) -> bytes:
    """One gray strip of no bytes; `following` is where the next directory is, None for this one."""
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, counts, offsets), (277, 3, 1, 1), (278, 4, 1, height),
        (279, 4, counts, width * height % LARGE),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    end = struct.pack("<I", 8 if following is None else following)
    return struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + entries + end + bytes(64)


def tiff_of_frames(count: int) -> bytes:
    file, frame = io.BytesIO(), Image.fromarray(PIXELS[..., 0])
    frame.save(file, "TIFF", save_all=True, append_images=[frame] * (count - 1))
    return file.getvalue()


def tiff_zeros(side: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(file, "TIFF", compression="tiff_adobe_deflate")
    return file.getvalue()


def webp(width: int, height: int) -> bytes:
    """A lossless WebP whose header says that it is larger."""
    content = bytearray(good_files("webp")[2])
    start = content.index(b"VP8L") + 9
    bits = int.from_bytes(content[start : start + 4], "little") >> 28 << 28
    told = bits | (height - 1) << 14 | (width - 1)
    content[start : start + 4] = told.to_bytes(4, "little")
    return bytes(content)


def webp_of_frames(count: int) -> bytes:
    file, frames = io.BytesIO(), [Image.fromarray(np.roll(PIXELS, i, 0)) for i in range(count)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    return file.getvalue()


def changed_glb(change: Callable[[Builder], object]) -> bytes:
    builder = cube_builder()
    change(builder)
    return builder.bytes()


def _set(path: str, value: object) -> Callable[[Builder], object]:
    """Sets an entry of a document, such as `accessors.0.count`."""
    *folders, name = path.split(".")

    def change(builder: Builder) -> None:
        entry: object = builder.document
        for folder in folders:
            entry = entry[int(folder)] if isinstance(entry, list) else entry[folder]  # type: ignore[index]
        entry[name] = value  # type: ignore[index]

    return change


def _of_many_nodes(builder: Builder) -> None:
    builder.document["nodes"] = [{"mesh": 0}] * 100_000
    builder.document["scenes"] = [{"nodes": list(range(100_000))}]


def _with_texture(content: bytes) -> bytes:
    builder = Builder()
    uv = builder.accessor(np.zeros((8, 2), np.float32))
    material = builder.material(texture=builder.image(content))
    builder.primitive(CUBE_VERTICES, CUBE_FACES, attributes=[("TEXCOORD_0", uv)], material=material)
    return builder.bytes()


def ply(vertices: int, faces: int, count: str, rows: bytes, more: str = "") -> bytes:
    head = (
        f"ply\nformat binary_little_endian 1.0\n{more}element vertex {vertices}\nproperty float x\n"
        f"property float y\nproperty float z\nelement face {faces}\n"
        f"property list {count} int vertex_indices\nend_header\n"
    )
    return head.encode() + rows


THREE = np.eye(3, dtype="<f4").tobytes()
TRIANGLE = b"v 0 0 0\nv 1 0 0\nv 0 1 0\n"


def obj_of_one_polygon(corners: int) -> bytes:
    angle = np.arange(corners) * (2 * np.pi / corners)
    lines = [f"v {x:.9f} {y:.9f} 0" for x, y in zip(np.cos(angle), np.sin(angle), strict=True)]
    return "\n".join([*lines, "f " + " ".join(map(str, range(1, corners + 1)))]).encode()


def zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("3D/3dmodel.model", bytes(1 << 20))
    return file.getvalue()


LAUGHS = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>'
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
UNSUPPORTED = "unsupported_media"

BOMBS: dict[str, tuple[Callable[[], bytes], Verdict]] = {
    "png of 50,000 x 50,000 zeros": (
        lambda: png(50_000, 50_000, zeros(50_001 * 500)),
        ("limit_exceeded", "max_image_pixels"),
    ),
    "png of one long row": (lambda: png(70_000, 1, zeros(70_001)), ("limit_exceeded", "max_image_side")),
    "png of no width": (lambda: png(0, 8, zeros(8)), "bad_image"),
    "png of 2**31 columns": (lambda: png(LARGE, 1, zeros(9)), "bad_image"),
    "png that promises 256 million pixels": (lambda: png(16_000, 16_000, zeros(9)), "bad_image"),
    "png that keeps that promise": (lambda: png(10_000, 10_000, zeros(10_001 * 10_000)), "ok"),
    "png of empty chunks": (lambda: png(8, 8, zeros(72), *[chunk(b"tEXt", b"")] * 10_000), "ok"),
    "png with a profile of 200 MB": (profile_bomb, "ok"),
    "png with texts of 1 GB": (text_bomb, "ok"),
    "png with 16 channels": (lambda: png(8, 8, zeros(9999), kind=5), "bad_image"),
    "jpeg of 65,500 x 65,500": (lambda: jpeg(65_500, 65_500), ("limit_exceeded", "max_image_pixels")),
    "jpeg of no height": (lambda: jpeg(64, 0), "bad_image"),
    "jpeg of 15,000 x 15,000 without them": (lambda: jpeg(15_000, 15_000), "bad_image"),
    "jpeg of 2,000 scans": (lambda: jpeg_of_scans(2000), "bad_image"),
    "tiff whose directory follows itself": (lambda: tiff(8, 8, 130, None), "bad_image"),
    "tiff of 2**31 x 2**31": (lambda: tiff(LARGE, LARGE, 130), "bad_image"),
    "tiff of 60,000 x 60,000": (lambda: tiff(60_000, 60_000, 130), ("limit_exceeded", "max_image_pixels")),
    "tiff of 2**32 strips": (lambda: tiff(8, 8, 130, counts=2**32 - 1), "bad_image"),
    "tiff whose strip is elsewhere": (lambda: tiff(8, 8, LARGE), "bad_image"),
    "tiff of 500 frames": (lambda: tiff_of_frames(500), ("limit_exceeded", "max_image_frames")),
    "tiff of 64 million zeros": (lambda: tiff_zeros(8000), "ok"),
    "webp of 16,383 x 16,383": (lambda: webp(16_383, 16_383), "bad_image"),
    "webp of 15,000 x 15,000 without them": (lambda: webp(15_000, 15_000), "bad_image"),
    "webp of 50 frames": (lambda: webp_of_frames(50), ("limit_exceeded", "max_image_frames")),
    "glb of 2**31 vertices": (lambda: changed_glb(_set("accessors.0.count", LARGE)), "bad_mesh"),
    "glb of -1 vertices": (lambda: changed_glb(_set("accessors.0.count", -1)), "bad_mesh"),
    "glb of half a vertex": (lambda: changed_glb(_set("accessors.0.count", 7.5)), "bad_mesh"),
    "glb that asks for a file": (
        lambda: changed_glb(_set("buffers.0.uri", "file:///etc/passwd")),
        "bad_mesh",
    ),
    "glb that asks for a page": (
        lambda: changed_glb(_set("images", [{"uri": "http://127.0.0.1/x.png"}])),
        "bad_mesh",
    ),
    "glb whose node is its own child": (lambda: changed_glb(_set("nodes.0.children", [0])), "bad_mesh"),
    "glb of 100,000 cubes": (lambda: changed_glb(_of_many_nodes), ("limit_exceeded", "max_mesh_parts")),
    "glb of deep json": (lambda: glb(b'{"a":' + b"[" * 100_000), "bad_mesh"),
    "glb of long json": (
        lambda: glb(b'{"a":"' + b" " * (33 << 20) + b'"}'),
        ("limit_exceeded", "max_gltf_json_bytes"),
    ),
    "glb of a number with 10,000 digits": (lambda: glb(b'{"a":' + b"9" * 10_000 + b"}"), "bad_mesh"),
    "glb with a texture of 50,000 x 5,000": (
        lambda: _with_texture(png(50_000, 5_000, zeros(9))),
        ("limit_exceeded", "max_texture_pixels"),
    ),
    "glb with an svg for a texture": (lambda: _with_texture(SVG), "bad_mesh"),
    "glb that ends before it begins": (
        lambda: struct.pack("<4sII", b"glTF", 2, 2**32 - 1) + bytes(99),
        "bad_mesh",
    ),
    "ply with a list of 2**32": (
        lambda: ply(3, 1, "uint", THREE + struct.pack("<I", 2**32 - 1) + bytes(64)),
        "bad_mesh",
    ),
    "ply with a list of -1": (
        lambda: ply(3, 1, "int", THREE + struct.pack("<i", -1) + bytes(64)),
        "bad_mesh",
    ),
    "ply of 10**15 vertices": (lambda: ply(MANY - 1, 1, "uchar", THREE), "bad_mesh"),
    "ply of 10**14 rows of nothing": (
        lambda: ply(3, 0, "uchar", THREE, f"element x {MANY // 10}\n"),
        "bad_mesh",
    ),
    "ply of a million empty faces": (
        lambda: ply(3, 1_000_000, "uchar", THREE + bytes(1_000_000)),
        "bad_mesh",
    ),
    "ply of faces without vertices": (lambda: ply(0, 1, "uchar", b"\3" + bytes(12)), "bad_mesh"),
    "obj of one polygon with 1,000,000 corners": (lambda: obj_of_one_polygon(1_000_000), "ok"),
    "obj with index -10**18": (lambda: TRIANGLE + b"f 1 2 -1000000000000000000", "bad_mesh"),
    "obj with index 10**30": (lambda: TRIANGLE + b"f 1 2 " + b"9" * 30, "bad_mesh"),
    "obj with a number of 4 MB": (lambda: TRIANGLE + b"f 1 2 3\nv 0 0 " + b"9" * (4 << 20), "bad_mesh"),
    "obj with a library elsewhere": (
        lambda: b"mtllib /etc/passwd\n" + TRIANGLE + b"usemtl root\nf 1 2 3",
        "ok",
    ),
    "obj of a million faces that are none": (lambda: TRIANGLE + b"f 1 1 1\n" * 1_000_000, "bad_mesh"),
    "stl of 2**32 triangles": (lambda: bytes(80) + struct.pack("<I", 2**32 - 1) + bytes(50), UNSUPPORTED),
    "stl beyond all numbers": (lambda: good_files("stl")[1].replace(b"vertex ", b"vertex 1e999"), "bad_mesh"),
    "off of 10**15 vertices": (lambda: f"OFF\n{MANY} 1 0\n0 0 0\n3 0 1 2\n".encode(), "bad_mesh"),
    "off with a face of 2**31 corners": (
        lambda: f"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n{LARGE} 0 1 2\n".encode(),
        "bad_mesh",
    ),
    "acorn with a header of 2**63 bytes": (lambda: struct.pack("<Q", 2**63) + b"{" + bytes(99), UNSUPPORTED),
    "acorn with a header of 2 MB": (
        lambda: (
            struct.pack("<Q", 2 << 20) + json.dumps({"a": " " * (2 << 20)}).encode()[: 2 << 20] + bytes(99)
        ),
        ("limit_exceeded", "max_model_header_bytes"),
    ),
    "acorn of deep json": (lambda: struct.pack("<Q", 100_000) + b'{"a":' + b"[" * 99_995, "bad_model"),
    "zip": (zip_bomb, UNSUPPORTED),
    "gzip": (lambda: gzip.compress(good_files("ply")[0]), UNSUPPORTED),
    "svg": (lambda: SVG, UNSUPPORTED),
    "xml": (lambda: LAUGHS, UNSUPPORTED),
    "collada": (lambda: b'\xef\xbb\xbf<?xml version="1.0"?><COLLADA/>', UNSUPPORTED),
    "html": (lambda: b"<!doctype html><script>alert(1)</script>", UNSUPPORTED),
    "heic": (lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), UNSUPPORTED),
    "avif": (lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + bytes(99), UNSUPPORTED),
    "pdf": (lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", UNSUPPORTED),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file\n", UNSUPPORTED),
    "gif": (lambda: b"GIF89a" + bytes(99), UNSUPPORTED),
    "bmp": (lambda: b"BM" + bytes(99), UNSUPPORTED),
    "pickle": (lambda: pickle.dumps({"a": 1}), UNSUPPORTED),
    "npy": (
        lambda: b"\x93NUMPY\x01\0v\0{'descr': '<f8', 'shape': (999999999999,), }".ljust(128),
        UNSUPPORTED,
    ),
    "elf": (lambda: b"\x7fELF\x02\x01\x01" + bytes(99), UNSUPPORTED),
    "json": (
        lambda: json.dumps({"asset": {"version": "2.0"}, "buffers": [{"uri": "x.bin"}]}).encode(),
        UNSUPPORTED,
    ),
    "an imagemagick script": (
        lambda: b'push graphic-context\nfill "url(https://127.0.0.1/|id)"',
        UNSUPPORTED,
    ),
    "nothing": (lambda: b"", "bad_image"),
    "one byte": (lambda: b"\0", UNSUPPORTED),
    "zeros": (lambda: bytes(1 << 20), UNSUPPORTED),
    "an image that is also an archive": (lambda: good_files("png")[0] + zip_bomb(), "ok"),
    "a png in the clothes of a jpeg": (lambda: b"\xff\xd8\xff" + good_files("png")[0], "bad_image"),
    "a png with its sums right and its size wrong": (
        lambda: png_sealed(good_files("png")[0].replace(struct.pack(">I", 20), struct.pack(">I", 21), 1)),
        "bad_image",
    ),
}
