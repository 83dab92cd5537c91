"""Reading GLB files: binary glTF 2.0 that holds everything in one file.

The JSON part is suspected: every number in it is checked before it is used, nothing outside the file
is ever opened, and what would be read wrongly (compressed or sparse data) is refused with its name.
trimesh takes sparse and quantised data for something else, and decodes images itself.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acorn_svc.errors import BadImage, BadMesh, LimitExceeded, UnsupportedMedia
from acorn_svc.formats.images import ImageLimits, read_image
from acorn_svc.formats.mesh_pieces import (
    DAMAGED,
    NO_TRIANGLES,
    Bytes,
    Floats,
    Integers,
    MeshLimits,
    Piece,
    check_indices,
)

HEADER_BYTES, CHUNK_HEADER_BYTES = 12, 8
JSON_CHUNK, BINARY_CHUNK = b"JSON", b"BIN\0"
TRANSFORMS = {"matrix", "translation", "rotation", "scale"}
COMPONENT_TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
ITEM_SIZES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
TRIANGLES, STRIP, FAN = 4, 5, 6
COMPRESSIONS = {
    "KHR_draco_mesh_compression": "Draco",
    "EXT_meshopt_compression": "meshopt",
    "KHR_meshopt_compression": "meshopt",
}
TEXTURE_SOURCES = ("EXT_texture_webp",)
KNOWN_EXTENSIONS = re.compile(
    r"KHR_(materials_\w{1,40}|texture_transform|mesh_quantization|lights_punctual|xmp_json_ld)|EXT_texture_webp"
)
EXTENSION_NAME = re.compile(r"\w{1,64}")
WHITE = (1.0, 1.0, 1.0)
IDENTITY: Floats = np.eye(4)
BAD_JSON = "The description inside the GLB file is damaged."
OUTSIDE = "The mesh refers to other files; a GLB file must hold everything itself."


@dataclass(eq=False)
class Glb:
    """An opened GLB file: its JSON, its buffers, and what else may be read of it."""

    document: dict[str, Any]
    buffers: list[bytes]
    limits: MeshLimits

    def entry(self, kind: str, index: object) -> dict[str, Any]:
        """Entry `index` of the list `kind`.

        Raises:
            BadMesh: there is none.
        """
        entries = self.document.get(kind)
        if not isinstance(entries, list):
            raise BadMesh(BAD_JSON)
        found = entries[_integer(index, 0, len(entries) - 1)]
        if not isinstance(found, dict):
            raise BadMesh(BAD_JSON)
        return found

    def view(self, index: object) -> memoryview:
        """The bytes of a buffer view."""
        entry = self.entry("bufferViews", index)
        if not _dictionary(entry, "extensions").keys().isdisjoint(COMPRESSIONS):
            raise BadMesh(_compressed("meshopt"))
        buffer = self.buffers[_integer(entry.get("buffer"), 0, len(self.buffers) - 1)]
        start = _integer(entry.get("byteOffset", 0), 0, len(buffer))
        length = _integer(entry.get("byteLength"), 1, len(buffer) - start)
        return memoryview(buffer)[start : start + length]

    def count(self, index: object) -> int:
        """How many items an accessor has, all of them there."""
        return int(self._checked(index)[0])

    def accessor(self, index: object, *types: str) -> NDArray[Any]:
        """`[count, size]` items of an accessor as they are stored, read only.

        Raises:
            BadMesh: they aren't all there, or of another of `types`.
        """
        count, stride, start, dtype, size = self._checked(index)
        entry = self.entry("accessors", index)
        if entry.get("type") not in types:
            raise BadMesh(BAD_JSON)
        data = self.view(entry["bufferView"])
        strides = (stride, dtype.itemsize)
        return np.ndarray((count, size), dtype, data, start, strides)

    def scaled(self, index: object, *types: str, normalized: bool = False) -> NDArray[Any]:
        """Items of an accessor as `float64`; whole numbers marked as normalised are 0 to 1 (-1 to 1).

        Args:
            index: of the accessor.
            types: that it may have.
            normalized: whether whole numbers are taken for marked where the mark was forgotten.
        """
        items = self.accessor(index, *types)
        with np.errstate(invalid="ignore"):  # of signalling NaNs, which are found later
            values = items.astype(np.float64)
        normalized |= self.entry("accessors", index).get("normalized") is True
        if normalized and items.dtype.kind in "ui":
            values = np.maximum(values / np.iinfo(items.dtype).max, -1.0)
        return values

    def _checked(self, index: object) -> tuple[int, int, int, np.dtype[Any], int]:
        """Count, stride, offset in the view, type and number of values of an item."""
        entry = self.entry("accessors", index)
        if "sparse" in entry:
            raise BadMesh("The mesh has sparse data, which is not read.")
        component, kind = entry.get("componentType"), entry.get("type")
        if not isinstance(component, int) or not isinstance(kind, str):
            raise BadMesh(BAD_JSON)
        if component not in COMPONENT_TYPES or kind not in ITEM_SIZES or "bufferView" not in entry:
            raise BadMesh(BAD_JSON)
        dtype, size = np.dtype(COMPONENT_TYPES[component]), ITEM_SIZES[kind]
        room = len(self.view(entry["bufferView"]))
        item = dtype.itemsize * size
        view = self.entry("bufferViews", entry["bufferView"])
        stride = _integer(view.get("byteStride", item), item, 252 if "byteStride" in view else item)
        start = _integer(entry.get("byteOffset", 0), 0, room)
        count = _integer(entry.get("count"), 1, 2**32)
        if start + (count - 1) * stride + item > room:
            raise BadMesh(DAMAGED)
        return count, stride, start, dtype, size


def _integer(value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadMesh(BAD_JSON)
    return value


def _dictionary(entry: dict[str, Any], name: str) -> dict[str, Any]:
    found = entry.get(name, {})
    if not isinstance(found, dict):
        raise BadMesh(BAD_JSON)
    return found


def _list(entry: dict[str, Any], name: str) -> list[Any]:
    found = entry.get(name, [])
    if not isinstance(found, list):
        raise BadMesh(BAD_JSON)
    return found


def _floats(entry: dict[str, Any], name: str, default: tuple[float, ...]) -> Floats:
    """A list of as many finite numbers as `default` has."""
    values = entry.get(name, default)
    if not isinstance(values, (list, tuple)) or len(values) != len(default):
        raise BadMesh(BAD_JSON)
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        raise BadMesh(BAD_JSON)
    try:
        array = np.array(values, np.float64)
    except OverflowError as error:
        raise BadMesh(BAD_JSON) from error
    if not np.isfinite(array).all():
        raise BadMesh(BAD_JSON)
    return array


def _compressed(name: str) -> str:
    return f"The mesh is compressed with {name}, which is not read; save it without compression."


def open_glb(content: bytes, limits: MeshLimits) -> Glb:
    """A GLB file's parts, with nothing in it that refers to the outside.

    Raises:
        BadMesh: it is damaged, cut, refers to other files, or needs something that isn't read.
        LimitExceeded: its JSON part is too large.
    """
    if len(content) < HEADER_BYTES + CHUNK_HEADER_BYTES:
        raise BadMesh(DAMAGED)
    version, length = (int.from_bytes(content[at : at + 4], "little") for at in (4, 8))
    if version != 2:
        raise BadMesh(f"The file is glTF {version}; glTF 2 is read.")
    if not HEADER_BYTES < length <= len(content):
        raise BadMesh(DAMAGED)
    chunks = _chunks(content, length)
    if not chunks or chunks[0][0] != JSON_CHUNK:
        raise BadMesh(DAMAGED)
    document = _parse(chunks[0][1], limits.max_gltf_json_bytes)
    _check_extensions(document)
    _check_uris(document)
    binary = next((data for kind, data in chunks[1:] if kind == BINARY_CHUNK), None)
    return Glb(document, _buffers(document, binary), limits)


def _chunks(content: bytes, length: int) -> list[tuple[bytes, bytes]]:
    chunks: list[tuple[bytes, bytes]] = []
    position = HEADER_BYTES
    while position < length and len(chunks) < 3:
        end = position + CHUNK_HEADER_BYTES + int.from_bytes(content[position : position + 4], "little")
        if position + CHUNK_HEADER_BYTES > length or end > length:
            raise BadMesh(DAMAGED)
        chunks.append((content[position + 4 : position + 8], content[position + 8 : end]))
        position = end
    return chunks


def _parse(text: bytes, most: int) -> dict[str, Any]:
    if len(text) > most:
        message = f"The mesh's description has {len(text)} bytes; at most {most} are allowed."
        raise LimitExceeded(message, limit="max_gltf_json_bytes", value=most)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadMesh(BAD_JSON) from error
    if not isinstance(document, dict):
        raise BadMesh(BAD_JSON)
    return document


def _check_extensions(document: dict[str, Any]) -> None:
    for name in _list(document, "extensionsRequired"):
        if not isinstance(name, str) or not EXTENSION_NAME.fullmatch(name):
            raise BadMesh(BAD_JSON)
        if name in COMPRESSIONS:
            raise BadMesh(_compressed(COMPRESSIONS[name]))
        if not KNOWN_EXTENSIONS.fullmatch(name):
            raise BadMesh(f"The mesh needs the glTF extension {name}, which is not read.")


def _check_uris(document: dict[str, Any]) -> None:
    for kind in ("buffers", "images"):
        for entry in _list(document, kind):
            uri = entry.get("uri", "data:") if isinstance(entry, dict) else None
            if not isinstance(uri, str):
                raise BadMesh(BAD_JSON)
            if not uri.startswith("data:"):
                raise BadMesh(OUTSIDE)


def _buffers(document: dict[str, Any], binary: bytes | None) -> list[bytes]:
    buffers = []
    for index, entry in enumerate(_list(document, "buffers")):
        if "uri" in entry:
            data = _data(entry["uri"])
        elif index == 0 and binary is not None:
            data = binary
        else:
            raise BadMesh(DAMAGED)
        if _integer(entry.get("byteLength"), 1, 2**40) > len(data):
            raise BadMesh(DAMAGED)
        buffers.append(data)
    return buffers


def _data(uri: str) -> bytes:
    head, comma, text = uri.partition(",")
    if not comma or not head.endswith(";base64"):
        raise BadMesh(BAD_JSON)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadMesh(DAMAGED) from error


def read_glb(content: bytes, limits: MeshLimits) -> tuple[list[Piece], Glb]:
    """The parts of a GLB file's scene, where its nodes put them.

    Raises:
        BadMesh: as `open_glb`, or it has no triangles.
        LimitExceeded: it is larger than `limits` allow.
    """
    glb = open_glb(content, limits)
    placed = [
        (primitive, matrix)
        for mesh, matrix in _placed_meshes(glb, limits)
        for primitive in _triangles(glb, mesh)
    ]
    if not placed:
        raise BadMesh(NO_TRIANGLES)
    return [_piece(glb, primitive, matrix) for primitive, matrix in placed], glb


def _placed_meshes(glb: Glb, limits: MeshLimits) -> list[tuple[int, Floats]]:
    """Every mesh of the scene with its matrix; without nodes, all that there are.

    Everything is counted before anything is made: a small file can show one mesh many times.
    """
    placed: list[tuple[int, Floats]] = []
    total = _Total(glb, limits)
    nodes = _list(glb.document, "nodes")
    if not nodes:
        placed = [(index, IDENTITY) for index in range(len(_list(glb.document, "meshes")))]
        for index, _ in placed:
            total.add(index)
    waiting = [(root, IDENTITY) for root in _roots(glb, nodes)]
    seen: set[int] = set()
    while waiting:
        index, above = waiting.pop()
        node = glb.entry("nodes", index)
        if index in seen:
            raise BadMesh(BAD_JSON)
        seen.add(index)
        matrix = _matrix(node, above)
        if "EXT_mesh_gpu_instancing" in _dictionary(node, "extensions"):
            raise BadMesh("The mesh has GPU instances, which are not read.")
        if "mesh" in node:
            mesh = _integer(node["mesh"], 0, len(_list(glb.document, "meshes")) - 1)
            total.add(mesh)
            placed.append((mesh, matrix))
        waiting.extend((child, matrix) for child in reversed(_list(node, "children")))
    return placed


class _Total:
    """What the meshes of a scene add up to; each is looked at once."""

    def __init__(self, glb: Glb, limits: MeshLimits) -> None:
        self._glb, self._limits = glb, limits
        self._of_mesh: dict[int, tuple[int, int, int]] = {}
        self._parts = self._vertices = self._faces = 0

    def add(self, mesh: int) -> None:
        """Counts a mesh once more; raises `LimitExceeded` when it is too much."""
        if mesh not in self._of_mesh:
            self._of_mesh[mesh] = self._count(mesh)
        parts, vertices, faces = self._of_mesh[mesh]
        self._parts += parts
        self._vertices += vertices
        self._faces += faces
        self._limits.check(self._vertices, self._faces)
        most = self._limits.max_parts
        if self._parts > most:
            raise LimitExceeded(f"The mesh has more than {most} parts.", limit="max_mesh_parts", value=most)

    def _count(self, mesh: int) -> tuple[int, int, int]:
        primitives = _triangles(self._glb, mesh)
        vertices = faces = 0
        for primitive in primitives:
            count = self._glb.count(_dictionary(primitive, "attributes").get("POSITION"))
            corners = self._glb.count(primitive["indices"]) if "indices" in primitive else count
            vertices += count
            plain = primitive.get("mode", TRIANGLES) == TRIANGLES
            faces += corners // 3 if plain else max(corners - 2, 0)
        return len(primitives), vertices, faces


def _roots(glb: Glb, nodes: list[Any]) -> list[Any]:
    if "scenes" in glb.document:
        return list(reversed(_list(glb.entry("scenes", glb.document.get("scene", 0)), "nodes")))
    children = [child for node in nodes if isinstance(node, dict) for child in _list(node, "children")]
    below = {child for child in children if isinstance(child, int)}
    return [index for index in reversed(range(len(nodes))) if index not in below]


def _matrix(node: dict[str, Any], above: Floats) -> Floats:
    """What a node's coordinates are multiplied by, with that of the node above it."""
    if not TRANSFORMS.isdisjoint(node):
        with np.errstate(all="ignore"):
            above = above @ _own_matrix(node)
        if not np.isfinite(above).all():
            raise BadMesh(BAD_JSON)
    return above


