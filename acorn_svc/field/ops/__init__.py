"""Operations with native kernels: one table of back ends, chosen by device and what is installed.

``reference`` is plain PyTorch, runs on every device and is the specification. ``cpu`` and ``cuda``
have the same functions with the same signatures. Callers use the functions of this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

__all__ = ["TABLE", "Availability", "BackEnd", "Operations", "available", "choose", "identity"]


class Operations(Protocol):
    """What every back end offers."""

    def identity(self, values: Tensor) -> Tensor:
        """See :func:`acorn_svc.field.ops.reference.identity`."""


class Availability(NamedTuple):
    """Whether a back end works here, and why not."""

    name: str
    available: bool
    reason: str


@dataclass(frozen=True)
class BackEnd:
    """A row of the table.

    Attributes:
        name: also the name of the module in this package.
        devices: device types whose tensors it takes.
        missing: says what is missing here, or nothing.
    """

    name: str
    devices: frozenset[str]
    missing: Callable[[], str]

    def operations(self) -> Operations:
        """The module of this back end; only where nothing is missing."""
        return cast(Operations, import_module(f"{__name__}.{self.name}"))


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _cuda_missing() -> str:
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    absent = [name for name in ("cuda.core", "cuda.bindings") if not _installed(name)]
    return f"not installed: {', '.join(absent)} (extra 'cuda')" if absent else ""


def _cpu_missing() -> str:
    if _installed("acorn_svc._native"):
        return ""
    return "the native module was not built (no C++ compiler at installation)"


# In order of preference; the last one runs everywhere.
TABLE = (
    BackEnd("cuda", frozenset({"cuda"}), _cuda_missing),
    BackEnd("cpu", frozenset({"cpu"}), _cpu_missing),
    BackEnd("reference", frozenset({"cpu", "cuda"}), lambda: ""),
)


def available() -> list[Availability]:
    """Says of every back end whether it works on this machine, in order of preference."""
    return [Availability(row.name, not row.missing(), row.missing()) for row in TABLE]


@cache
def choose(device_type: str) -> Operations:
    """The best back end for tensors of ``device_type`` (``"cpu"``, ``"cuda"``, ...)."""
    for row in TABLE:
        if device_type in row.devices and not row.missing():
            return row.operations()
    return TABLE[-1].operations()


def identity(values: Tensor) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.identity`."""
    return choose(values.device.type).identity(values)
