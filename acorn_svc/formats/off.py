"""Reading OFF files.

trimesh fills up what is missing from what follows; here every row has to be there.
"""

from __future__ import annotations

import re

import numpy as np

from acorn_svc.errors import BadMesh
from acorn_svc.formats.mesh_pieces import (
    DAMAGED,
    NO_TRIANGLES,
    MeshLimits,
    Piece,
    decode_text,
    dropped_polygons,
    local_indices,
    number_rows,
    numbers,
    triangulate,
    whole_numbers,
)

START = re.compile(r"(?:\s|#[^\n]*\n)*(ST)?(C)?(N)?(4)?(n)?OFF(?![A-Za-z])")
COMMENT = re.compile(r"#.*")


def read_off(content: bytes, limits: MeshLimits) -> list[Piece]:
    """The mesh of an OFF file in text; colours and everything else behind positions is ignored.

    Raises:
        BadMesh: it is binary, damaged or cut, or holds no faces.
        LimitExceeded: it is larger than `limits` allow.
    """
    text = decode_text(content)
    start = START.match(text)
    if start is None or start[4] or start[5]:
        raise BadMesh("The OFF file has other than three dimensions.")
    text = COMMENT.sub("", text[start.end() :])
    if text.split(maxsplit=1)[:1] == ["BINARY"]:
        raise BadMesh("The OFF file is binary; OFF in text is read.")
    lines = [line for line in text.splitlines() if line and not line.isspace()]
    counts = whole_numbers(numbers(lines[0] if lines else ""))
    if len(counts) < 2 or counts[:2].min() < 0:
        raise BadMesh(DAMAGED)
    vertices, faces = int(counts[0]), int(counts[1])
    if vertices + faces + 1 > len(lines):
        raise BadMesh(DAMAGED)
    limits.check(vertices, faces)
    if not faces:
        raise BadMesh(NO_TRIANGLES)
    values, starts, lengths = number_rows(lines[1 : vertices + 1], 3)
    positions = values[starts[:, None] + np.arange(3)]
    values, starts, lengths = number_rows(lines[vertices + 1 : vertices + faces + 1], 1)
    sizes = whole_numbers(values[starts])
    if sizes.min() < 0 or (sizes >= lengths).any():
        raise BadMesh(DAMAGED)
    corners = whole_numbers(values[np.repeat(starts + 1, sizes) + local_indices(sizes)])
    kept = sizes >= 3
    triangles, _ = triangulate(positions, corners[np.repeat(kept, sizes)], sizes[kept], limits)
    return [Piece(positions, triangles, repairs=dropped_polygons(int((~kept).sum())))]
