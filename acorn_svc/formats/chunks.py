"""The features of an `.acorn` file: runs of nodes, each stored, checked and fetched by itself."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from acorn_svc.errors import BadModel
from acorn_svc.field.quantisation import FeatureDtype, Stored, dtype_for
from acorn_svc.field.tree import IntArray
from acorn_svc.formats import envelope
from acorn_svc.formats.envelope import Array

Codec = Literal["raw", "deflate"]
CODECS: tuple[Codec, ...] = get_args(Codec)

DIGEST_BYTES = 16
DEFLATE_LEVEL = 6
DEFLATE_MEMORY = 8
PLAIN_DEFLATE = -15  # a window of 2**15 bytes, and neither zlib's header nor its checksum
NODES_PER_CHUNK = {"image": 1, "shape": 64}
TABLE = ("chunks.bytes", "chunks.offset", "chunks.digest")


@dataclass(frozen=True)
class Storage:
    """How features are stored; an entry of the file's document.

    Attributes:
        codec: how a chunk's bytes become numbers.
        dtype: of a number.
        nodes_per_chunk: how many consecutive nodes a chunk holds; the last one may hold fewer.
    """

    codec: Codec
    dtype: FeatureDtype
    nodes_per_chunk: int


def storage_for(kind: str, dtype: FeatureDtype | None = None) -> Storage:
    """How features of a field of ``kind`` are written, by default in the dtype of the kind."""
    dtype = dtype or dtype_for(kind)
    return Storage("deflate" if dtype == "int8" else "raw", dtype, NODES_PER_CHUNK[kind])


def table_shapes(storage: Storage, offsets: IntArray) -> dict[str, tuple[int, ...]]:
    """Shapes of the chunk table's tensors."""
    count = len(_chunk_rows(storage, offsets)) - 1
    return {"chunks.bytes": (count,), "chunks.offset": (count,), "chunks.digest": (count, DIGEST_BYTES)}


def write_chunks(storage: Storage, stored: Stored, offsets: IntArray) -> tuple[dict[str, Array], Array]:
    """The chunk table and the tensor of all chunks.

    Args:
        storage: how to write them.
        stored: ``[rows, channels]`` of the storage's dtype.
        offsets: ``[nodes + 1]``: rows of each node.
    """
    rows = _chunk_rows(storage, offsets)
    if storage.codec == "raw":
        features: Array = stored
        sizes = np.diff(rows) * (stored.itemsize * stored.shape[1])
    else:
        chunks = [_deflate(stored[begin:end]) for begin, end in pairwise(rows.tolist())]
        features = np.frombuffer(b"".join(chunks), np.uint8)
        sizes = np.array([len(chunk) for chunk in chunks], np.int64)
    bounds = np.concatenate([np.zeros(1, np.uint64), np.cumsum(sizes, dtype=np.uint64)])
    table = {
        "chunks.bytes": np.diff(bounds), "chunks.offset": bounds[:-1],
        "chunks.digest": _chunk_digests(features, bounds),
    }  # fmt: skip
    return table, features


def read_chunks(
    storage: Storage, table: dict[str, Array], features: Array, offsets: IntArray, channels: int
) -> Stored:
    """Inverse of :func:`write_chunks`, after checking that the chunks tile the tensor and their digests.

    Args:
        storage: how they were written.
        table: of the shapes of :func:`table_shapes`.
        features: for ``raw`` ``[rows, channels]`` of the storage's dtype, else ``uint8 [bytes]``.
        offsets: ``[nodes + 1]``: rows of each node.
        channels: numbers in a row.

    Raises:
        BadModel: the table is not true, or a chunk is damaged or not of the length that its nodes have.
    """
    rows, bounds = _chunk_rows(storage, offsets), _bounds(table, features.nbytes)
    row_bytes = channels * np.dtype(storage.dtype).itemsize
    if storage.codec == "raw" and (np.diff(rows) * row_bytes != np.diff(bounds)).any():
        raise BadModel("The file's chunk table states lengths that the tree doesn't have.")
    if (_chunk_digests(features, bounds) != table["chunks.digest"]).any():
        raise BadModel("The file is damaged: the digest of a chunk differs.")
    if storage.codec == "raw":
        return features
    content = envelope.plain_bytes(features)
    stored = np.empty((int(rows[-1]), channels), np.dtype(storage.dtype).newbyteorder("<"))
    room = stored.reshape(-1).view(np.uint8).data
    places = zip(pairwise((rows * row_bytes).tolist()), pairwise(bounds.tolist()), strict=True)
    for (first, last), (begin, end) in places:
        room[first:last] = _inflate(content[begin:end], last - first)
    return stored


def _chunk_rows(storage: Storage, offsets: IntArray) -> IntArray:
    """``[chunks + 1]``: first row of each chunk; no chunks when there are no rows."""
    if not offsets[-1]:
        return np.zeros(1, np.int64)
    return np.append(offsets[: -1 : storage.nodes_per_chunk], offsets[-1])


def _bounds(table: dict[str, Array], total: int) -> NDArray[np.uint64]:
    """``uint64 [chunks + 1]``: first byte of each chunk."""
    sizes = table["chunks.bytes"]
    if (sizes > total).any():
        raise BadModel("The file's chunk table states impossible lengths.")
    ends = np.cumsum(sizes, dtype=np.uint64)  # < 2**22 chunks of < 2**40 bytes: cannot wrap
    bounds = np.concatenate([np.zeros(1, np.uint64), ends])
    if (bounds[:-1] != table["chunks.offset"]).any() or bounds[-1] != total:
        raise BadModel("The file's chunks have holes or overlap.")
    return bounds


def _deflate(part: Stored) -> bytes:
    """A chunk ``[rows, channels]``.

    Features are noise with runs of zeros: to search for other repeats takes twice as long and finds false
    ones, and channel by channel the chunk would be no shorter.
    """
    packer = zlib.compressobj(DEFLATE_LEVEL, zlib.DEFLATED, PLAIN_DEFLATE, DEFLATE_MEMORY, zlib.Z_RLE)
    return packer.compress(envelope.plain_bytes(part)) + packer.flush()


def _inflate(chunk: memoryview, size: int) -> bytes:
    """Exactly ``size`` bytes: no more is ever unpacked than one byte beyond."""
    unpacker = zlib.decompressobj(PLAIN_DEFLATE)
    try:
        content = unpacker.decompress(chunk, size + 1)
    except zlib.error as error:
        raise BadModel("The file has a chunk that cannot be unpacked.") from error
    if len(content) != size or not unpacker.eof or unpacker.unused_data:
        raise BadModel("The file has a chunk of another length than its nodes have.")
    return content


def _chunk_digests(features: Array, bounds: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """``uint8 [chunks, 16]``, given the bounds of all in bytes."""
    digests = b"".join(_digests(features, bounds))
    return np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES)


def _digests(features: Array, bounds: NDArray[np.uint64]) -> Iterator[bytes]:
    content = envelope.plain_bytes(features)
    positions: list[Any] = bounds.tolist()
    for begin, end in pairwise(positions):
        yield hashlib.blake2b(content[begin:end], digest_size=DIGEST_BYTES).digest()
