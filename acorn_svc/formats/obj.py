"""Reading OBJ files.

Only vertices, their colours and faces are read: materials and textures are other files, and those
are never opened. trimesh counts negative indices from the end of the file instead of from where they
stand, and takes index 0 for 1; here the standard's rules hold.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from acorn_svc.errors import BadMesh
from acorn_svc.formats.mesh_pieces import (
    BAD_INDEX,
    DAMAGED,
    NO_TRIANGLES,
    Floats,
    Integers,
    MeshLimits,
    Piece,
    decode_text,
    dropped_polygons,
    number_rows,
    numbers,
    to_uint8,
    triangulate,
)

VERTEX = re.compile(r"^[ \t]*v[ \t](.*)$", re.MULTILINE)
FACE = re.compile(r"^[ \t]*f[ \t](.*)$", re.MULTILINE)
EITHER = re.compile(r"^[ \t]*([vf])[ \t]", re.MULTILINE)
AFTER_SLASH = re.compile(r"/[^\s]*")
COMMENT = re.compile(r"#.*")
COLOURED = 6  # values of a vertex with a colour


def read_obj(content: bytes, limits: MeshLimits) -> list[Piece]:
    """The mesh of an OBJ file; `mtllib` and everything else but vertices and faces is ignored.

    Raises:
        BadMesh: a line of a vertex or face is damaged, or there are no faces.
        LimitExceeded: it is larger than `limits` allow.
    """
    text = decode_text(content)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\\\n" in text:
        text = text.replace("\\\n", " ")
    if "#" in text:
        text = COMMENT.sub("", text)
    faces = FACE.findall(text)
    if not faces:
        raise BadMesh(NO_TRIANGLES)
    lines = VERTEX.findall(text)
    limits.check(len(lines), len(faces))
    vertices, colours = _vertices(lines)
    corners, lengths = _corners(faces)
    if corners.size and corners.min() < 0:
        corners = _absolute(corners, lengths, EITHER.findall(text))
    kept = lengths >= 3
    corners = corners[np.repeat(kept, lengths)] - 1
    triangles, _ = triangulate(vertices, corners, lengths[kept], limits)
    return [Piece(vertices, triangles, colours, repairs=dropped_polygons(int((~kept).sum())))]


def _vertices(lines: list[str]) -> tuple[Floats, NDArray[np.uint8] | None]:
    """Positions, and colours when every vertex has one."""
    values, starts, lengths = number_rows(lines, 3)
    positions = values[starts[:, None] + np.arange(3)]
    if lengths.min() < COLOURED:
        return positions, None
    colours = values[starts[:, None] + np.arange(3, COLOURED)]
    bytes_instead = bool((colours > 1).any())
    return positions, to_uint8(colours, np.dtype(np.uint8 if bytes_instead else np.float64))


def _corners(lines: list[str]) -> tuple[Integers, Integers]:
    """Indices as they stand there, from 1 on or negative, and how many each face has."""
    lengths = np.array([len(line.split()) for line in lines], np.int64)
    corners = numbers(AFTER_SLASH.sub("", " ".join(lines)), np.int64)
    if lengths.sum() != len(corners):
        raise BadMesh(DAMAGED)
    return corners, lengths


def _absolute(corners: Integers, lengths: Integers, kinds: list[str]) -> Integers:
    """Indices from 1 on. Negative ones count back from the last vertex above their line."""
    is_vertex = np.array([kind == "v" for kind in kinds])
    above = np.repeat(np.cumsum(is_vertex)[~is_vertex], lengths)
    absolute = np.where(corners < 0, corners + above + 1, corners)
    if absolute.min() < 1:
        raise BadMesh(BAD_INDEX)
    return absolute