def _own_matrix(node: dict[str, Any]) -> Floats:
    if "matrix" in node:
        return _floats(node, "matrix", (0.0,) * 16).reshape(4, 4).T
    x, y, z, w = _floats(node, "rotation", (0.0, 0.0, 0.0, 1.0))
    rotation = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * _floats(node, "scale", WHITE)
    matrix[:3, 3] = _floats(node, "translation", (0.0, 0.0, 0.0))
    return matrix


def _triangles(glb: Glb, mesh: int) -> list[dict[str, Any]]:
    """The primitives of a mesh that are made of triangles."""
    primitives = _list(glb.entry("meshes", mesh), "primitives")
    for primitive in primitives:
        if not isinstance(primitive, dict) or not isinstance(primitive.get("mode", TRIANGLES), int):
            raise BadMesh(BAD_JSON)
        if "KHR_draco_mesh_compression" in _dictionary(primitive, "extensions"):
            position = glb.entry("accessors", _dictionary(primitive, "attributes").get("POSITION"))
            if "bufferView" not in position:
                raise BadMesh(_compressed("Draco"))
    return [p for p in primitives if p.get("mode", TRIANGLES) in (TRIANGLES, STRIP, FAN)]


def _piece(glb: Glb, primitive: dict[str, Any], matrix: Floats) -> Piece:
    attributes = _dictionary(primitive, "attributes")
    positions = glb.scaled(attributes.get("POSITION"), "VEC3")
    with np.errstate(all="ignore"):
        vertices = positions if matrix is IDENTITY else positions @ matrix[:3, :3].T + matrix[:3, 3]
        mirrored = np.linalg.det(matrix[:3, :3]) < 0
    faces = _faces(glb, primitive, len(vertices))
    piece = Piece(vertices, faces[:, [0, 2, 1]] if mirrored else faces)
    material = glb.entry("materials", primitive["material"]) if "material" in primitive else {}
    shading = _dictionary(material, "pbrMetallicRoughness")
    factor = _floats(shading, "baseColorFactor", (*WHITE, 1.0))[:3].clip(0, 1)
    linear = _vertex_factor(glb, attributes, len(vertices))
    texture = shading.get("baseColorTexture")
    if texture is not None:
        piece.coordinates = _coordinates(glb, texture, attributes, len(vertices))
    if piece.coordinates is not None and isinstance(texture, dict):
        image = _image_index(glb, texture)
        piece.image = (image, (float(factor[0]), float(factor[1]), float(factor[2])))
        if linear is not None and (linear < 1).any():
            piece.colours = to_srgb(linear)  # multiplied with the texture where pieces are joined
    elif linear is not None or (factor < 1).any():
        ones = np.ones((len(vertices), 3)) if linear is None else linear
        piece.colours = to_srgb(ones * factor)
    return piece


