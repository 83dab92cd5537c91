"""What a benchmark yields, and how times are taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Measurement(NamedTuple):
    """One number: what was measured on which case, and its unit."""

    case: str
    metric: str
    value: float
    unit: str


def best_seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """The shortest of several runs, after one that warms caches."""
    action()
    return min(_seconds(action) for _ in range(repeats))


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
