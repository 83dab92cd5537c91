"""Reading STL files, text and binary."""

from __future__ import annotations

import re

import numpy as np

from acorn_svc.errors import BadMesh
from acorn_svc.formats.mesh_pieces import (
    DAMAGED,
    NO_TRIANGLES,
    Floats,
    MeshLimits,
    Piece,
    decode_text,
    number_rows,
)

HEADER_BYTES = 80
TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
CORNER = re.compile(r"^\s*vertex\s(.*)$", re.MULTILINE | re.IGNORECASE)
FACET = re.compile(r"^\s*facet\b", re.MULTILINE | re.IGNORECASE)
END = re.compile(r"endsolid\b[^\n]*\s*$", re.IGNORECASE)


def is_binary_stl(content: bytes) -> bool:
    """Whether the length fits the number of triangles: the only mark that the format has."""
    if len(content) < HEADER_BYTES + 4:
        return False
    return len(content) == HEADER_BYTES + 4 + _count(content) * TRIANGLE.itemsize


def read_stl(content: bytes, limits: MeshLimits) -> list[Piece]:
    """The triangles of an STL file, of all its solids; their normals are ignored.

    Raises:
        BadMesh: it is damaged, cut, or holds no triangles.
        LimitExceeded: it is larger than `limits` allow.
    """
    corners = _binary(content, limits) if is_binary_stl(content) else _text(decode_text(content), limits)
    if not len(corners):
        raise BadMesh(NO_TRIANGLES)
    return [Piece(corners, np.arange(len(corners)).reshape(-1, 3))]


def _count(content: bytes) -> int:
    return int.from_bytes(content[HEADER_BYTES : HEADER_BYTES + 4], "little")


def _binary(content: bytes, limits: MeshLimits) -> Floats:
    triangles = _count(content)
    limits.check(3 * triangles, triangles)
    corners = np.frombuffer(content, TRIANGLE, triangles, HEADER_BYTES + 4)["corners"]
    with np.errstate(invalid="ignore"):
        return corners.reshape(-1, 3).astype(np.float64)


def _text(text: str, limits: MeshLimits) -> Floats:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = CORNER.findall(text)
    facets = sum(1 for _ in FACET.finditer(text))
    limits.check(len(lines), facets)
    if len(lines) != 3 * facets or not END.search(text, max(0, len(text) - 2**16)):
        raise BadMesh(DAMAGED)
    if not lines:
        raise BadMesh(NO_TRIANGLES)
    values, starts, _ = number_rows(lines, 3)
    corners: Floats = values[starts[:, None] + np.arange(3)]
    return corners