def _faces(glb: Glb, primitive: dict[str, Any], vertices: int) -> Integers:
    if "indices" in primitive:
        indices = glb.accessor(primitive["indices"], "SCALAR")
        if indices.dtype.kind != "u":
            raise BadMesh(BAD_JSON)
        corners = indices[:, 0].astype(np.int64)
        check_indices(corners, vertices)
    else:
        corners = np.arange(vertices)
    mode = primitive.get("mode", TRIANGLES)
    if mode == TRIANGLES:
        if len(corners) % 3:
            raise BadMesh(DAMAGED)
        return corners.reshape(-1, 3)
    step = np.arange(max(len(corners) - 2, 0))
    if mode == FAN:
        return np.stack([corners[step + 1], corners[step + 2], np.full(len(step), corners[0])], 1)
    odd = step % 2
    return np.stack([corners[step], corners[step + 1 + odd], corners[step + 2 - odd]], 1)


def _vertex_factor(glb: Glb, attributes: dict[str, Any], vertices: int) -> Floats | None:
    """`[n, 3]` linear colours of the vertices, 0 to 1."""
    if "COLOR_0" not in attributes:
        return None
    values = glb.scaled(attributes["COLOR_0"], "VEC3", "VEC4", normalized=True)
    if len(values) != vertices:
        raise BadMesh(DAMAGED)
    return np.asarray(np.nan_to_num(values[:, :3]).clip(0, 1), np.float64)


