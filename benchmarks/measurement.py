"""What a benchmark yields, and how times are taken."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Action = Callable[[], object]
Clock = Callable[[], float]
Times = NDArray[np.float64]

SHORTEST = 0.02
LEAST_ROUNDS = 3


class Measurement(NamedTuple):
    """One number: what was measured on which case, and its unit."""

    case: str
    metric: str
    value: float
    unit: str


class Ratio(NamedTuple):
    """How much faster one action is than another: of their shortest times, and the median of all rounds."""

    best: float
    median: float


@contextmanager
def pinned() -> Iterator[None]:
    """On one core, the last of those that this process may use."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def best_seconds(action: Action, repeats: int = 5) -> float:
    """The shortest of several runs, after one that warms caches."""
    action()
    return min(_seconds(action) for _ in range(repeats))


def _seconds(action: Action, clock: Clock = time.perf_counter) -> float:
    start = clock()
    action()
    return clock() - start


def interleaved(actions: Sequence[Action], seconds: float, clock: Clock = time.perf_counter) -> list[Times]:
    """Times of actions that take turns, so that whatever slows the machine slows all of them.

    Each is called once to warm caches. In a round each is called until ``SHORTEST`` has passed, as often in
    every round; a time is that of one call.

    Args:
        actions: what is timed.
        seconds: when no new round begins, but for ``LEAST_ROUNDS``.
        clock: seconds, from any start.

    Returns:
        for each action the times ``[rounds]`` of one call.
    """
    for action in actions:
        action()
    calls = [max(1, math.ceil(SHORTEST / max(_seconds(action, clock), 1e-9))) for action in actions]
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while len(rounds) < LEAST_ROUNDS or time.perf_counter() - start < seconds:
        pairs = zip(actions, calls, strict=True)
        rounds.append([_seconds(_repeated(action, count), clock) / count for action, count in pairs])
    return [np.array(times) for times in zip(*rounds, strict=True)]


def _repeated(action: Action, count: int) -> Action:
    def run() -> None:
        for _ in range(count):
            action()

    return run


def ratio(slow: Times, fast: Times) -> Ratio:
    """The ratio of two interleaved actions' times."""
    return Ratio(float(slow.min() / fast.min()), float(np.median(slow / fast)))
