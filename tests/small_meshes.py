"""Small meshes, and GLB files put together by hand, for tests."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

CUBE_VERTICES = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
CUBE_QUADS = np.array(
    [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]], np.int64
)
CUBE_FACES = np.concatenate([CUBE_QUADS[:, [0, 1, 2]], CUBE_QUADS[:, [0, 2, 3]]])


def triangles_of(vertices: NDArray[Any], faces: NDArray[Any]) -> NDArray[Any]:
    """`[m, 9]` the corners of all triangles in an order that says nothing about that of the file."""
    corners = np.asarray(vertices)[np.asarray(faces)].astype(np.float64)
    first = [min(range(3), key=lambda i: tuple(triangle[i])) for triangle in corners]
    rolled = np.array([np.roll(t, -i, axis=0) for t, i in zip(corners, first, strict=True)]).reshape(-1, 9)
    return rolled[np.lexsort(rolled.T)]


def volume(vertices: NDArray[Any], faces: NDArray[Any]) -> float:
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def chunk(kind: bytes, data: bytes, filler: bytes) -> bytes:
    data += filler * (-len(data) % 4)
    return struct.pack("<I4s", len(data), kind) + data


def glb(document: dict[str, Any] | bytes, binary: bytes = b"") -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    body = chunk(b"JSON", text, b" ") + (chunk(b"BIN\0", binary, b"\0") if binary else b"")
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


COMPONENTS = {"int8": 5120, "uint8": 5121, "int16": 5122, "uint16": 5123, "uint32": 5125, "float32": 5126}


class Builder:
    """A glTF document and its binary part, grown array by array."""

    def __init__(self) -> None:
        self.binary = b""
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": []}], "accessors": [], "bufferViews": [], "buffers": [{}],
        }  # fmt: skip

    def view(self, data: bytes) -> int:
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data)}
        self.document["bufferViews"].append(view)
        self.binary += data + bytes(-len(data) % 4)
        return len(self.document["bufferViews"]) - 1

    def accessor(self, array: NDArray[Any], **more: Any) -> int:
        kind = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}[1 if array.ndim == 1 else array.shape[1]]
        entry = {"bufferView": self.view(array.tobytes()), "count": len(array), "type": kind}
        component = COMPONENTS[array.dtype.name]
        self.document["accessors"].append({**entry, "componentType": component, **more})
        return len(self.document["accessors"]) - 1

    def primitive(
        self,
        vertices: NDArray[Any],
        faces: NDArray[Any] | None,
        mesh: int = 0,
        attributes: Iterable[tuple[str, int]] = (),
        **more: Any,
    ) -> dict[str, Any]:
        position = self.accessor(np.asarray(vertices, np.float32))
        entry: dict[str, Any] = {"attributes": {"POSITION": position, **dict(attributes)}, **more}
        if faces is not None:
            entry["indices"] = self.accessor(np.asarray(faces, np.uint32).ravel())
        self.document["meshes"][mesh]["primitives"].append(entry)
        return entry

    def image(self, png: bytes) -> int:
        images = self.document.setdefault("images", [])
        images.append({"bufferView": self.view(png), "mimeType": "image/png"})
        self.document.setdefault("textures", []).append({"source": len(images) - 1})
        return len(images) - 1

    def material(self, factor: list[float] | None = None, texture: int | None = None) -> int:
        shading: dict[str, Any] = {}
        if factor is not None:
            shading["baseColorFactor"] = factor
        if texture is not None:
            shading["baseColorTexture"] = {"index": texture}
        materials = self.document.setdefault("materials", [])
        materials.append({"pbrMetallicRoughness": shading})
        return len(materials) - 1

    def bytes(self) -> bytes:
        self.document["buffers"][0]["byteLength"] = len(self.binary)
        return glb(self.document, self.binary)


def cube_builder() -> Builder:
    builder = Builder()
    builder.primitive(CUBE_VERTICES, CUBE_FACES)
    return builder
