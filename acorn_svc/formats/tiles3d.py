"""3D Tiles 1.1: the tiles of a shape as an implicit octree, `tileset.json` and binary subtrees.

Tiles have the coordinates of the mesh, relative to the root tile whose transform moves them to where the
mesh is. The content of a tile is glTF, in which y points up where in 3D Tiles z does: a client turns every
content by a quarter, and so it is stored as (x, z, -y).

Source: OGC 22-025r4, 3D Tiles 1.1, sections 7 and 8 (implicit tiling, subtrees).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from acorn_svc.field.mesh import Mesh, MeshPart
from acorn_svc.field.tiles import ShapeTiles, Tile
from acorn_svc.field.tree import BoolArray, morton_encode
from acorn_svc.formats.mesh_files import stream_mesh

VERSION: Final = "1.1"
CONTENT_URI: Final = "content/{level}/{x}/{y}/{z}.glb"
SUBTREE_URI: Final = "subtrees/{level}.{x}.{y}.{z}.subtree"
MAX_SUBTREE_LEVELS: Final = 5  # up to 4681 tiles in one file of at most 5 KB
MAGIC: Final = b"subt"
SUBTREE_VERSION: Final = 1
HEADER: Final = struct.Struct("<4sIQQ")
ALIGNMENT: Final = 8
GLB_ALIGNMENT: Final = 4

Document = dict[str, Any]


def tileset(tiles: ShapeTiles, version: int, folder: str = "") -> Document:
    """The JSON document that clients open; its tiles are in `folder`, as seen from it, with a final slash.

    Where addresses are to change with the `version` of the shape, the folder does: not every client carries a
    query on to deeper subtrees.
    """
    half = tiles.root_side / 2
    signal = tiles.field.signal
    return {
        "asset": {"version": VERSION, "tilesetVersion": str(version)},
        "geometricError": tiles.root_side,
        "root": {
            "boundingVolume": {"box": [half, half, half, half, 0, 0, 0, half, 0, 0, 0, half]},
            "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, *signal.origin, 1],
            "geometricError": tiles.error(0),
            "refine": "REPLACE",
            "content": {"uri": folder + CONTENT_URI},
            "implicitTiling": {
                "subdivisionScheme": "OCTREE",
                "availableLevels": len(tiles.levels),
                "subtreeLevels": subtree_levels(tiles),
                "subtrees": {"uri": folder + SUBTREE_URI},
            },
        },
    }


def subtree_levels(tiles: ShapeTiles) -> int:
    """Levels of tiles in one subtree."""
    return min(len(tiles.levels), MAX_SUBTREE_LEVELS)


def has_subtree(tiles: ShapeTiles, root: Tile) -> bool:
    """Whether a subtree begins at `root`."""
    return root.level % subtree_levels(tiles) == 0 and tiles.exists(root)


def subtree(tiles: ShapeTiles, root: Tile) -> bytes:
    """The binary file that says which tiles exist below (and at) `root`, where a subtree begins."""
    count = subtree_levels(tiles)
    bits = np.concatenate([_below(tiles, root, level) for level in range(count)])
    children = _below(tiles, root, count)
    document: Document = {
        "tileAvailability": {"bitstream": 0, "availableCount": int(bits.sum())},
        # Every tile that exists has content.
        "contentAvailability": [{"bitstream": 0, "availableCount": int(bits.sum())}],
        "childSubtreeAvailability": {"constant": 0},
    }
    streams = [bits]
    if children.any():
        streams.append(children)
        document["childSubtreeAvailability"] = {"bitstream": 1, "availableCount": int(children.sum())}
    return _packed(document, streams)


def content(mesh: Mesh, spool: Path) -> bytes:
    """The mesh of a tile as a GLB file; `spool` is a folder for temporary files."""
    if not len(mesh.faces) or mesh.normals is None:
        return _glb_of_nothing()
    vertices = _y_up(mesh.vertices).astype(np.float32)
    part = MeshPart(vertices, _y_up(mesh.normals), mesh.colours, mesh.faces)
    return b"".join(stream_mesh([part], "glb", spool))


def _glb_of_nothing() -> bytes:
    """A GLB file whose scene is empty: there may be no surface where a block might hold some."""
    text = json.dumps({"asset": {"version": "2.0"}, "scene": 0, "scenes": [{}]}).encode()
    text += b" " * (-len(text) % GLB_ALIGNMENT)
    chunk = struct.pack("<I4s", len(text), b"JSON") + text
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunk)) + chunk


def _y_up(vectors: NDArray[Any]) -> NDArray[Any]:
    return np.stack([vectors[:, 0], vectors[:, 2], -vectors[:, 1]], axis=1)


def _below(tiles: ShapeTiles, root: Tile, levels: int) -> BoolArray:
    """Which of the `8**levels` tiles so many levels below `root` exist, in Morton order (x lowest)."""
    flags = np.zeros(8**levels, bool)
    level = root.level + levels
    if level >= len(tiles.levels):
        return flags
    low = np.array([root.x, root.y, root.z]) << levels
    part = tuple(slice(at, at + (1 << levels)) for at in low[::-1])
    places = np.argwhere(tiles.levels[level][part])[:, ::-1]
    flags[morton_encode(places).astype(np.int64)] = True
    return flags


def _packed(document: Document, streams: list[BoolArray]) -> bytes:
    """Header, JSON and bitstreams, lowest bit first, each padded to 8 bytes."""
    parts = [np.packbits(flags, bitorder="little").tobytes() for flags in streams]
    views, binary = [], b""
    for part in parts:
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(part)})
        binary += part + b"\0" * (-len(part) % ALIGNMENT)
    document = {"buffers": [{"byteLength": len(binary)}], "bufferViews": views, **document}
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return HEADER.pack(MAGIC, SUBTREE_VERSION, len(text), len(binary)) + text + binary
