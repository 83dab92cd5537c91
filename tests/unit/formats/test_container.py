"""The `.acorn` file: comes back as it was, or is refused; there is nothing between."""

import contextlib
import errno
import hashlib
import json
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from small_fields import make_field, make_shape

from acorn_svc import cli
from acorn_svc.errors import BadModel, LimitExceeded, TooManyBytes
from acorn_svc.field.kinds import AnyField, as_image, as_shape
from acorn_svc.field.model import Field
from acorn_svc.field.quantisation import DTYPES, FeatureDtype, rounded, row_levels
from acorn_svc.field.shape import ShapeField
from acorn_svc.field.state import EncoderName, FieldState
from acorn_svc.formats import envelope
from acorn_svc.formats.container import (
    KEY,
    MAX_NODES,
    ModelLimits,
    field_to_bytes,
    pack_state,
    read_field,
    unpack_state,
    write_field,
)

Document = dict[str, Any]
Tensors = dict[str, np.ndarray[Any, Any]]

GRID = field_to_bytes(make_field("grid"))
SHAPE = field_to_bytes(make_shape("grid", 4))
LENGTH = 8
PYTHON_BYTES = 1 << 18  # of objects that depend on nothing in the file


def same_shape(first: ShapeField, second: ShapeField) -> bool:
    """Whether two shapes say the same everywhere, as far as a few hundred points can tell."""
    points = np.random.default_rng(0).uniform(-9, 48, (300, 3))
    return all(
        np.array_equal(first.values(points, scale), second.values(points, scale))
        for scale in range(first.depth + 1)
    )


def test_a_picture_comes_back(picture: Field) -> None:
    read = as_image(read_field(field_to_bytes(picture)))
    assert read.info() == picture.info()
    difference = read.render().astype(int) - picture.render()
    assert np.abs(difference).max() <= 1
    before, after = picture.to_state(), read.to_state()
    assert np.array_equal(after.features, before.features.astype(np.float16))
    assert before.weights.keys() == after.weights.keys()
    assert all(np.array_equal(before.weights[name], after.weights[name]) for name in after.weights)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("dtype", [*DTYPES, None])
def test_a_shape_comes_back_with_rounded_features(
    channels: Literal[1, 4], dtype: FeatureDtype | None
) -> None:
    shape = make_shape("grid", channels)
    read = as_shape(read_field(field_to_bytes(shape, dtype)))
    features = shape.to_state().features
    expected = rounded(dtype or "int8", features, row_levels(shape.lattice), shape.depth)
    shape.parameters["encoder.features"][1:] = shape.parameters["encoder.features"].new_tensor(expected)
    assert read.info() == shape.info()
    assert read.signal == shape.signal
    assert np.array_equal(read.leaf_signs(), shape.leaf_signs())
    assert np.array_equal(read.to_state().features, expected)
    assert same_shape(read, shape)


def test_a_shape_of_coordinates_comes_back() -> None:
    shape = make_shape("coordinate", 4)
    assert same_shape(as_shape(read_field(field_to_bytes(shape))), shape)


@pytest.mark.parametrize("dtype", [*DTYPES, None])
def test_writing_what_was_read_gives_the_same_bytes(field: AnyField, dtype: FeatureDtype | None) -> None:
    written = field_to_bytes(field, dtype)
    assert field_to_bytes(read_field(written), dtype) == written


def test_features_of_eight_bits_take_half_the_room_or_less() -> None:
    for field in (make_field("grid"), make_shape("grid", 1)):
        sizes = {dtype: len(field_to_bytes(field, dtype)) for dtype in DTYPES}
        values = field.to_state().features.size
        assert sizes["float32"] - sizes["float16"] == pytest.approx(2 * values, abs=16)
        assert sizes["float16"] - sizes["int8"] > 0.9 * values - 300


