"""The `.acorn` file: a field as bytes. `docs/format.md` is the specification."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from acorn_svc.errors import BadModel
from acorn_svc.field.model import Field
from acorn_svc.field.state import Architecture, FieldState, FitRecord, Signal
from acorn_svc.formats import envelope
from acorn_svc.formats.envelope import Array, Document
from acorn_svc.formats.files import Buffer, read_bytes, replace_file

KEY = "acorn"
VERSION = 0
DTYPE = "float16"
DTYPES = ("float16", "float32")
CODEC = "raw"
CHUNK_DIGEST_BYTES = 16

MAX_MODEL_BYTES = 1 << 30
MAX_NODES = 4_000_000
MAX_FEATURES = 1024
MAX_LEVEL = 31
MAX_SCALE = 2.0**64
MAX_FINEST_BLOCKS = 1 << 24
MAX_VERTEX_ENTRIES = 1 << 29
MAX_ARCHITECTURE = 4096
MAX_TEXT = 64
DIMENSIONS = (2, 3)
WEIGHT_NAME = re.compile(r"weights\.([a-z0-9_.]{1,64})")
INDEX = {
    "chunks.bytes": "<u8", "chunks.offset": "<u8", "chunks.digest": "|u1",
    "index.levels": "|u1", "index.morton": "<u8",
}  # fmt: skip


class TreeShape:
    """What the header says about the tree."""

    dimension: int
    depth: int
    extent: list[int]


def write_field(path: Path, field: Field) -> None:
    """Replaces `path` by the field's file, at once and for good.

    Raises:
        BadModel: the field's features are too large for the file.
        OSError: it cannot be written; `path` is then as it was.
    """
    replace_file(path, pack_state(field.to_state()))


def field_to_bytes(field: Field) -> bytes:
    """The field's file in memory. The same field gives the same bytes.

    Raises:
        BadModel: the field's features are too large for the file.
    """
    return b"".join(pack_state(field.to_state()))


def read_field(source: Path | Buffer, max_bytes: int = MAX_MODEL_BYTES) -> Field:
    """The field in a file or in its bytes, every one of them checked before anything is allocated.

    Raises:
        BadModel: the file is cut, damaged, of another kind or of a newer version.
        TooManyBytes: it is larger than `max_bytes`.
        OSError: it cannot be read.
    """
    data = read_bytes(source, max_bytes) if isinstance(source, Path) else source
    return Field.from_state(unpack_state(data))


def pack_state(state: FieldState) -> list[Buffer]:
    """The parts of a file, in order.

    Raises:
        BadModel: a feature isn't finite in float16, or a weight isn't finite.
    """
    features = _stored(state.features)
    row_bytes = features.itemsize * features.shape[1]
    offsets = state.offsets.astype(np.uint64) * np.uint64(row_bytes)
    has_chunks = features.shape[0] > 0
    chunks = offsets if has_chunks else offsets[:1]
    head: dict[str, Array] = {
        "index.levels": state.levels,
        "index.morton": state.indices,
        "chunks.offset": chunks[:-1],
        "chunks.bytes": np.diff(chunks),
        "chunks.digest": _chunk_digests(features, chunks),
        **{f"weights.{name}": array for name, array in state.weights.items()},
    }
    _check_finite(*state.weights.values())
    description = {"codec": CODEC, "dtype": DTYPE, "scale": 1.0}
    document = {"version": VERSION, "field": state.header, "features": description}
    return envelope.pack(KEY, document, head, {"features": features})


def unpack_state(data: Buffer) -> FieldState:
    """The plain data of a file: whole, undamaged, finite. Whether it makes sense, `Field` decides.

    Raises:
        BadModel: the file is cut, damaged, of another kind or of a newer version.
    """
    document, tensors = envelope.unpack(data, KEY, tail=("features",))
    header, dtype, scale = _read_document(document)
    weights = _take_weights(tensors)
    _check_shapes(tensors, dtype)
    _check_header(header, len(tensors["index.levels"]))
    offsets = _read_chunks(tensors)
    _check_finite(tensors["features"], *weights.values())
    features = tensors["features"].astype(np.float32) * np.float32(scale)
    _check_finite(features)
    return FieldState(
        header=header,
        levels=tensors["index.levels"].copy(),
        indices=tensors["index.morton"].copy(),
        features=features,
        offsets=offsets,
        weights={name: array.copy() for name, array in weights.items()},
    )


def _stored(features: NDArray[np.float32]) -> NDArray[np.float16]:
    """Features as the file keeps them."""
    with np.errstate(over="ignore"):
        stored = features.astype(np.float16)
    _check_finite(stored)
    return stored


def _read_document(document: Document) -> tuple[Document, str, float]:
    """The field's header, and the dtype and the scale of its features."""
    if document.get("version") != VERSION:
        raise BadModel("The file is of a version that this program doesn't read.")
    header, features = document.get("field"), document.get("features")
    if not isinstance(header, dict) or not isinstance(features, dict):
        raise BadModel("The file doesn't describe its field.")
    dtype, scale = features.get("dtype"), features.get("scale")
    if features.get("codec") != CODEC or dtype not in DTYPES or not isinstance(dtype, str):
        raise BadModel("The file's features are stored in a way that this program doesn't read.")
    if not isinstance(scale, float) or not 1 / MAX_SCALE <= scale <= MAX_SCALE:
        raise BadModel("The file's features have an impossible scale.")
    return header, dtype, scale


