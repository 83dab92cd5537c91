"""The native module refuses what its kernels cannot take, whoever calls it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

native = pytest.importorskip("acorn_svc._native", reason="the native module was not built (no C++ compiler)")


def test_copies_into_the_output() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    output = np.zeros_like(values)
    native.identity(values, output)
    np.testing.assert_array_equal(output, values)


@pytest.mark.parametrize(
    ("values", "output"),
    [
        (np.zeros(4), np.zeros(4, np.float32)),
        (np.zeros(4, np.float32), np.zeros(4)),
        (np.zeros(8, np.float32)[::2], np.zeros(4, np.float32)),
        (np.zeros(4, np.float32), np.zeros(8, np.float32)[::2]),
        ([1.0, 2.0], np.zeros(2, np.float32)),
        (None, np.zeros(2, np.float32)),
    ],
    ids=["float64 in", "float64 out", "strided in", "strided out", "list", "none"],
)
def test_nothing_is_converted_silently(values: object, output: object) -> None:
    with pytest.raises(TypeError):
        native.identity(values, output)


def test_read_only_output_is_refused() -> None:
    output = np.zeros(4, np.float32)
    output.setflags(write=False)
    with pytest.raises(TypeError):
        native.identity(np.zeros(4, np.float32), output)


@pytest.mark.parametrize("shape", [(3,), (5,), (4, 1), (2, 2), ()])
def test_shapes_must_agree(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        native.identity(np.zeros(4, np.float32), np.zeros(shape, np.float32))


def test_no_reference_leaks_at_exit() -> None:
    code = (
        "import numpy as np; from acorn_svc import _native as n;"
        "a = np.ones(3, 'f4'); n.identity(a, np.empty_like(a))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert "nanobind" not in done.stderr
