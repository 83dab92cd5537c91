"""Throughput of every operation on every back end that works here."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from acorn_svc.field import ops
from benchmarks.measurement import Measurement, best_seconds

VALUES = 1 << 24
BYTES_MOVED = 2 * 4 * VALUES


def measure() -> Iterator[Measurement]:
    for row in ops.TABLE:
        if not row.missing():
            for device in sorted(_present(row.devices)):
                yield _identity(row, device)


def _present(devices: frozenset[str]) -> frozenset[str]:
    return devices if torch.cuda.is_available() else devices - {"cuda"}


def _identity(row: ops.BackEnd, device: str) -> Measurement:
    values = torch.ones(VALUES, device=device)
    identity = row.operations().identity

    def run() -> None:
        identity(values)
        if device == "cuda":
            torch.cuda.synchronize()

    case = f"identity, {row.name}, {device}"
    return Measurement(case, "throughput", BYTES_MOVED / best_seconds(run) / 1e9, "GB/s")
