"""The table of marching cubes, made from one rule.

Corner ``c`` of a cell lies at ``(c & 1, c >> 1 & 1, c >> 2 & 1)`` from its low corner. Bit ``c`` of a cell's
case says that this corner is inside. Edge ``e`` runs from corner ``EDGES[e][0]`` along axis ``EDGES[e][1]``
(x = 0, y = 1, z = 2).

On each face of a cell every run of inside corners is cut off by one segment: where two inside corners lie
across from each other they stay apart. The rule looks at the four signs of the face alone, so the two cells
of a face agree on it. The segments of the six faces join to loops, and a loop is cut into triangles by
diagonals of which none lies in a face. So a diagonal belongs to one cell and a segment to the two cells of
its face: the surface is closed, and around each of its vertices lies one fan (Lorensen and Cline 1987; why
faces need a rule: Nielson and Hamann 1991).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

CORNERS = 8
CASES = 1 << CORNERS
AXES = 3
EDGES = tuple((corner, axis) for axis in range(AXES) for corner in range(CORNERS) if not corner >> axis & 1)
# Corners of each face, counter-clockwise seen from outside the cell.
FACES = ((0, 4, 6, 2), (1, 3, 7, 5), (0, 1, 5, 4), (2, 6, 7, 3), (0, 2, 3, 1), (4, 5, 7, 6))
TRIANGLE = 3

Loop = tuple[int, ...]
Triangles = list[tuple[int, int, int]]

_EDGE_OF = {frozenset((corner, corner | 1 << axis)): edge for edge, (corner, axis) in enumerate(EDGES)}
_FACES_OF = [
    {face for face, corners in enumerate(FACES) if {corner, corner | 1 << axis} <= set(corners)}
    for corner, axis in EDGES
]


def segments(case: int, face: int) -> Iterator[tuple[int, int]]:
    """Pairs of edges that the surface joins on a face, the inside on the right seen from outside the cell."""
    corners = FACES[face]
    inside = [bool(case >> corner & 1) for corner in corners]
    for start in range(len(corners)):
        if not inside[start - 1] and inside[start]:
            end = start
            while inside[(end + 1) % len(corners)]:
                end += 1
            yield _edge(corners, start - 1), _edge(corners, end)


def _edge(corners: tuple[int, ...], side: int) -> int:
    count = len(corners)
    return _EDGE_OF[frozenset((corners[side % count], corners[(side + 1) % count]))]


def loops(case: int) -> list[Loop]:
    """Closed walks over edges, counter-clockwise seen from outside the surface."""
    following = dict(pair for face in range(len(FACES)) for pair in segments(case, face))
    result = []
    while following:
        walk = [min(following)]
        while walk[0] != (after := following.pop(walk[-1])):
            walk.append(after)
        result.append(tuple(walk))
    return result


def triangulations(loop: Loop) -> Iterator[Triangles]:
    """All ways to cut a loop into triangles."""
    if len(loop) < TRIANGLE:
        yield []
        return
    for apex in range(1, len(loop) - 1):
        for left in triangulations(loop[: apex + 1]):
            for right in triangulations(loop[apex:]):
                yield [*left, (loop[0], loop[apex], loop[-1]), *right]


def _lies_in_a_face(first: int, second: int) -> bool:
    return bool(_FACES_OF[first] & _FACES_OF[second])


def _sound(loop: Loop, triangles: Triangles) -> bool:
    rim = {frozenset(pair) for pair in zip(loop, (*loop[1:], loop[0]), strict=True)}
    sides = {frozenset(pair) for a, b, c in triangles for pair in ((a, b), (b, c), (c, a))}
    return not any(_lies_in_a_face(*side) for side in sides - rim)


def case_triangles(case: int) -> Triangles:
    """Triangles of a case, corners as edges, counter-clockwise seen from outside the surface."""
    return [
        triangle
        for loop in loops(case)
        for triangle in next(found for found in triangulations(loop) if _sound(loop, found))
    ]


def _table() -> NDArray[np.int8]:
    cases = [case_triangles(case) for case in range(CASES)]
    table = np.full((CASES, max(map(len, cases)), TRIANGLE), -1, np.int8)
    for row, triangles in zip(table, cases, strict=True):
        row[: len(triangles)] = np.reshape(triangles, (-1, TRIANGLE))
    return table


TABLE = _table()  # int8 [256, most triangles, 3]: edges, -1 behind the last triangle
TABLE.flags.writeable = False
