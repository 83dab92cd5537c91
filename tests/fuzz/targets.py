"""What is fuzzed: each target takes any bytes, and gives a value or raises one of our errors.

A container's digests would keep a fuzzer out, so `sealed container` puts them right before it reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from bad_files import good_files
from fastapi import Request
from small_fields import make_field, make_shape
from starlette.exceptions import HTTPException

from acorn_svc.api import deepzoom, files, iiif_syntax, query, region
from acorn_svc.api.rendering import View
from acorn_svc.errors import AcornError
from acorn_svc.formats import envelope
from acorn_svc.formats.checkpoint import KEY as CHECKPOINT
from acorn_svc.formats.container import ModelLimits, field_to_bytes, read_field
from acorn_svc.formats.images import ImageLimits, read_image
from acorn_svc.formats.mesh_pieces import MeshLimits
from acorn_svc.formats.meshes import read_mesh
from acorn_svc.settings import Settings

MODEL_LIMITS = ModelLimits(max_memory_bytes=64 << 20)
IMAGE_LIMITS = ImageLimits(max_pixels=1_000_000)
MESH_LIMITS = MeshLimits(max_vertices=100_000, max_faces=100_000, max_texture_pixels=1_000_000)
PICTURE = iiif_syntax.Picture(1000, 700, "color")
IIIF_LIMITS = iiif_syntax.Limits(4096, 4096, 4_000_000)
SETTINGS = Settings()
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Target:
    """A function of bytes, and a few good inputs to start from."""

    run: Callable[[bytes], object]
    good: tuple[bytes, ...]

    def survive(self, data: bytes) -> None:
        """Runs it; only our own errors, and an answer's status, are swallowed."""
        with contextlib.suppress(AcornError, HTTPException):
            self.run(data)


def sealed(data: bytes) -> bytes:
    """A container whose digests are right, as far as its header can be followed."""
    content = bytearray(data)
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        places = {name: header[name]["data_offsets"] for name in header if name != "__metadata__"}
        _seal_chunks(content, start, places)
        begin, end = (start + int(offset) for offset in places["digest"])
        if end - begin == DIGEST_BYTES and end <= len(content):
            content[begin:end] = hashlib.sha256(content[:begin]).digest()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError, MemoryError):
        pass
    return bytes(content)


def _seal_chunks(content: bytearray, start: int, places: dict[str, list[int]]) -> None:
    def part(name: str) -> slice:
        begin, end = places[name]
        return slice(start + begin, start + end)

    sizes = np.frombuffer(content[part("chunks.bytes")], "<u8")
    features = content[part("features")]
    if sizes.sum() == len(features) and places["chunks.digest"][1] <= len(content) - start:
        bounds = np.r_[0, np.cumsum(sizes)].astype(int).tolist()
        digests = [hashlib.blake2b(features[a:b], digest_size=16).digest() for a, b in pairwise(bounds)]
        content[part("chunks.digest")] = b"".join(digests)


def _view(kind: str) -> View:
    size = {"width": 1000, "height": 700, "channels": 3} if kind == "image" else dict.fromkeys(
        ("width", "height", "channels")
    )  # fmt: skip
    return View(cast(Any, SimpleNamespace(kind=kind, **size)), cast(Any, None))


def _texts(data: bytes, count: int) -> list[str]:
    """As many texts as wanted, as a URL's path would have them."""
    parts = data.decode("latin-1").split("/")
    return [*parts, *[""] * count][:count]


def _iiif(data: bytes) -> None:
    request = iiif_syntax.parse(*_texts(data, 4), PICTURE, IIIF_LIMITS)
    assert min(request.rendition.size) > 0
    assert IIIF_LIMITS.allow(request.rendition.size)


def _tile(data: bytes) -> None:
    pixels = deepzoom.parse_tile(*_texts(data, 2), _view("image")).size
    assert min(pixels) > 0
    assert max(pixels) <= deepzoom.TILE_SIDE + 2 * deepzoom.OVERLAP


def _region(data: bytes) -> None:
    box, size = _texts(data, 2)
    export = region.parse_export(box or None, size or None, _view("image"), SETTINGS)
    assert 0 < export.size[0] * export.size[1] <= SETTINGS.max_region_pixels


def _range(data: bytes) -> None:
    scope = {"type": "http", "headers": [(b"range", data)]}
    part = files._part(Request(scope), {}, 1000)
    assert 0 <= part.start < part.stop <= 1000
    assert part.is_asked_for or part[:2] == (0, 1000)


def _query(data: bytes) -> None:
    kind = "image" if data[:1] < b"\x80" else "shape"
    looked_up = query._in_image if kind == "image" else query._in_space
    points, size = looked_up(data[1:])
    query._check(points, _view(kind))
    assert np.isfinite(points).all()
    assert np.isfinite(size)


def _floats(data: bytes) -> None:
    points = query._unpacked(data, 2)
    query._check(points, _view("image"))
    assert np.isfinite(points).all()


def _mesh(kind: str) -> Target:
    def run(data: bytes) -> None:
        mesh = read_mesh(data, MESH_LIMITS).mesh
        assert np.isfinite(mesh.vertices).all()
        assert mesh.faces.min() >= 0
        assert mesh.faces.max() < len(mesh.vertices)

    return Target(run, good_files(kind))


def _images(*kinds: str) -> Target:
    good = tuple(content for kind in kinds for content in good_files(kind))
    return Target(lambda data: read_image(data, IMAGE_LIMITS), good)


MODELS = tuple(
    field_to_bytes(field) for field in (make_field("grid"), make_field("coordinate"), make_shape("grid", 4))
)
STATE = b"".join(
    envelope.pack(CHECKPOINT, {"step": 1}, {"a": np.arange(9.0), "b": np.zeros((2, 3), np.int8)})
)

TARGETS: dict[str, Target] = {
    "container": Target(lambda data: read_field(data, MODEL_LIMITS), MODELS),
    "sealed container": Target(lambda data: read_field(sealed(data), MODEL_LIMITS), MODELS),
    "checkpoint": Target(lambda data: envelope.unpack(sealed(data), CHECKPOINT), (STATE,)),
    "ply": _mesh("ply"),
    "obj": _mesh("obj"),
    "stl": _mesh("stl"),
    "off": _mesh("off"),
    "glb": _mesh("glb"),
    "image": _images("png", "jpeg", "webp", "tiff"),
    "iiif": Target(
        _iiif,
        (b"full/max/0/default.jpg", b"pct:1,2,30,40/^!64,48/!22.5/gray.png", b"square/,9/0/bitonal.tif"),
    ),
    "tile": Target(_tile, (b"10/1_1.jpg", b"0/0_0.png")),
    "region": Target(_region, (b"1,2,30.5,40/64,48", b"/9,9")),
    "range": Target(_range, (b"bytes=0-99", b"bytes=-5", b"bytes=5-", b"bytes=0-1,5-6")),
    "query": Target(
        _query,
        (b'\0{"points": [[1, 2.5]], "pixel_size": 2}', b'\xff{"points": [[1, 2, 3]], "voxel_size": 0}'),
    ),
    "floats": Target(_floats, (np.array([1, 2, 3.5, 4], "<f4").tobytes(),)),
}
