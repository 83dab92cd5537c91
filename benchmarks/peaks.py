"""What the machine can do at most: multiply-adds of ``float32`` numbers in registers, copies in memory.

Each limit is an action that is timed like what it limits, in turns with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch

from benchmarks.measurement import Action

ROUNDS = 1_000_000
SIDE = 2048
COPIED = 1 << 25
FLOAT = 4
COPY = "copy"


class Peak(NamedTuple):
    """An action that does nothing but what is limited.

    Attributes:
        name: ``COPY``, an instruction set, or ``matrix product``.
        work: multiply-adds, or bytes read and written, of one call.
        action: the call.
    """

    name: str
    work: float
    action: Action

    @property
    def unit(self) -> tuple[float, str]:
        """A factor to, and the name of, the unit that it is reported in; a multiply-add is two operations."""
        return (1e-9, "GB/s") if self.name == COPY else (2e-9, "GFLOP/s")


def has_native() -> bool:
    """Whether the native module was built."""
    return find_spec("acorn_svc._native") is not None


def instruction_sets() -> list[str]:
    """Those for which there are kernels that this processor runs, the widest first."""
    names: list[str] = import_module("acorn_svc._native").lanes() if has_native() else []
    return names


def peaks(device: str, threads: int) -> list[Peak]:
    """The limits of a device: a copy, then multiply-adds, the fastest first.

    Where there are no native loops for it, PyTorch's matrix product stands for the multiply-adds.
    """
    return list(_native(threads) if device == "cpu" and has_native() else _by_torch(device))


def _native(threads: int) -> Iterator[Peak]:
    native = import_module("acorn_svc._native")
    values, out = torch.ones(COPIED), torch.zeros(COPIED)
    yield Peak(COPY, 2 * FLOAT * COPIED, lambda: native.copy(values, out, threads))
    for name in native.lanes():
        yield _loop(name, threads)


def _loop(lanes: str, threads: int) -> Peak:
    native = import_module("acorn_svc._native")
    done = native.multiply_adds(lanes, 1, threads)
    return Peak(lanes, ROUNDS * done, lambda: native.multiply_adds(lanes, ROUNDS, threads))


def _by_torch(device: str) -> Iterator[Peak]:
    values = torch.ones(COPIED, device=device)
    out = torch.zeros_like(values)
    yield Peak(COPY, 2 * FLOAT * COPIED, lambda: out.copy_(values))
    left = torch.ones(SIDE, SIDE, device=device)
    product = torch.empty_like(left)
    yield Peak("matrix product", SIDE**3, lambda: torch.mm(left, left, out=product))