def _check_header(header: Document, nodes: int) -> None:
    """Types and sizes: nothing that a field builds from the header is larger than the limits."""
    parts = {name: header.get(name) for name in ("architecture", "tree", "fit")}
    _check_types(Signal, {key: header[key] for key in header.keys() - parts.keys()})
    _check_types(Architecture, parts["architecture"])
    _check_types(FitRecord, parts["fit"])
    _check_types(TreeShape, parts["tree"])
    architecture, extent = header["architecture"], header["tree"]["extent"]
    sizes = [value for value in architecture.values() if type(value) is int]
    if len(extent) not in DIMENSIONS:
        raise BadModel("The file's tree is of an impossible dimension.")
    if max(sizes) > MAX_ARCHITECTURE or math.prod(extent) > MAX_FINEST_BLOCKS:
        raise BadModel("The file's header describes a field beyond all sizes.")
    if nodes * (architecture["cells"] + 1) ** len(extent) > MAX_VERTEX_ENTRIES:
        raise BadModel("The file's header describes larger blocks than so many nodes can have.")


def _check_types(kind: type, values: object) -> None:
    """Whether a JSON object has the attributes of `kind`, all and no other, of its types."""
    hints = get_type_hints(kind)
    if not isinstance(values, dict) or values.keys() != hints.keys():
        raise BadModel("The file's header lacks an entry or has an unknown one.")
    if not all(_is_a(values[name], hint) for name, hint in hints.items()):
        raise BadModel("The file's header has an entry of the wrong type.")


def _is_a(value: object, hint: Any) -> bool:
    """Whether a JSON value is of a type; integers are counts, from 0 to 2**63 - 1."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_is_a(item, *get_args(hint)) for item in value)
    if hint is int:
        return type(value) is int and 0 <= value < 1 << 63
    if hint is str:
        return isinstance(value, str) and len(value) <= MAX_TEXT
    return type(value) in (float, NoneType)  # the only other type: a number that may be missing


def _take_weights(tensors: dict[str, Array]) -> dict[str, Array]:
    """Moves the weights out of `tensors`."""
    names = [name for name in tensors if name.startswith("weights.")]
    if any(WEIGHT_NAME.fullmatch(name) is None for name in names):
        raise BadModel("The file has a weight of an impossible name.")
    weights = {name.removeprefix("weights."): tensors.pop(name) for name in names}
    if any(array.dtype != np.dtype("<f4") for array in weights.values()):
        raise BadModel("The file's weights must be float32.")
    return weights


def _check_shapes(tensors: dict[str, Array], dtype: str) -> None:
    """All tensors that must be there, no other, each of its dtype and shape."""
    if set(tensors) != {*INDEX, "features"}:
        raise BadModel("The file lacks a tensor or has an unknown one.")
    features, nodes = tensors["features"], tensors["index.levels"].size
    # two axes, rows and features, whose product the file's length has already bounded
    is_matrix = len(features.shape) == len(("rows", "features"))
    if features.dtype != np.dtype(dtype) or not is_matrix or features.shape[1] > MAX_FEATURES:
        raise BadModel("The file's features have an impossible dtype or shape.")
    if not 1 <= nodes <= MAX_NODES:
        message = f"The file has {nodes} nodes; at most {MAX_NODES} are allowed."
        raise BadModel(message, limit="max_nodes", value=MAX_NODES)
    chunks = nodes if features.shape[0] else 0
    shapes: dict[str, tuple[int, ...]] = {
        "index.levels": (nodes,),
        "index.morton": (nodes,),
        "chunks.bytes": (chunks,),
        "chunks.offset": (chunks,),
        "chunks.digest": (chunks, CHUNK_DIGEST_BYTES),
    }
    for name, code in INDEX.items():
        if tensors[name].dtype != np.dtype(code) or tensors[name].shape != shapes[name]:
            raise BadModel("The file's index has an impossible dtype or shape.")
    if (tensors["index.levels"] > MAX_LEVEL).any():
        raise BadModel("The file has a node at an impossible level.")


def _read_chunks(tensors: dict[str, Array]) -> NDArray[np.int64]:
    """`int64 [nodes + 1]`: first row of each node, after checking that chunks tile the features."""
    features, sizes = tensors["features"], tensors["chunks.bytes"]
    row_bytes = features.itemsize * features.shape[1]
    if not features.size:
        return _no_rows(tensors)
    if (sizes > features.nbytes).any() or (sizes % np.uint64(row_bytes)).any():
        raise BadModel("The file's chunk table states impossible lengths.")
    ends = np.cumsum(sizes, dtype=np.uint64)  # < 2**22 nodes times < 2**36 bytes: cannot wrap
    offsets = np.concatenate([np.zeros(1, np.uint64), ends])
    if (offsets[:-1] != tensors["chunks.offset"]).any() or offsets[-1] != features.nbytes:
        raise BadModel("The file's chunks have holes or overlap.")
    if (_chunk_digests(features, offsets) != tensors["chunks.digest"]).any():
        raise BadModel("The file is damaged: the digest of a chunk differs.")
    return (offsets // np.uint64(row_bytes)).astype(np.int64)


def _no_rows(tensors: dict[str, Array]) -> NDArray[np.int64]:
    if tensors["features"].shape[0]:
        raise BadModel("The file has rows without features.")
    return np.zeros(len(tensors["index.levels"]) + 1, np.int64)


def _chunk_digests(features: Array, offsets: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """`uint8 [chunks, 16]`: digest of each chunk, given the bounds of all in bytes."""
    digests = b"".join(_digests(features, offsets))
    return np.frombuffer(digests, np.uint8).reshape(-1, CHUNK_DIGEST_BYTES)


def _digests(features: Array, offsets: NDArray[np.uint64]) -> Iterator[bytes]:
    content = envelope.plain_bytes(features)
    bounds = offsets.tolist()
    for begin, end in pairwise(bounds):
        yield hashlib.blake2b(content[begin:end], digest_size=CHUNK_DIGEST_BYTES).digest()


def _check_finite(*arrays: Array) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise BadModel("The model holds numbers that are not finite.")
