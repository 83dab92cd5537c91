"""Times the exact allocation against the general integer program (HiGHS, by scipy.optimize.milp).

Yields per instance the best of five times of `solve`, of `allocate` (which also builds the new
tree), and on request the time of HiGHS and how much more error its answer removes than ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from acorn_svc.field.allocation import KEEP, MERGE, SPLIT, Moves, allocate, predict, solve
from acorn_svc.field.tree import Tree
from benchmarks.measurement import Measurement, best_seconds

INSTANCES = [
    ((1024, 1024), "uniform"),
    ((1024, 1024), "lognormal"),
    ((1024, 1024), "equal"),
    ((801, 613), "lognormal"),
    ((801, 613), "equal"),
    ((128, 128, 128), "lognormal"),
    ((101, 77, 93), "lognormal"),
    ((101, 77, 93), "equal"),
]


def random_tree(extent: tuple[int, ...], blocks: int, rng: np.random.Generator) -> Tree:
    tree = Tree.root(int(np.ceil(np.log2(max(extent)))), extent)
    added = 2 ** len(extent) - 1
    while (missing := blocks - len(tree.leaf_rows)) > 0:
        rows = tree.leaf_rows[tree.levels[tree.leaf_rows] < tree.depth]
        count = min(len(rows) // 2 + 1, missing // added + 1)
        tree = tree.split(np.sort(rng.choice(rows, count, replace=False)))
    return tree


def draw_errors(kind: str, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    if kind == "uniform":
        return rng.random(count)
    return np.exp(3 * rng.normal(size=count)) if kind == "lognormal" else np.ones(count)


def gain(moves: Moves, choice: NDArray[np.int8]) -> float:
    removed = moves.split_gain[choice == SPLIT].sum() - moves.merge_loss[choice == MERGE].sum()
    return float(removed)


def solve_by_highs(moves: Moves, capacity: int, seconds: float) -> NDArray[np.int8] | None:
    """The same task as an integer program: a merge per group, a split per leaf, not both."""
    member = np.flatnonzero(moves.group >= 0)
    groups, group = np.unique(moves.group[member], return_inverse=True)
    leaves, count = len(moves.group), len(groups)
    loss = np.bincount(group, weights=moves.merge_loss[member], minlength=count)
    cost = np.concatenate([-moves.split_gain, loss])
    weight = np.concatenate([moves.split_weight, 1.0 - np.bincount(group, minlength=count)])
    row = np.concatenate([np.zeros(leaves + count, dtype=np.int64), 1 + member, 1 + member])
    column = np.concatenate([np.arange(leaves + count), member, leaves + group])
    value = np.concatenate([weight, np.ones(2 * len(member))])
    matrix = coo_array((value, (row, column)), (1 + leaves, leaves + count)).tocsr()
    limit = np.concatenate([[capacity], np.ones(leaves)])
    result = milp(
        cost / np.abs(cost).max(),
        integrality=np.ones(leaves + count, dtype=np.int64),
        bounds=Bounds(0, np.concatenate([moves.split_weight >= 0, np.ones(count)])),
        constraints=LinearConstraint(matrix, -np.inf, limit),
        options={"mip_rel_gap": 0, "time_limit": seconds},
    )
    if result.x is None:
        return None
    choice = np.where(np.round(result.x[:leaves]) > 0, SPLIT, KEEP).astype(np.int8)
    choice[member[np.round(result.x[leaves + group]) > 0]] = MERGE
    return choice


def measure(
    extent: tuple[int, ...], kind: str, blocks: int = 16_384, highs_seconds: float = 0
) -> Iterator[Measurement]:
    rng = np.random.default_rng(0)
    tree = random_tree(extent, blocks, rng)
    errors = draw_errors(kind, len(tree.leaf_rows), rng)
    moves = predict(tree, errors, alpha=0.2, beta=-0.02)
    case = f"{'x'.join(map(str, extent))}, {kind}, {len(errors)} blocks"
    solving = best_seconds(lambda: solve(moves, 1))
    allocating = best_seconds(lambda: allocate(tree, errors, len(errors) + 1))
    yield Measurement(case, "solve", 1e3 * solving, "ms")
    yield Measurement(case, "solve and build the tree", 1e3 * allocating, "ms")
    if highs_seconds > 0:
        yield from _compare_with_highs(case, moves, highs_seconds)


def _compare_with_highs(case: str, moves: Moves, seconds: float) -> Iterator[Measurement]:
    """The time of HiGHS, and how much more error its answer removes.

    Relative to what all splits together would remove; NaN if HiGHS found no answer in time.
    """
    start = time.perf_counter()
    choice = solve_by_highs(moves, 1, seconds)
    yield Measurement(case, "HiGHS", time.perf_counter() - start, "s")
    ours, scale = gain(moves, solve(moves, 1)), moves.split_gain.sum()
    more = float("nan") if choice is None else (gain(moves, choice) - ours) / scale
    yield Measurement(case, "HiGHS gains more", more, "relative")
