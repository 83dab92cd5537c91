"""Reading PLY files, text and binary.

trimesh takes only polygons that all have as many corners as the first, and believes the header; here
lists of any lengths are read, and every count is held against the bytes that are there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acorn_svc.errors import BadMesh
from acorn_svc.formats.mesh_pieces import (
    DAMAGED,
    NO_TRIANGLES,
    Integers,
    MeshLimits,
    Piece,
    dropped_polygons,
    local_indices,
    numbers,
    to_uint8,
    triangulate,
    whole_numbers,
)

MAX_HEADER_BYTES = 65_536
MAX_PROPERTIES = 256
MAX_EQUAL_LENGTH = 2**20  # numpy has no types of 2 GiB
TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2",
    "int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8", "int64": "i8", "uint64": "u8",
}  # fmt: skip
ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
STRUCT_CODES = {
    "i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q",
    "f4": "f", "f8": "d",
}  # fmt: skip
INDEX_NAMES = ("vertex_indices", "vertex_index")
COLOUR_NAMES = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
BAD_HEADER = "The header of the PLY file is damaged."


@dataclass(frozen=True)
class _Property:
    """`count` is the type of a list's length, None for a single value; types as numpy writes them."""

    name: str
    type: str
    count: str | None = None


@dataclass(frozen=True)
class _Element:
    name: str
    rows: int
    properties: list[_Property]


@dataclass(frozen=True)
class _List:
    """A list of each row: all values one after the other, and how many each row has."""

    values: NDArray[Any]
    lengths: Integers


_Table = dict[str, "NDArray[Any] | _List"]


def read_ply(content: bytes, limits: MeshLimits) -> list[Piece]:
    """The mesh of a PLY file.

    Raises:
        BadMesh: it is damaged, cut, or holds no faces.
        LimitExceeded: it is larger than `limits` allow.
    """
    order, elements, start = _header(content)
    declared = {(e.name, p.name): np.dtype(p.type) for e in elements for p in e.properties}
    size = {element.name: element.rows for element in elements}
    if order:
        _check_room(elements, len(content) - start, text=False)
        body = content[start:]
    else:
        _check_room(elements, len(content) - start, text=True)
        # text becomes a binary file of doubles, so that one reader does
        body = numbers(content[start:].decode("latin-1")).tobytes()
        elements = [_as_doubles(element) for element in elements]
        order = "<"
    limits.check(size.get("vertex", 0), size.get("face", 0))
    return [_piece(_tables(body, order, elements), declared, limits)]


def _header(content: bytes) -> tuple[str, list[_Element], int]:
    """Byte order (none for text), elements, and where the data starts."""
    end = content.find(b"end_header", 0, MAX_HEADER_BYTES)
    if end < 0:
        raise BadMesh(BAD_HEADER)
    start = end + len(b"end_header")
    start += 2 if content[start : start + 2] == b"\r\n" else 1
    order, elements = None, list[_Element]()
    for line in content[:end].decode("latin-1").replace("\r", "\n").split("\n")[1:]:
        words = line.split()
        if words[:1] == ["format"] and len(words) > 1:
            order = ORDERS.get(words[1])
        elif words[:1] == ["element"]:
            elements.append(_element(words))
        elif words[:1] == ["property"]:
            if not elements or len(elements[-1].properties) >= MAX_PROPERTIES:
                raise BadMesh(BAD_HEADER)
            elements[-1].properties.append(_property(words, elements[-1]))
    if order is None or len({element.name for element in elements}) < len(elements):
        raise BadMesh(BAD_HEADER)
    return order, elements, start


def _element(words: list[str]) -> _Element:
    if len(words) != 3 or not words[2].isascii() or not words[2].isdigit() or len(words[2]) > 15:
        raise BadMesh(BAD_HEADER)
    return _Element(words[1], int(words[2]), [])


def _property(words: list[str], element: _Element) -> _Property:
    kinds = [TYPES.get(word) for word in words[1:-1]]
    name = words[-1]
    if any(other.name == name for other in element.properties):
        raise BadMesh(BAD_HEADER)
    if len(kinds) == 1 and kinds[0]:
        return _Property(name, kinds[0])
    if len(kinds) == 3 and words[1] == "list" and kinds[1] and kinds[2]:
        return _Property(name, kinds[2], kinds[1])
    raise BadMesh(BAD_HEADER)


def _as_doubles(element: _Element) -> _Element:
    properties = [_Property(p.name, "f8", p.count and "f8") for p in element.properties]
    return _Element(element.name, element.rows, properties)


def _check_room(elements: list[_Element], room: int, text: bool) -> None:
    """Whether as many rows as the header says can be there at all.

    In text a value takes a digit and a space.
    """
    needed = 0
    for element in elements:
        sizes = [2 if text else np.dtype(p.count or p.type).itemsize for p in element.properties]
        needed += element.rows * sum(sizes)
        if not sizes and element.rows:
            raise BadMesh(BAD_HEADER)
    if needed > room + 1:
        raise BadMesh(DAMAGED)


def _tables(body: bytes, order: str, elements: list[_Element]) -> dict[str, _Table]:
    tables, position = {}, 0
    for element in elements:
        tables[element.name], position = _table(body, position, order, element)
    if body[position:].strip():
        raise BadMesh(DAMAGED)
    return tables


