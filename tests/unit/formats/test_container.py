"""The `.acorn` file: comes back as it was, or is refused; there is nothing between."""

import errno
import hashlib
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from small_fields import make_field

from acorn_svc.errors import BadModel, TooManyBytes
from acorn_svc.field.model import Field
from acorn_svc.formats import envelope
from acorn_svc.formats.container import (
    KEY,
    field_to_bytes,
    pack_state,
    read_field,
    unpack_state,
    write_field,
)

Document = dict[str, Any]
Tensors = dict[str, np.ndarray[Any, Any]]

GRID = field_to_bytes(make_field("grid"))
LENGTH = 8


def test_a_field_comes_back(field: Field) -> None:
    read = read_field(field_to_bytes(field))
    assert read.info() == field.info()
    difference = read.render().astype(int) - field.render()
    assert np.abs(difference).max() <= 1
    before, after = field.to_state(), read.to_state()
    assert np.array_equal(after.features, before.features.astype(np.float16))
    assert before.weights.keys() == after.weights.keys()
    assert all(np.array_equal(before.weights[name], after.weights[name]) for name in after.weights)


def test_writing_what_was_read_gives_the_same_bytes(field: Field) -> None:
    written = field_to_bytes(field)
    assert field_to_bytes(read_field(written)) == written


def test_the_same_field_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.acorn", "b.acorn"):
        write_field(tmp_path / name, make_field("grid"))
    assert (tmp_path / "a.acorn").read_bytes() == (tmp_path / "b.acorn").read_bytes() == GRID


def test_a_path_and_bytes_read_alike(tmp_path: Path, field: Field) -> None:
    path = tmp_path / "x.acorn"
    write_field(path, field)
    assert np.array_equal(read_field(path).render(), read_field(path.read_bytes()).render())


def test_the_safetensors_library_opens_it(tmp_path: Path, field: Field) -> None:
    path = tmp_path / "x.acorn"
    write_field(path, field)
    tensors = safetensors.numpy.load_file(path)
    state = field.to_state()
    assert np.array_equal(tensors["index.levels"], state.levels)
    assert np.array_equal(tensors["index.morton"], state.indices)
    assert np.array_equal(tensors["features"], state.features.astype(np.float16))
    with safetensors.safe_open(path, "numpy") as file:
        assert json.loads(file.metadata()["acorn"])["version"] == 0


def test_one_node_can_be_fetched_and_checked_by_byte_range() -> None:
    """As the specification says, with nothing but JSON, numpy and hashes."""
    start = LENGTH + int.from_bytes(GRID[:LENGTH], "little")
    header = json.loads(GRID[LENGTH:start])
    tensors = safetensors.numpy.load(GRID)
    begin, end = (start + offset for offset in header["digest"]["data_offsets"])
    assert hashlib.sha256(GRID[:begin]).digest() == GRID[begin:end]
    state = make_field("grid").to_state()
    features = start + header["features"]["data_offsets"][0]
    for node in range(len(state.levels)):
        first = features + int(tensors["chunks.offset"][node])
        chunk = GRID[first : first + int(tensors["chunks.bytes"][node])]
        digest = hashlib.blake2b(chunk, digest_size=16).digest()
        assert digest == tensors["chunks.digest"][node].tobytes()
        rows = state.features[state.offsets[node] : state.offsets[node + 1]]
        assert chunk == rows.astype("<f2").tobytes()


def test_every_prefix_is_refused(field: Field) -> None:
    data = field_to_bytes(field)
    for length in range(len(data)):
        with pytest.raises(BadModel):
            unpack_state(data[:length])


def test_every_changed_byte_is_refused(field: Field) -> None:
    data = bytearray(field_to_bytes(field))
    generator = np.random.default_rng(0)
    for position, change in enumerate(generator.integers(1, 256, len(data)).tolist()):
        data[position] ^= change
        with pytest.raises(BadModel):
            unpack_state(data)
        data[position] ^= change
    unpack_state(data)


@pytest.mark.parametrize("extra", [b"\0", b" ", b"x" * 4096])
def test_extra_bytes_are_refused(extra: bytes) -> None:
    for data in (GRID + extra, extra + GRID):
        with pytest.raises(BadModel):
            unpack_state(data)


def test_a_file_larger_than_allowed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.acorn"
    path.write_bytes(GRID)
    read_field(path, max_bytes=len(GRID))
    with pytest.raises(TooManyBytes):
        read_field(path, max_bytes=len(GRID) - 1)


# --- lies: files whose digests are right ---


def _repacked(change: Callable[[Document, Tensors], None]) -> bytes:
    """A sealed file of changed content."""
    document, tensors = envelope.unpack(GRID, KEY, ("features",))
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
    assert _repacked(lambda document, tensors: None) == GRID
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


LIES: dict[str, Callable[[Document, Tensors], None]] = {
    "version": _set("version", 1),
    "version of text": _set("version", "0"),
    "codec": _set("features.codec", "zip"),
    "dtype": _set("features.dtype", "float32"),
    "dtype of no hash": _set("features.dtype", ["float16"]),
    "scale": _set("features.scale", 0.0),
    "scale too large": _set("features.scale", 1e300),
    "scale of text": _set("features.scale", "1"),
    "no features": _set("features", None),
    "no field": _set("field", []),
    "unknown entry": _set("field.surprise", 1),
    "kind": _set("field.kind", "mesh"),
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
    "unsorted nodes": _replace("index.morton", lambda a: a[::-1]),
    "node twice": _edit("index.morton", -1, 0),
    "orphan": _edit("index.morton", -1, 15),
    "outside its level": _edit("index.morton", 1, 1 << 60),
    "impossible level": _edit("index.levels", -1, 200),
    "no root": _edit("index.levels", 0, 1),
    "levels as words": _replace("index.levels", lambda a: a.astype(np.uint16)),
    "levels as a table": _replace("index.levels", lambda a: a[None]),
    "level missing": _replace("index.levels", lambda a: a[:-1]),
    "no nodes": _replace("index.levels", lambda a: a[:0]),
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
    "tensor missing": _drop("index.morton"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_sealed_lie_is_refused(lie: Callable[[Document, Tensors], None]) -> None:
    data = _repacked(lie)
    tracemalloc.start()
    try:
        with pytest.raises(BadModel):
            read_field(data)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_float32_and_a_scale_are_read() -> None:
    def change(document: Document, tensors: Tensors) -> None:
        document["features"].update(dtype="float32", scale=0.5)
        tensors["features"] = tensors["features"].astype(np.float32) * 2
        tensors["chunks.bytes"] *= 2
        tensors["chunks.offset"] *= 2

    assert np.array_equal(unpack_state(_repacked(change)).features, unpack_state(GRID).features)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_field_that_the_file_cannot_hold_is_not_written(value: float) -> None:
    state = make_field("grid").to_state()
    features = state.features.copy()
    features[0, 0] = value
    with pytest.raises(BadModel):
        pack_state(replace(state, features=features))


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

    with pytest.raises(BadModel):
        read_field(_reheaded(change))


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, field: Field, monkeypatch: pytest.MonkeyPatch
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