def _coordinates(
    glb: Glb, texture: object, attributes: dict[str, Any], vertices: int
) -> NDArray[np.float32] | None:
    """Texture coordinates as `Texture` has them, v up; None when the vertices have none."""
    if not isinstance(texture, dict):
        raise BadMesh(BAD_JSON)
    transform = _dictionary(_dictionary(texture, "extensions"), "KHR_texture_transform")
    channel = _integer(transform.get("texCoord", texture.get("texCoord", 0)), 0, 99)
    name = f"TEXCOORD_{channel}"
    if name not in attributes:
        return None
    uv = glb.scaled(attributes[name], "VEC2", normalized=True)
    if len(uv) != vertices:
        raise BadMesh(DAMAGED)
    if transform:
        angle = transform.get("rotation", 0.0)
        (angle,) = _floats({"rotation": [angle]}, "rotation", (0.0,))
        cos, sin = np.cos(angle), np.sin(angle)
        with np.errstate(all="ignore"):
            scaled = uv * _floats(transform, "scale", (1.0, 1.0))
            uv = scaled @ np.array([[cos, -sin], [sin, cos]]) + _floats(transform, "offset", (0.0, 0.0))
    if not np.isfinite(uv).all() or np.abs(uv).max() > 2**20:
        raise BadMesh("The texture coordinates of the mesh are not numbers of a sensible size.")
    return np.asarray(np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1), np.float32)