def test_features_that_were_never_learned_nearly_vanish() -> None:
    shape = make_shape("grid", 1)
    values = shape.to_state().features.size
    full = len(field_to_bytes(shape))
    shape.parameters["encoder.features"].zero_()
    assert full - len(field_to_bytes(shape)) > 0.9 * values


def test_info_shows_a_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.acorn"
    path.write_bytes(SHAPE)
    with pytest.raises(SystemExit):
        cli.main(["info", str(path), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["size"], facts["channels"]) == ("shape", [37, 20, 29], 4)
    assert (facts["iou"], facts["bytes"]) == (0.75, len(SHAPE))
    assert 0 < facts["surface_blocks"] < facts["blocks"]


def test_the_same_field_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.acorn", "b.acorn"):
        write_field(tmp_path / name, make_field("grid"))
    assert (tmp_path / "a.acorn").read_bytes() == (tmp_path / "b.acorn").read_bytes() == GRID
    assert field_to_bytes(make_shape("grid", 4)) == SHAPE


def test_a_path_and_bytes_read_alike(tmp_path: Path, field: AnyField) -> None:
    path = tmp_path / "x.acorn"
    write_field(path, field)
    assert path.read_bytes() == field_to_bytes(field)
    assert field_to_bytes(read_field(path)) == path.read_bytes()


def test_the_safetensors_library_opens_it(tmp_path: Path, field: AnyField) -> None:
    path = tmp_path / "x.acorn"
    write_field(path, field)
    tensors = safetensors.numpy.load_file(path)
    state, tree = field.to_state(), field.lattice.tree
    bits = {"index.split": tree.split_flags}
    if state.signs is not None:
        bits |= {"index.inside": state.signs == -1, "index.outside": state.signs == 1}
    else:
        assert np.array_equal(tensors["features"], state.features.astype(np.float16))
    for name, flags in bits.items():
        for node, flag in enumerate(flags):
            assert (tensors[name][node // 8] >> (node % 8)) & 1 == flag
    assert {name for name in tensors if name.startswith("index.")} == bits.keys()
    with safetensors.safe_open(path, "numpy") as file:
        assert json.loads(file.metadata()["acorn"])["version"] == 1


def _tensors(data: bytes) -> tuple[Document, dict[str, Any]]:
    """The header and the tensors, without our reader; and the head's digest is right."""
    start = LENGTH + int.from_bytes(data[:LENGTH], "little")
    header = json.loads(data[LENGTH:start])
    begin, end = (start + offset for offset in header["digest"]["data_offsets"])
    assert hashlib.sha256(data[:begin]).digest() == data[begin:end]
    return header, safetensors.numpy.load(data)


def _chunk(data: bytes, number: int) -> bytes:
    """A chunk by its byte range, checked by its digest."""
    header, tensors = _tensors(data)
    start = LENGTH + int.from_bytes(data[:LENGTH], "little") + header["features"]["data_offsets"][0]
    first = start + int(tensors["chunks.offset"][number])
    chunk = data[first : first + int(tensors["chunks.bytes"][number])]
    digest = hashlib.blake2b(chunk, digest_size=16).digest()
    assert digest == tensors["chunks.digest"][number].tobytes()
    return chunk


def test_one_node_can_be_fetched_and_checked_by_byte_range() -> None:
    """As the specification says, with nothing but JSON, numpy and hashes."""
    state = make_field("grid").to_state()
    for node in range(len(state.levels)):
        rows = state.features[state.offsets[node] : state.offsets[node + 1]]
        assert _chunk(GRID, node) == rows.astype("<f2").tobytes()


def test_a_run_of_nodes_can_be_fetched_and_unpacked_by_byte_range() -> None:
    """As the specification says, with nothing but JSON, numpy, zlib and hashes."""
    state, (header, tensors) = read_field(SHAPE).to_state(), _tensors(SHAPE)
    stored = json.loads(header["__metadata__"]["acorn"])["features"]
    assert stored == {"codec": "deflate", "dtype": "int8", "nodes_per_chunk": 64}
    nodes = len(state.levels)
    assert nodes > 64
    assert len(tensors["chunks.bytes"]) == -(-nodes // 64)
    for number in range(-(-nodes // 64)):
        first, last = 64 * number, min(64 * (number + 1), nodes)
        content = zlib.decompress(_chunk(SHAPE, number), wbits=-15)
        values = np.frombuffer(content, np.int8).reshape(-1, 2)
        levels = np.repeat(state.levels[first:last], np.diff(state.offsets[first : last + 1]))
        expected = state.features[state.offsets[first] : state.offsets[last]]
        assert np.array_equal(values * tensors["features.scale"][levels], expected)


@pytest.mark.parametrize("extra", [b"\0", b" ", b"x" * 4096])
def test_extra_bytes_are_refused(extra: bytes) -> None:
    for data in (GRID + extra, extra + GRID):
        with pytest.raises(BadModel):
            unpack_state(data)


def test_a_file_larger_than_allowed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.acorn"
    path.write_bytes(GRID)
    read_field(path, ModelLimits(max_bytes=len(GRID)))
    with pytest.raises(TooManyBytes) as caught:
        read_field(path, ModelLimits(max_bytes=len(GRID) - 1))
    assert (caught.value.limit, caught.value.value) == ("max_model_bytes", len(GRID) - 1)


def _needed(state: FieldState, dimension: int) -> int:
    """Bytes of memory that `docs/format.md` says reading takes, beside the file."""
    nodes, vertices = len(state.levels), (state.header["architecture"]["cells"] + 1) ** dimension
    return nodes * (500 + 5 * vertices) + 9 * state.features.size


def test_every_other_limit_is_named_and_held() -> None:
    state, header_bytes = make_field("grid").to_state(), int.from_bytes(GRID[:LENGTH], "little")
    for limits, name in (
        ({"max_header_bytes": header_bytes}, "max_model_header_bytes"),
        ({"max_cells": len(state.levels)}, "max_model_cells"),
        ({"max_memory_bytes": _needed(state, 2)}, "max_model_memory_bytes"),
    ):
        read_field(GRID, ModelLimits(**limits))
        less = {key: value - 1 for key, value in limits.items()}
        with pytest.raises(LimitExceeded) as caught:
            read_field(GRID, ModelLimits(**less))
        assert (caught.value.limit, caught.value.value) == (name, *less.values())


def test_more_nodes_than_any_file_may_have() -> None:
    data = _repacked(_replace("index.split", lambda a: np.zeros(MAX_NODES // 8 + 1, np.uint8)))
    with pytest.raises(LimitExceeded) as caught:
        read_field(data)
    assert caught.value.limit == "max_model_cells"


@pytest.mark.parametrize("encoder", ["grid", "coordinate"])
def test_memory_is_known_before_it_is_taken(encoder: EncoderName) -> None:
    """The bound holds, and what is beyond it is refused for next to nothing."""
    shape = make_shape(encoder, 4, splits=50)
    if encoder == "grid":
        shape.parameters["encoder.features"].zero_()  # a small file, of which much is made
    data, needed = field_to_bytes(shape), _needed(shape.to_state(), 3)
    assert _peak(lambda: unpack_state(data)) <= needed + PYTHON_BYTES
    with pytest.raises(LimitExceeded):
        read_field(data, ModelLimits(max_memory_bytes=needed // 4))
    refused = _peak(lambda: _try(lambda: read_field(data, ModelLimits(max_memory_bytes=needed // 4))))
    assert refused <= needed // 4 + PYTHON_BYTES


def _try(action: Callable[[], object]) -> None:
    with contextlib.suppress(LimitExceeded):
        action()


def _peak(action: Callable[[], object]) -> int:
    """Bytes that are taken at once, at most, by an action that was done before."""
    action()
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- lies: files whose digests are right ---


def _repacked(change: Callable[[Document, Tensors], None], data: bytes = GRID) -> bytes:
    """A sealed file of changed content."""
    document, tensors = envelope.unpack(data, KEY, ("features",))
    tensors = {name: array.copy() for name, array in tensors.items()}
    change(document, tensors)
    features = tensors.pop("features")
    content = features.reshape(-1).view(np.uint8)
    bounds = [*tensors["chunks.offset"].tolist(), len(content)]
    if len(tensors["chunks.digest"]) == len(bounds) - 1:
        tensors["chunks.digest"][:] = [
            np.frombuffer(hashlib.blake2b(content[a:b], digest_size=16).digest(), np.uint8)
            for a, b in pairwise(bounds)
        ]
    return b"".join(envelope.pack(KEY, document, tensors, {"features": features}))


def _reheaded(change: Callable[[Document], None]) -> bytes:
    """A file with a changed header and the right digest for it."""
    start = LENGTH + int.from_bytes(GRID[:LENGTH], "little")
    header = json.loads(GRID[LENGTH:start])
    digest_at = header["digest"]["data_offsets"][0]
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(LENGTH, "little") + text + GRID[start : start + digest_at]
    return head + hashlib.sha256(head).digest() + GRID[start + digest_at + 32 :]


def test_the_tools_of_this_test_change_nothing_by_themselves() -> None:
    for data in (GRID, SHAPE):
        assert _repacked(lambda document, tensors: None, data) == data
    unpack_state(_reheaded(lambda header: None))


HUGE = 1 << 40
HEADER_LIES: dict[str, Callable[[Document], object]] = {
    "huge shape": lambda h: h["features"].update(shape=[HUGE, 2]),
    "overflowing shape": lambda h: h["features"].update(shape=[1 << 62, 1 << 62]),
    "beyond 64 bits": lambda h: h["features"].update(shape=[1 << 64, 0]),
    "negative shape": lambda h: h["features"].update(shape=[-1, 2]),
    "fractional shape": lambda h: h["features"].update(shape=[1.0, 2]),
    "boolean shape": lambda h: h["features"].update(shape=[True, 2]),
    "shape of text": lambda h: h["features"].update(shape="12"),
    "many dimensions": lambda h: h["features"].update(shape=[1] * 99),
    "no shape": lambda h: h["features"].pop("shape"),
    "unknown dtype": lambda h: h["features"].update(dtype="F4"),
    "dtype of no hash": lambda h: h["features"].update(dtype=["F16"]),
    "overlap": lambda h: h["features"].update(data_offsets=h["digest"]["data_offsets"]),
    "hole": lambda h: h["digest"].update(data_offsets=[o + 8 for o in h["digest"]["data_offsets"]]),
    "entry of no object": lambda h: h.update(features=[1]),
    "lacking features": lambda h: h.pop("features"),
    "lacking digest": lambda h: h.pop("digest"),
    "lacking metadata": lambda h: h.pop("__metadata__"),
    "other metadata": lambda h: h["__metadata__"].update(more="text"),
    "metadata of no text": lambda h: h["__metadata__"].update(acorn={}),
    "metadata of no JSON": lambda h: h["__metadata__"].update(acorn="{"),
    "metadata of deep JSON": lambda h: h["__metadata__"].update(acorn='{"a":' + "[" * 100_000),
    "metadata with NaN": lambda h: h["__metadata__"].update(acorn='{"version": NaN}'),
    "metadata with infinity": lambda h: h["__metadata__"].update(acorn='{"version": 1e999}'),
    "a key twice": lambda h: h["__metadata__"].update(acorn='{"version":0,"version":0}'),
    "metadata of a list": lambda h: h["__metadata__"].update(acorn="[]"),
}


@pytest.mark.parametrize("lie", HEADER_LIES.values(), ids=HEADER_LIES.keys())
def test_a_lying_header_is_refused(lie: Callable[[Document], object]) -> None:
    data = _reheaded(lie)  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        with pytest.raises(BadModel):
            read_field(data)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def _set(path: str, value: object) -> Callable[[Document, Tensors], None]:
    """Sets an entry of the document, such as `field.tree.depth`."""
    *folders, name = path.split(".")

    def change(document: Document, _tensors: Tensors) -> None:
        for folder in folders:
            document = document[folder]
        document[name] = value

    return change


def _edit(name: str, index: object, value: object) -> Callable[[Document, Tensors], None]:
    def change(_document: Document, tensors: Tensors) -> None:
        tensors[name][index] = value  # type: ignore[index]

    return change


def _replace(name: str, how: Callable[[Any], Any]) -> Callable[[Document, Tensors], None]:
    def change(_document: Document, tensors: Tensors) -> None:
        tensors[name] = how(tensors[name])

    return change


def _drop(name: str) -> Callable[[Document, Tensors], None]:
    def change(_document: Document, tensors: Tensors) -> None:
        del tensors[name]

    return change


def _add(name: str) -> Callable[[Document, Tensors], None]:
    def change(_document: Document, tensors: Tensors) -> None:
        tensors[name] = np.zeros(1, np.float32)

    return change


def _copy(name: str, other: str) -> Callable[[Document, Tensors], None]:
    def change(_document: Document, tensors: Tensors) -> None:
        tensors[other] = tensors[name].copy()

    return change


def _rechunk(how: Callable[[list[bytes]], list[bytes]]) -> Callable[[Document, Tensors], None]:
    """Other chunks, and a table that is true."""

    def change(_document: Document, tensors: Tensors) -> None:
        content, starts = tensors["features"].tobytes(), tensors["chunks.offset"].tolist()
        chunks = how([content[a:b] for a, b in pairwise([*starts, len(content)])])
        sizes = np.array([len(chunk) for chunk in chunks], np.uint64)
        tensors["features"] = np.frombuffer(b"".join(chunks), np.uint8)
        tensors["chunks.bytes"], tensors["chunks.offset"] = sizes, np.cumsum(sizes) - sizes
        tensors["chunks.digest"] = np.zeros((len(chunks), 16), np.uint8)

    return change


def _deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


def _unchanged(chunks: list[bytes]) -> list[bytes]:
    return chunks


LIES: dict[str, Callable[[Document, Tensors], None]] = {
    "old version": _set("version", 0),
    "new version": _set("version", 2),
    "version of true": _set("version", True),
    "version of text": _set("version", "1"),
    "codec": _set("features.codec", "zip"),
    "dtype": _set("features.dtype", "float32"),
    "dtype of no hash": _set("features.dtype", ["float16"]),
    "unknown entry of features": _set("features.surprise", 1),
    "chunks of no node": _set("features.nodes_per_chunk", 0),
    "chunks of two nodes": _set("features.nodes_per_chunk", 2),
    "chunks of countless nodes": _set("features.nodes_per_chunk", 1 << 62),
    "chunks of half a node": _set("features.nodes_per_chunk", 0.5),
    "deflated": _set("features.codec", "deflate"),
    "scale of zero": _edit("features.scale", (1, 0), 0.0),
    "negative scale": _edit("features.scale", (1, 0), -1.0),
    "scale too large": _edit("features.scale", (1, 0), 1e30),
    "scale too small": _edit("features.scale", (1, 0), 1e-30),
    "scale NaN": _edit("features.scale", (1, 0), np.nan),
    "scale as double": _replace("features.scale", lambda a: a.astype(np.float64)),
    "scale of a level missing": _replace("features.scale", lambda a: a[1:]),
    "scale of a channel missing": _replace("features.scale", lambda a: a[:, 1:]),
    "scale missing": _drop("features.scale"),
    "no features": _set("features", None),
    "no field": _set("field", []),
    "unknown entry": _set("field.surprise", 1),
    "kind": _set("field.kind", "mesh"),
    "other kind": _set("field.kind", "shape"),
    "kind of no hash": _set("field.kind", ["image"]),
    "width": _set("field.width", 10_000),
    "huge width": _set("field.width", 10**400),
    "negative width": _set("field.width", -9),
    "fractional width": _set("field.width", 9.0),
    "width of text": _set("field.width", "9"),
    "channels": _set("field.channels", 5),
    "bit depth": _set("field.bit_depth", 12),
    "encoder": _set("field.architecture.encoder", "magic"),
    "encoder without features": _set("field.architecture.encoder", "coordinate"),
    "cells": _set("field.architecture.cells", 8),
    "huge cells": _set("field.architecture.cells", 1 << 30),
    "huge features": _set("field.architecture.features", 1 << 30),
    "huge decoder": _set("field.architecture.decoder_width", 4096),
    "deep decoder": _set("field.architecture.decoder_layers", 1 << 40),
    "boolean layers": _set("field.architecture.decoder_layers", True),
    "unknown architecture": _set("field.architecture.surprise", 1),
    "no architecture": _set("field.architecture", None),
    "depth": _set("field.tree.depth", 60),
    "dimension": _set("field.tree.dimension", 3),
    "huge extent": _set("field.tree.extent", [1 << 40, 1 << 40]),
    "long extent": _set("field.tree.extent", [1] * 100_000),
    "extent of text": _set("field.tree.extent", "54"),
    "long preset": _set("field.fit.preset", "x" * 1000),
    "psnr of text": _set("field.fit.psnr", "high"),
    "fewer nodes": _edit("index.split", 0, 0b0001),
    "other nodes": _edit("index.split", 0, 0b0101),
    "more nodes": _edit("index.split", 0, 0b0111),
    "nodes below the finest level": _edit("index.split", 0, 0b1011),
    "a bit after the last node": _edit("index.split", 0, 0b1000_0011),
    "a byte after the last node": _replace("index.split", lambda a: np.append(a, a[:1] * 0)),
    "bits as words": _replace("index.split", lambda a: a.astype(np.uint16)),
    "bits as a table": _replace("index.split", lambda a: a[None]),
    "no nodes": _replace("index.split", lambda a: a[:0]),
    "all nodes split": _replace("index.split", lambda a: np.full(MAX_NODES // 8, 255, np.uint8)),
    "signs": _copy("index.split", "index.inside"),
    "chunk too long": _edit("chunks.bytes", 0, 1 << 63),
    "chunk of half a row": _edit("chunks.bytes", 0, 2),
    "chunk elsewhere": _edit("chunks.offset", 1, 0),
    "chunk missing": _replace("chunks.digest", lambda a: a[:-1]),
    "row missing": _replace("features", lambda a: a[:-1]),
    "features as a line": _replace("features", lambda a: a.reshape(-1)),
    "rows of nothing": _replace("features", lambda a: np.empty((5, 0), np.float16)),
    "feature NaN": _edit("features", (0, 0), np.nan),
    "feature infinite": _edit("features", (-1, -1), np.inf),
    "weight NaN": _edit("weights.decoder.0.weight", (0, 0, 0), np.nan),
    "weight as double": _replace("weights.decoder.0.bias", lambda a: a.astype(np.float64)),
    "weight of another shape": _replace("weights.decoder.0.bias", lambda a: a[:, :1]),
    "weight missing": _drop("weights.decoder.1.bias"),
    "weight of an odd name": _add("weights.A b"),
    "unknown tensor": _add("surprise"),
    "tensor missing": _drop("index.split"),
}


SHAPE_LIES: dict[str, Callable[[Document, Tensors], None]] = {
    "other kind": _set("field.kind", "image"),
    "entry of a picture": _set("field.width", 9),
    "size of two": _set("field.size", [37, 20]),
    "size of four": _set("field.size", [37, 20, 29, 1]),
    "larger size": _set("field.size", [41, 20, 29]),
    "huge size": _set("field.size", [1 << 62] * 3),
    "size of nothing": _set("field.size", [37, 0, 29]),
    "fractional size": _set("field.size", [37.0, 20, 29]),
    "size of text": _set("field.size", "abc"),
    "channels": _set("field.channels", 3),
    "other channels": _set("field.channels", 1),
    "truncation of nothing": _set("field.truncation", 0.0),
    "negative truncation": _set("field.truncation", -4.0),
    "large truncation": _set("field.truncation", 65.0),
    "whole truncation": _set("field.truncation", 4),
    "no truncation": _set("field.truncation", None),
    "voxel of nothing": _set("field.voxel", 0.0),
    "no voxel": _set("field.voxel", None),
    "origin of two": _set("field.origin", [0.0, 0.0]),
    "whole origin": _set("field.origin", [0, 0, 0]),
    "origin of text": _set("field.origin", "abc"),
    "iou of text": _set("field.fit.iou", "good"),
    "dimension": _set("field.tree.dimension", 2),
    "extent beyond the limit": _set("field.tree.extent", [300, 300, 300]),
    "deep tree": _set("field.tree.depth", 13),
    "deeper tree": _set("field.tree.depth", 5),
    "cells that are none": _set("field.architecture.cells", 0),
    "other cells": _set("field.architecture.cells", 8),
    "cells of no power": _set("field.architecture.cells", 5),
    "other features": _set("field.architecture.features", 4),
    "features of no kind": _set("field.architecture.features", 3),
    "raw": _set("features.codec", "raw"),
    "float16": _set("features.dtype", "float16"),
    "shorter chunks": _set("features.nodes_per_chunk", 63),
    "longer chunks": _set("features.nodes_per_chunk", 65),
    "no inside": _drop("index.inside"),
    "no outside": _drop("index.outside"),
    "inside and outside": _copy("index.inside", "index.outside"),
    "inside that is split": _edit("index.inside", 0, 1),
    "outside that is split": _edit("index.outside", 0, 1),
    "inside after the last node": _edit("index.inside", -1, 0x80),
    "outside after the last node": _edit("index.outside", -1, 0x80),
    "shorter inside": _replace("index.inside", lambda a: a[:-1]),
    "longer outside": _replace("index.outside", lambda a: np.append(a, a[:1] * 0)),
    "signs as words": _replace("index.inside", lambda a: a.astype(np.uint16)),
    "features as a table": _replace("features", lambda a: a[:, None]),
    "features as signed": _replace("features", lambda a: a.view(np.int8)),
    "scale NaN": _edit("features.scale", (0, 0), np.nan),
    "byte missing": _rechunk(lambda chunks: [chunks[0][:-1], *chunks[1:]]),
    "byte after a stream": _rechunk(lambda chunks: [chunks[0] + b"x", *chunks[1:]]),
    "empty chunk": _rechunk(lambda chunks: [b"", *chunks[1:]]),
    "chunks swapped": _rechunk(lambda chunks: chunks[::-1]),
    "chunk missing": _rechunk(lambda chunks: chunks[:-1]),
    "chunk too many": _rechunk(lambda chunks: [*chunks, chunks[-1]]),
    "chunk of noise": _rechunk(lambda chunks: [bytes(range(256)), *chunks[1:]]),
    "chunk with zlib's header": _rechunk(lambda chunks: [zlib.compress(chunks[0]), *chunks[1:]]),
    "row too few": _rechunk(lambda c: [_deflated(zlib.decompress(c[0], -15)[:-2]), *c[1:]]),
    "row too many": _rechunk(lambda c: [_deflated(zlib.decompress(c[0], -15) + b"ab"), *c[1:]]),
    "bomb": _rechunk(lambda chunks: [_deflated(bytes(64 << 20)), *chunks[1:]]),
}
ALL_LIES = {
    **{f"picture: {name}": (GRID, lie) for name, lie in LIES.items()},
    **{f"shape: {name}": (SHAPE, lie) for name, lie in SHAPE_LIES.items()},
}


@pytest.mark.parametrize(("file", "lie"), ALL_LIES.values(), ids=ALL_LIES.keys())
def test_a_sealed_lie_is_refused(file: bytes, lie: Callable[[Document, Tensors], None]) -> None:
    data = _repacked(lie, file)
    tracemalloc.start()
    try:
        with pytest.raises(BadModel):
            read_field(data)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_other_chunks_of_the_same_features_are_read() -> None:
    assert _repacked(_rechunk(_unchanged), SHAPE) == SHAPE
    data = _repacked(_rechunk(lambda c: [_deflated(zlib.decompress(chunk, -15)) for chunk in c]), SHAPE)
    assert data != SHAPE
    assert np.array_equal(unpack_state(data).features, unpack_state(SHAPE).features)


def test_float32_and_scales_are_read() -> None:
    factors = np.array([[0.5, 2.0], [0.25, 1.0], [8.0, 1.0]], np.float32)
    levels = row_levels(make_field("grid").lattice)

    def change(document: Document, tensors: Tensors) -> None:
        document["features"].update(dtype="float32")
        tensors["features"] = tensors["features"] / factors[levels]
        tensors["features.scale"] = factors
        tensors["chunks.bytes"] *= 2
        tensors["chunks.offset"] *= 2

    assert np.array_equal(unpack_state(_repacked(change)).features, unpack_state(GRID).features)


@pytest.mark.parametrize("codec", ["raw", "deflate"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_codec_goes_with_every_dtype(codec: str, dtype: FeatureDtype) -> None:
    """Packed by hand, in runs of three nodes."""
    field = make_field("grid")
    data = field_to_bytes(field, dtype)
    state = unpack_state(data)
    stored = state.features / _tensors(data)[1]["features.scale"][row_levels(field.lattice)]
    content = stored.astype(dtype)
    bounds = [*state.offsets[:-1:3].tolist(), int(state.offsets[-1])]
    chunks = [content[a:b].tobytes() for a, b in pairwise(bounds)]

    def change(document: Document, tensors: Tensors) -> None:
        document["features"].update(codec=codec, nodes_per_chunk=3)
        _rechunk(lambda _: chunks if codec == "raw" else [_deflated(chunk) for chunk in chunks])(
            document, tensors
        )
        if codec == "raw":
            tensors["features"] = content

    assert np.array_equal(unpack_state(_repacked(change, data)).features, state.features)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("field", [make_field("grid"), make_shape("grid", 1)], ids=["picture", "shape"])
def test_a_field_that_the_file_cannot_hold_is_not_written(field: AnyField, value: float) -> None:
    state = field.to_state()
    features = state.features.copy()
    features[0, 0] = value
    with pytest.raises(BadModel):
        pack_state(replace(state, features=features))


def test_a_header_that_could_not_be_read_is_not_written() -> None:
    state = make_shape("grid", 1).to_state()
    for entry in ({"truncation": 4}, {"kind": "mesh"}, {"surprise": 1}):
        with pytest.raises(BadModel):
            pack_state(replace(state, header=state.header | entry))


@given(st.binary(max_size=300))
def test_bytes_are_a_field_or_a_bad_model(data: bytes) -> None:
    with pytest.raises(BadModel):
        read_field(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
        max_leaves=20,
    ),
    st.sampled_from(["", "field", "features", "field.tree", "field.architecture", "field.width"]),
)
def test_any_document_is_a_field_or_a_bad_model(value: object, path: str) -> None:
    text = json.dumps(value)

    def change(header: Document) -> None:
        document = json.loads(header["__metadata__"]["acorn"])
        if path:
            _set(path, json.loads(text))(document, {})
        header["__metadata__"]["acorn"] = json.dumps(document) if path else text

    with contextlib.suppress(BadModel):
        read_field(_reheaded(change))


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, field: AnyField, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.acorn"
    path.write_bytes(b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_field(path, field)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
