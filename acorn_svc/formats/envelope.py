"""The envelope of the files that Acorn writes for itself: safetensors, sealed with a digest.

    header length | header JSON | tensors of the head | padding | digest | tensors of the tail

The digest covers every byte before it. Tensors of the tail are the caller's to check. The layout
follows from the names, dtypes and shapes alone (`docs/format.md`), so a header has nothing to say
that could be false but unnoticed: reading computes the layout again and compares.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acorn_svc.errors import BadModel, LimitExceeded
from acorn_svc.formats.files import Buffer

Array = NDArray[Any]
Document = dict[str, Any]

MAX_HEADER_BYTES = 1 << 20
MAX_DIMENSIONS = 8
MAX_SIDE = 1 << 62
ALIGNMENT = 8
LENGTH_BYTES = 8
DIGEST_BYTES = 32
RESERVED = {"__metadata__", "padding", "digest"}
DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "U32": "<u4",
    "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip
NAMES = {np.dtype(code): name for name, code in DTYPES.items()}


@dataclass(frozen=True)
class Slot:
    """A tensor that has a place in the file, but needs no content yet."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def item_bytes(self) -> int:
        """Size of one element."""
        return np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def total_bytes(self) -> int:
        """Size of all elements, exact whatever the shape says."""
        return math.prod(self.shape) * self.item_bytes


def canonical_json(value: object) -> str:
    """The one spelling of a JSON document.

    Raises:
        ValueError: a number in it isn't finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_json(text: str | bytes) -> Document:
    """A JSON object, without repeated keys and without NaN.

    Raises:
        BadModel: it is anything else.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise BadModel("The file's header is not valid JSON.") from error
    if not isinstance(value, dict):
        raise BadModel("The file's header is not a JSON object.")
    return value


def pack(
    key: str, document: Document, head: Mapping[str, Array], tail: Mapping[str, Array] | None = None
) -> list[Buffer]:
    """The parts of a sealed file, in order.

    Args:
        key: names the kind of document in the file's metadata.
        document: JSON-able.
        head: tensors that the digest covers.
        tail: tensors after the digest.

    Raises:
        ValueError: a number in the document isn't finite, or a tensor's name is reserved.
    """
    tail = tail or {}
    if RESERVED & {*head, *tail}:
        raise ValueError(f"the names {sorted(RESERVED)} are the envelope's own")
    slots = _layout([_slot(n, a) for n, a in head.items()], [_slot(n, a) for n, a in tail.items()])
    parts: list[Buffer] = [_header(key, document, slots)]
    parts += [plain_bytes(head[slot.name]) for slot in slots if slot.name in head]
    parts.append(bytes(_find(slots, "padding").total_bytes))
    parts.append(_digest(parts))
    return parts + [plain_bytes(array) for array in tail.values()]


def unpack(
    data: Buffer,
    key: str,
    tail: Iterable[str] = (),
    max_header_bytes: int = MAX_HEADER_BYTES,
    limit: str = "max_header_bytes",
) -> tuple[Document, dict[str, Array]]:
    """The document and the tensors of a sealed file; the tensors are views into `data`.

    Args:
        data: the file.
        key: the kind of its document.
        tail: names of the tensors that the digest doesn't cover.
        max_header_bytes: of the header.
        limit: the name of `max_header_bytes`.

    Raises:
        BadModel: the file is cut, damaged or of another kind, or its header is not true.
        LimitExceeded: its header is too long.
    """
    header, start = _read_header(data, max_header_bytes, limit)
    metadata = header.pop("__metadata__", None)
    slots = _stated_layout(header, tuple(tail))
    end = start + sum(slot.total_bytes for slot in slots)
    if end != len(data):
        raise BadModel(f"The file has {len(data)} bytes where its header says {end}.")
    tensors = _views(data, start, slots)
    _check_digest(data, start, slots, tensors.pop("digest"), tensors.pop("padding"))
    return _document(metadata, key), tensors


