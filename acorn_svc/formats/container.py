"""The `.acorn` file: a field as bytes. `docs/format.md` is the specification."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from acorn_svc.errors import BadModel, LimitExceeded
from acorn_svc.field.kinds import AnyField, field_from_state
from acorn_svc.field.lattice import owned_counts
from acorn_svc.field.quantisation import (
    DTYPES,
    MAX_SCALE,
    MIN_SCALE,
    FeatureDtype,
    dequantised,
    stored_as,
)
from acorn_svc.field.state import (
    CELLS,
    FEATURE_CHANNELS,
    Architecture,
    FieldState,
    FitRecord,
    ShapeSignal,
    Signal,
)
from acorn_svc.field.tree import MAX_DEPTH, IntArray, Tree
from acorn_svc.formats import envelope
from acorn_svc.formats.chunks import (
    CODECS,
    TABLE,
    Storage,
    read_chunks,
    storage_for,
    table_shapes,
    write_chunks,
)
from acorn_svc.formats.envelope import Array, Document
from acorn_svc.formats.files import Buffer, read_bytes, replace_file

KEY = "acorn"
VERSION = 1

MAX_NODES = 4_000_000
MAX_FINEST_BLOCKS = 1 << 24
MAX_VERTEX_ENTRIES = 1 << 29
MAX_FEATURE_VALUES = 1 << 29
MAX_ARCHITECTURE = 4096
MAX_TEXT = 64
FLAGS_PER_BYTE = 8
WEIGHT_NAME = re.compile(r"weights\.([a-z0-9_.]{1,64})")
SIGNALS: dict[str, type[Signal] | type[ShapeSignal]] = {"image": Signal, "shape": ShapeSignal}
INDEX = {"image": ("index.split",), "shape": ("index.split", "index.inside", "index.outside")}
TENSORS = {
    "chunks.bytes": "<u8", "chunks.offset": "<u8", "chunks.digest": "|u1", "features.scale": "<f4",
    "index.split": "|u1", "index.inside": "|u1", "index.outside": "|u1",
}  # fmt: skip


# What reading takes, at most, beside the file itself.
BYTES_PER_NODE = 500
BYTES_PER_VERTEX = 5  # counted in each block that has it
BYTES_PER_FEATURE = 9


@dataclass(frozen=True)
class ModelLimits:
    """The largest file that is read.

    Attributes:
        max_bytes: of the file.
        max_header_bytes: of its header.
        max_cells: nodes of its tree.
        max_memory_bytes: that reading takes beside the file; known before it is taken.
    """

    max_bytes: int = 1 << 30
    max_header_bytes: int = envelope.MAX_HEADER_BYTES
    max_cells: int = MAX_NODES
    max_memory_bytes: int = 6 << 30


class TreeShape:
    """What the header says about the tree."""

    dimension: int
    depth: int
    extent: list[int]


def write_field(path: Path, field: AnyField, dtype: FeatureDtype | None = None) -> None:
    """Replaces `path` by the field's file, at once and for good.

    Args:
        path: of the file.
        field: what to write.
        dtype: of the features in the file; default that of the field's kind (`dtype_for`).

    Raises:
        BadModel: the field is too large for the file, or not finite.
        LimitExceeded: it could not be read again within `ModelLimits()`.
        OSError: it cannot be written; `path` is then as it was.
    """
    replace_file(path, pack_state(field.to_state(), dtype))


def field_to_bytes(field: AnyField, dtype: FeatureDtype | None = None) -> bytes:
    """The field's file in memory; see `write_field`. The same field gives the same bytes.

    Raises:
        BadModel: the field is too large for the file, or not finite.
    """
    return b"".join(pack_state(field.to_state(), dtype))


def read_field(source: Path | Buffer, limits: ModelLimits | None = None) -> AnyField:
    """The field in a file or in its bytes; every byte is checked, and nothing is allocated unbounded.

    Raises:
        BadModel: the file is cut, damaged, of another kind or of another version.
        LimitExceeded: it is larger than `limits` allow.
        OSError: it cannot be read.
    """
    limits = limits or ModelLimits()
    if isinstance(source, Path):
        source = read_bytes(source, limits.max_bytes, "max_model_bytes")
    return field_from_state(unpack_state(source, limits))


def pack_state(state: FieldState, dtype: FeatureDtype | None = None) -> list[Buffer]:
    """The parts of a file, in order; see `write_field`.

    Raises:
        BadModel: the header has an impossible entry, the field is beyond the limits, a feature isn't finite
            in the file's dtype, or a weight isn't finite.
    """
    header = envelope.parse_json(envelope.canonical_json(state.header))
    _check_header(header)
    _check_size(header, len(state.levels), state.features.size, ModelLimits())
    storage = storage_for(header["kind"], dtype)
    levels = np.repeat(state.levels, np.diff(state.offsets))
    try:
        stored, scales = stored_as(storage.dtype, state.features, levels, header["tree"]["depth"])
    except ValueError as error:
        raise BadModel("The model holds numbers that are not finite.") from error
    _check_scales(scales)
    _check_finite(*state.weights.values())
    table, features = write_chunks(storage, stored, state.offsets)
    head = {
        **table, "features.scale": scales, **_index(state),
        **{f"weights.{name}": array for name, array in state.weights.items()},
    }  # fmt: skip
    document = {"version": VERSION, "field": header, "features": asdict(storage)}
    return envelope.pack(KEY, document, head, {"features": features})


def unpack_state(data: Buffer, limits: ModelLimits | None = None) -> FieldState:
    """The plain data of a file: whole, undamaged, finite. Whether it makes sense, the field decides.

    Raises:
        BadModel: the file is cut, damaged, of another kind or of another version.
        LimitExceeded: it is larger than `limits` allow.
    """
    limits = limits or ModelLimits()
    most = limits.max_header_bytes
    document, tensors = envelope.unpack(data, KEY, ("features",), most, "max_model_header_bytes")
    header, storage = _read_document(document)
    _check_header(header)
    weights = _take_weights(tensors)
    _check_dtypes(header["kind"], storage, tensors)
    tree = _read_tree(header, tensors["index.split"], limits)
    offsets = _row_offsets(header, tree, limits)
    _check_shapes(header, storage, tensors, offsets)
    scales, channels = tensors["features.scale"], header["architecture"]["features"]
    _check_scales(scales)
    _check_finite(*weights.values())
    stored = read_chunks(storage, tensors, tensors["features"], offsets, channels)
    with np.errstate(over="ignore", invalid="ignore"):
        features = dequantised(stored, scales, np.repeat(tree.levels, np.diff(offsets)))
    _check_finite(features)
    return FieldState(
        header=header,
        levels=tree.levels,
        indices=tree.indices,
        features=features,
        offsets=offsets,
        weights={name: array.copy() for name, array in weights.items()},
        signs=_read_signs(tensors, len(tree)) if "index.inside" in tensors else None,
    )


def _read_document(document: Document) -> tuple[Document, Storage]:
    """The field's header, and how its features are stored."""
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise BadModel("The file is of a version that this program doesn't read.")
    header, features = document.get("field"), document.get("features")
    if not isinstance(header, dict) or not isinstance(features, dict):
        raise BadModel("The file doesn't describe its field.")
    if features.get("codec") not in CODECS or features.get("dtype") not in DTYPES:
        raise BadModel("The file's features are stored in a way that this program doesn't read.")
    _check_types(Storage, features)
    storage = Storage(**features)
    if not 1 <= storage.nodes_per_chunk <= MAX_NODES:
        raise BadModel("The file's chunks are of an impossible size.")
    return header, storage


