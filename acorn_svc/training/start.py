"""The tree to start from: the blocks that leave the least of the signal's detail unresolved."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from acorn_svc.field.base import empty_tree
from acorn_svc.field.tree import Tree, morton_encode
from acorn_svc.training.targets import ImageTarget

BISECTIONS = 40

Flags = NDArray[np.bool_]


def initial_tree(target: ImageTarget, cells: int, budget: int) -> Tree:
    """Chooses blocks by the variance inside their cells.

    For a price per leaf, the best pruning of the full tree follows bottom-up (Breiman et al. 1984; Chou,
    Lookabaugh and Gray 1989); bisection finds the price whose pruning fits the budget.

    Args:
        target: the image.
        cells: cells per side of a block.
        budget: most leaves.
    """
    root = empty_tree(target.signal, cells)
    costs = _block_costs(target, root, cells)
    low, high = 0.0, float(costs[0].sum()) + 1.0
    if _count(_splits(costs, low)) <= budget:
        high = low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if _count(_splits(costs, middle)) <= budget else (middle, high)
    return _grow(root, _splits(costs, high))


def _block_costs(target: ImageTarget, root: Tree, cells: int) -> list[NDArray[np.float64]]:
    """Squared error ``[y, x]`` of every possible block, for each level."""
    details = target.detail(root.depth)
    costs = []
    for level in range(root.depth + 1):
        detail = details[root.depth - level]
        for axis in (0, 1):
            detail = np.add.reduceat(detail, np.arange(0, detail.shape[axis], cells), axis=axis)
        costs.append(detail)
    return costs


def _splits(costs: list[NDArray[np.float64]], price: float) -> list[Flags]:
    """Whether each block of each level is better split when every leaf costs ``price``."""
    best = costs[-1] + price
    splits = [np.zeros(best.shape, bool)]
    for cost in reversed(costs[:-1]):
        for axis in (0, 1):
            best = np.add.reduceat(best, np.arange(0, best.shape[axis], 2), axis=axis)
        split = best < cost + price
        best = np.where(split, best, cost + price)
        splits.insert(0, split)
    for upper, lower in pairwise(splits):
        lower &= _present(upper, lower)
    return splits


def _present(upper: Flags, lower: Flags) -> Flags:
    """Which blocks of the lower level exist: the children, inside the extent, of split ones."""
    height, width = lower.shape
    return np.repeat(np.repeat(upper, 2, axis=0), 2, axis=1)[:height, :width]


def _count(splits: list[Flags]) -> int:
    """Leaves of the tree."""
    leaves = 1
    for upper, lower in pairwise(splits):
        present = _present(upper, lower)
        leaves += int(present.sum()) - int(upper.sum())
    return leaves


def _grow(root: Tree, splits: list[Flags]) -> Tree:
    levels = [np.zeros(1, np.uint8)]
    indices = [np.zeros(1, np.uint64)]
    for level, (upper, lower) in enumerate(pairwise(splits), start=1):
        present = _present(upper, lower)
        y, x = np.nonzero(present)
        levels.append(np.full(len(x), level, np.uint8))
        indices.append(morton_encode(np.stack([x, y], axis=1).astype(np.int64)))
    return Tree.from_nodes(root.depth, root.extent, np.concatenate(levels), np.concatenate(indices))