def _layout(head: list[Slot], tail: list[Slot]) -> list[Slot]:
    """All slots of a file in order: the only place that decides it."""
    head = sorted(head, key=lambda slot: (-slot.item_bytes, slot.name))
    padding = -sum(slot.total_bytes for slot in head) % ALIGNMENT
    seal = [Slot("padding", "U8", (padding,)), Slot("digest", "U8", (DIGEST_BYTES,))]
    return [*head, *seal, *tail]


def _entries(slots: list[Slot]) -> Document:
    entries, begin = {}, 0
    for slot in slots:
        end = begin + slot.total_bytes
        entries[slot.name] = {
            "dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [begin, end]
        }  # fmt: skip
        begin = end
    return entries


def _header(key: str, document: Document, slots: list[Slot]) -> bytes:
    entries = {"__metadata__": {key: canonical_json(document)}, **_entries(slots)}
    text = canonical_json(entries).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _read_header(data: Buffer, max_bytes: int, limit: str) -> tuple[Document, int]:
    """The header and the position of the first tensor's first byte."""
    if len(data) < LENGTH_BYTES:
        raise BadModel("The file is too short to be an .acorn file.")
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    start = LENGTH_BYTES + length
    if start > len(data) or data[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        raise BadModel("The file is not an .acorn file, or is cut short.")
    if length > max_bytes:
        message = f"The file's header has {length} bytes; at most {max_bytes} are allowed."
        raise LimitExceeded(message, limit=limit, value=max_bytes)
    return parse_json(bytes(data[LENGTH_BYTES:start])), start


def _stated_layout(entries: Document, tail: tuple[str, ...]) -> list[Slot]:
    """The layout that follows from the stated dtypes and shapes, if it is the one stated."""
    stated = {name: _stated_slot(name, entry) for name, entry in entries.items()}
    if any(name not in stated for name in tail):
        raise BadModel("The file's header lacks a tensor.")
    head = [slot for name, slot in stated.items() if name not in {*tail, *RESERVED}]
    slots = _layout(head, [stated[name] for name in tail])
    if canonical_json(_entries(slots)) != canonical_json(entries):
        raise BadModel("The file's header contradicts itself.")
    return slots


def _stated_slot(name: str, entry: object) -> Slot:
    # looked up in a list, because a damaged header may hold a value that has no hash
    if not isinstance(entry, dict) or entry.get("dtype") not in list(DTYPES):
        raise BadModel("The file's header describes a tensor of an unknown kind.")
    shape = entry.get("shape")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise BadModel("The file's header describes a tensor without a shape.")
    if any(type(side) is not int or not 0 <= side <= MAX_SIDE for side in shape):
        raise BadModel("The file's header describes a tensor of an impossible shape.")
    return Slot(name, entry["dtype"], tuple(shape))


def _views(data: Buffer, start: int, slots: list[Slot]) -> dict[str, Array]:
    views = {}
    for slot in slots:
        views[slot.name] = np.ndarray(slot.shape, DTYPES[slot.dtype], buffer=data, offset=start)
        start += slot.total_bytes
    return views


def _check_digest(data: Buffer, start: int, slots: list[Slot], digest: Array, padding: Array) -> None:
    sealed = slots[: slots.index(_find(slots, "digest"))]
    end = start + sum(slot.total_bytes for slot in sealed)
    if _digest([memoryview(data)[:end]]) != digest.tobytes() or padding.any():
        raise BadModel("The file is damaged: its digest differs.")


def _document(metadata: object, key: str) -> Document:
    if not isinstance(metadata, dict) or list(metadata) != [key]:
        raise BadModel("The file is a safetensors file, but not one of this kind.")
    if not isinstance(metadata[key], str):
        raise BadModel("The file's metadata is not text.")
    return parse_json(metadata[key])


def _digest(parts: Iterable[Buffer]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _slot(name: str, array: Array) -> Slot:
    return Slot(name, NAMES[array.dtype.newbyteorder("<")], array.shape)


def plain_bytes(array: Array) -> memoryview:
    """The array's content in little-endian order, copied only where it must be."""
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return plain.reshape(-1).view(np.uint8).data


def _find(slots: list[Slot], name: str) -> Slot:
    return next(slot for slot in slots if slot.name == name)


def _unique_keys(pairs: list[tuple[str, object]]) -> Document:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key appears twice")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is not finite")
    return value