def _check_header(header: Document) -> None:
    """Types, and every size that doesn't depend on the number of nodes."""
    parts = {name: header.get(name) for name in ("architecture", "tree", "fit")}
    kind = header.get("kind")
    if not isinstance(kind, str) or kind not in SIGNALS:
        raise BadModel("The file is of a kind that this program doesn't know.")
    _check_types(SIGNALS[kind], {key: header[key] for key in header.keys() - parts.keys()})
    _check_types(Architecture, parts["architecture"])
    _check_types(FitRecord, parts["fit"])
    _check_types(TreeShape, parts["tree"])
    architecture, tree = header["architecture"], header["tree"]
    sizes = [value for value in architecture.values() if type(value) is int]
    if tree["dimension"] not in MAX_DEPTH or tree["dimension"] != len(tree["extent"]):
        raise BadModel("The file's tree is of an impossible dimension.")
    if max(sizes) > MAX_ARCHITECTURE or math.prod(tree["extent"]) > MAX_FINEST_BLOCKS:
        raise BadModel("The file's header describes a field beyond all sizes.")
    if architecture["cells"] not in CELLS or architecture["features"] not in FEATURE_CHANNELS:
        raise BadModel("The file's header describes blocks of an impossible size.")


def _check_size(header: Document, nodes: int, values: int, limits: ModelLimits) -> None:
    """Nothing that is built for so many nodes and values of features is larger than the limits."""
    _check_nodes(nodes, limits)
    entries = nodes * (header["architecture"]["cells"] + 1) ** header["tree"]["dimension"]
    if entries > MAX_VERTEX_ENTRIES:
        raise BadModel("The file's header describes larger blocks than so many nodes can have.")
    if values > MAX_FEATURE_VALUES:
        raise BadModel(f"The file has {values} features; at most {MAX_FEATURE_VALUES} can be.")
    memory = nodes * BYTES_PER_NODE + entries * BYTES_PER_VERTEX + values * BYTES_PER_FEATURE
    most = limits.max_memory_bytes
    if memory > most:
        message = f"Opening the file takes {memory} bytes of memory; at most {most} are allowed."
        raise LimitExceeded(message, limit="max_model_memory_bytes", value=most)