def _table(body: bytes, position: int, order: str, element: _Element) -> tuple[_Table, int]:
    """The values of an element, and where the next one starts."""
    if not element.rows:
        return {p.name: _nothing(p) for p in element.properties}, position
    lengths = _lengths_of_first_row(body, position, order, element)
    if max(lengths, default=0) > MAX_EQUAL_LENGTH:
        return _ragged_table(body, position, order, element)
    fields: list[Any] = []
    for p, length in zip(element.properties, lengths, strict=True):
        if p.count:
            fields.append((f"{p.name} count", order + p.count))
        fields.append((p.name, order + p.type, (length,)) if p.count else (p.name, order + p.type))
    dtype = np.dtype(fields)
    end = position + element.rows * dtype.itemsize
    if end <= len(body):
        rows = np.frombuffer(body, dtype, element.rows, position)
        lists = [(p, n) for p, n in zip(element.properties, lengths, strict=True) if p.count]
        if all((rows[f"{p.name} count"] == n).all() for p, n in lists):
            equal = {p.name: _List(rows[p.name].ravel(), np.full(element.rows, n)) for p, n in lists}
            return {p.name: equal.get(p.name, rows[p.name]) for p in element.properties}, end
    if not any(p.count for p in element.properties):
        raise BadMesh(DAMAGED)
    return _ragged_table(body, position, order, element)


def _nothing(p: _Property) -> NDArray[Any] | _List:
    empty = np.zeros(0, p.type)
    return _List(empty, np.zeros(0, np.int64)) if p.count else empty


def _lengths_of_first_row(body: bytes, position: int, order: str, element: _Element) -> list[int]:
    lengths = []
    for p in element.properties:
        length, position = _length(body, position, order, p)
        lengths.append(length)
    return lengths


def _length(body: bytes, position: int, order: str, p: _Property) -> tuple[int, int]:
    """How many values the property has at `position`, and where the next property starts."""
    length = 1
    if p.count:
        code = struct.Struct(order + STRUCT_CODES[p.count])
        if position + code.size > len(body):
            raise BadMesh(DAMAGED)
        (found,) = code.unpack_from(body, position)
        position += code.size
        if not 0 <= found <= len(body) or found != int(found):
            raise BadMesh(DAMAGED)
        length = int(found)
    position += length * np.dtype(p.type).itemsize
    if position > len(body):
        raise BadMesh(DAMAGED)
    return length, position


def _ragged_table(body: bytes, position: int, order: str, element: _Element) -> tuple[_Table, int]:
    """Rows whose lists differ in length: where each starts is only known from the one before."""
    steps = [
        (struct.Struct(order + STRUCT_CODES[p.count]) if p.count else None, np.dtype(p.type).itemsize)
        for p in element.properties
    ]
    starts = np.empty((len(steps), element.rows), np.int64)
    lengths = np.ones((len(steps), element.rows), np.int64)
    try:
        for row in range(element.rows):
            for column, (code, size) in enumerate(steps):
                length = 1
                if code:
                    length = int(code.unpack_from(body, position)[0])
                    position += code.size
                    lengths[column, row] = length
                if length < 0:
                    raise BadMesh(DAMAGED)
                starts[column, row] = position
                position += length * size
    except (struct.error, OverflowError, ValueError) as error:
        raise BadMesh(DAMAGED) from error
    if position > len(body):
        raise BadMesh(DAMAGED)
    table: _Table = {}
    for p, first, sizes in zip(element.properties, starts, lengths, strict=True):
        values = _gather(body, first, sizes, np.dtype(order + p.type))
        table[p.name] = _List(values, sizes) if p.count else values
    return table, position


def _gather(body: bytes, starts: Integers, lengths: Integers, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The values of all runs: `lengths` values each, from `starts` in bytes."""
    firsts = np.repeat(starts, lengths) + local_indices(lengths) * dtype.itemsize
    single: NDArray[np.uint8] = np.frombuffer(body, np.uint8)[firsts[:, None] + np.arange(dtype.itemsize)]
    return np.asarray(single.reshape(-1).view(dtype))


def _piece(
    tables: dict[str, _Table], declared: dict[tuple[str, str], np.dtype[Any]], limits: MeshLimits
) -> Piece:
    table, faces = tables.get("vertex", {}), tables.get("face", {})
    polygons = next((faces[name] for name in INDEX_NAMES if name in faces), None)
    if not isinstance(polygons, _List) or not len(polygons.lengths):
        raise BadMesh(NO_TRIANGLES)
    columns = [table.get(name) for name in "xyz"]
    if not all(isinstance(column, np.ndarray) for column in columns):
        raise BadMesh("The vertices of the mesh have no positions.")
    with np.errstate(invalid="ignore"):  # of signalling NaNs, which are found later
        vertices = np.stack(columns, axis=1).astype(np.float64)  # type: ignore[arg-type]
    corners, kept = whole_numbers(polygons.values), polygons.lengths >= 3
    corners = corners[np.repeat(kept, polygons.lengths)]
    triangles, owners = triangulate(vertices, corners, polygons.lengths[kept], limits)
    face_colours = _colours(faces, "face", declared)
    return Piece(
        vertices,
        triangles,
        _colours(table, "vertex", declared),
        None if face_colours is None else face_colours[kept][owners],
        repairs=dropped_polygons(int((~kept).sum())),
    )


def _colours(
    table: _Table, element: str, declared: dict[tuple[str, str], np.dtype[Any]]
) -> NDArray[np.uint8] | None:
    for names in COLOUR_NAMES:
        columns = [table.get(name) for name in names]
        if all(isinstance(column, np.ndarray) for column in columns):
            pairs = zip(names, columns, strict=True)
            channels = [to_uint8(column, declared[element, name]) for name, column in pairs]  # type: ignore[arg-type]
            return np.stack(channels, axis=1)
    return None