def _image_index(glb: Glb, texture: dict[str, Any]) -> int:
    entry = glb.entry("textures", texture.get("index"))
    extensions = _dictionary(entry, "extensions")
    sources = [_dictionary(extensions, name).get("source") for name in TEXTURE_SOURCES]
    source = next((s for s in [*sources, entry.get("source")] if s is not None), None)
    glb.entry("images", source)
    return _integer(source, 0, 2**31)


def texture_pixels(glb: Glb, index: int, factor: tuple[float, float, float]) -> Bytes:
    """`uint8 [height, width, 3]`, stored sRGB: an image of the file times a linear colour.

    Raises:
        BadMesh: it is damaged or of a kind that isn't read.
        LimitExceeded: it is too large.
    """
    entry = glb.entry("images", index)
    data = _data(entry["uri"]) if "uri" in entry else bytes(glb.view(entry.get("bufferView")))
    try:
        pixels = read_image(data, ImageLimits(max_pixels=glb.limits.max_texture_pixels))
    except LimitExceeded as error:
        limit = "max_texture_pixels" if error.limit == "max_image_pixels" else error.limit
        raise LimitExceeded(f"In a texture: {error}", limit=limit, value=error.value) from error
    except (BadImage, UnsupportedMedia) as error:
        raise BadMesh(f"A texture of the mesh cannot be read: {error}") from error
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8)
    channels = [0, 0, 0] if pixels.shape[2] < len(WHITE) else [0, 1, 2]
    rgb = np.asarray(pixels[..., channels], np.uint8)
    if factor != WHITE:
        steps = to_linear(np.arange(256, dtype=np.uint8))
        tables = [to_srgb(steps * channel) for channel in factor]
        rgb = np.stack([table[rgb[..., i]] for i, table in enumerate(tables)], axis=2)
    return np.ascontiguousarray(rgb, np.uint8)


def to_linear(stored: Bytes) -> Floats:
    """Stored sRGB bytes as linear values 0 to 1 (IEC 61966-2-1)."""
    values = np.arange(256) / 255.0
    table = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.asarray(table[stored], np.float64)


def to_srgb(linear: Floats) -> Bytes:
    """Linear values 0 to 1 as stored sRGB bytes (IEC 61966-2-1)."""
    curve = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(curve.clip(0, 1) * 255), np.uint8)