def _check_nodes(nodes: int, limits: ModelLimits) -> None:
    if nodes > limits.max_cells:
        message = f"The file has {nodes} nodes; at most {limits.max_cells} are allowed."
        raise LimitExceeded(message, limit="max_model_cells", value=limits.max_cells)


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
    if get_origin(hint) is tuple:
        hints = get_args(hint)
        same_length = isinstance(value, list) and len(value) == len(hints)
        return same_length and all(map(_is_a, cast(list[object], value), hints))
    if hint is int:
        return type(value) is int and 0 <= value < 1 << 63
    if hint is float:
        return type(value) is float
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


def _check_dtypes(kind: str, storage: Storage, tensors: dict[str, Array]) -> None:
    """All tensors that must be there, no other, each of its dtype; the index also of its shape."""
    expected = {name: TENSORS[name] for name in (*TABLE, "features.scale", *INDEX[kind])}
    expected["features"] = storage.dtype if storage.codec == "raw" else "|u1"
    if tensors.keys() != expected.keys():
        raise BadModel("The file lacks a tensor or has an unknown one.")
    if any(tensors[name].dtype != np.dtype(code) for name, code in expected.items()):
        raise BadModel("The file has a tensor of an impossible dtype.")
    flags = [tensors[name] for name in INDEX[kind]]
    if any(array.ndim != 1 or array.shape != flags[0].shape for array in flags):
        raise BadModel("The file's index has an impossible shape.")


def _check_shapes(header: Document, storage: Storage, tensors: dict[str, Array], offsets: IntArray) -> None:
    """Every tensor that depends on the tree is of its shape."""
    channels = header["architecture"]["features"]
    shapes = table_shapes(storage, offsets)
    shapes["features.scale"] = (header["tree"]["depth"] + 1, channels)
    features = tensors["features"]
    shapes["features"] = (int(offsets[-1]), channels) if storage.codec == "raw" else (features.size,)
    if any(tensors[name].shape != shape for name, shape in shapes.items()):
        raise BadModel("The file has a tensor of an impossible shape.")


def _index(state: FieldState) -> dict[str, Array]:
    """The tree and, of a shape, the signs of its nodes, one bit a node each."""
    tree = state.header["tree"]
    nodes = Tree(tree["dimension"], tree["depth"], tuple(tree["extent"]), state.levels, state.indices)
    flags = {"index.split": nodes.split_flags}
    if state.signs is not None:
        flags |= {"index.inside": state.signs < 0, "index.outside": state.signs > 0}
    return {name: np.packbits(bits, bitorder="little") for name, bits in flags.items()}


def _read_tree(header: Document, split: Array, limits: ModelLimits) -> Tree:
    """The tree, after checking that it isn't too large."""
    _check_nodes((split.size - 1) * FLAGS_PER_BYTE + 1, limits)
    flags = np.unpackbits(split, bitorder="little").view(bool)
    shape = header["tree"]
    try:
        tree = Tree.from_split_flags(shape["depth"], shape["extent"], flags)
    except ValueError as error:
        raise BadModel(f"The file's tree makes no sense: {error}.") from error
    if len(flags) - len(tree) >= FLAGS_PER_BYTE:
        raise BadModel("The file's index has an impossible shape.")
    _check_size(header, len(tree), 0, limits)
    return tree


def _read_signs(tensors: dict[str, Array], nodes: int) -> NDArray[np.int8]:
    """`int8 [nodes]`."""
    packed = (tensors["index.outside"], tensors["index.inside"])
    outside, inside = (np.unpackbits(array, bitorder="little") for array in packed)
    if (outside & inside).any() or outside[nodes:].any() or inside[nodes:].any():
        raise BadModel("The file has a node that is inside and outside, or no node at all.")
    return outside[:nodes].view(np.int8) - inside[:nodes].view(np.int8)


def _row_offsets(header: Document, tree: Tree, limits: ModelLimits) -> IntArray:
    """`int64 [nodes + 1]`: rows of each node, after checking that they aren't too many."""
    offsets = np.zeros(len(tree) + 1, np.int64)
    if header["architecture"]["encoder"] == "grid":
        np.cumsum(owned_counts(tree, header["architecture"]["cells"]), out=offsets[1:])
    _check_size(header, len(tree), int(offsets[-1]) * header["architecture"]["features"], limits)
    return offsets


def _check_scales(scales: Array) -> None:
    if not ((scales >= MIN_SCALE) & (scales <= MAX_SCALE)).all():
        raise BadModel("The model's features have an impossible scale.")


def _check_finite(*arrays: Array) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise BadModel("The model holds numbers that are not finite.")
