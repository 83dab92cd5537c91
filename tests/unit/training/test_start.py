from __future__ import annotations

import numpy as np
import pytest

from acorn_svc.field.base import empty_tree
from acorn_svc.field.tree import ABSENT, Tree
from acorn_svc.training.start import initial_tree
from acorn_svc.training.targets import ImageTarget

CELLS = 4


def busy_in_places(height: int, width: int, seed: int) -> ImageTarget:
    rng = np.random.default_rng(seed)
    contrast = rng.choice([0.02, 0.2, 1], (-(-height // 8), -(-width // 8), 1)).repeat(8, 0).repeat(8, 1)
    noise = rng.random((height, width, 3)) * contrast[:height, :width]
    return ImageTarget((noise * 255).astype(np.uint8))


def cost(target: ImageTarget, level: int, place: np.ndarray, depth: int) -> float:
    """Squared error inside a block whose cells hold one value each."""
    stride = 1 << (depth - level)
    values, total = target.values(0).astype(np.float64), 0.0
    for row in range(CELLS):
        for column in range(CELLS):
            y, x = (place[1] * CELLS + row) * stride, (place[0] * CELLS + column) * stride
            cell = values[y : y + stride, x : x + stride]
            total += float(((cell - cell.mean(axis=(0, 1))) ** 2).sum()) if cell.size else 0.0
    return total


def full_tree(target: ImageTarget) -> Tree:
    root = empty_tree(target.signal, CELLS)
    return Tree.uniform(root.depth, root.extent, root.depth)


def least_errors(tree: Tree, costs: list[float], row: int = 0) -> dict[int, float]:
    """Least error below a node for every number of leaves that a pruning can have."""
    children = [int(child) for child in tree.children[row] if child != ABSENT]
    combined = {0: 0.0}
    for child in children:
        below = least_errors(tree, costs, child)
        merged: dict[int, float] = {}
        for count, error in combined.items():
            for more, extra in below.items():
                merged[count + more] = min(merged.get(count + more, np.inf), error + extra)
        combined = merged
    best = combined if children else {}
    best[1] = min(best.get(1, np.inf), costs[row])
    return best


def hull(points: dict[int, float]) -> list[int]:
    """Leaf counts that are best for some price: the corners of the lower convex hull."""
    corners: list[int] = []
    for count in sorted(points):
        if corners and points[count] >= points[corners[-1]] - 1e-9:
            continue
        while len(corners) > 1:
            before, last = corners[-2:]
            slope = (points[count] - points[before]) / (count - before)
            if points[last] < points[before] + slope * (last - before):
                break
            corners.pop()
        corners.append(count)
    return corners


@pytest.mark.parametrize(("height", "width"), [(32, 32), (21, 30), (9, 40), (5, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_pruning_of_some_price_that_the_budget_allows(height, width, seed):
    target = busy_in_places(height, width, seed)
    full = full_tree(target)
    costs = [cost(target, int(level), place, full.depth)
             for level, place in zip(full.levels, full.coordinates, strict=True)]  # fmt: skip
    best = least_errors(full, costs)
    for budget in (1, 2, 4, 7, 13, 30, 1000):
        tree = initial_tree(target, CELLS, budget)
        tree.validate()
        leaves = full.find(tree.levels[tree.leaf_rows].astype(np.int64), tree.coordinates[tree.leaf_rows])
        assert len(leaves) == max(count for count in hull(best) if count <= budget)
        assert sum(costs[leaf] for leaf in leaves) == pytest.approx(best[len(leaves)], rel=1e-4, abs=1e-4)


def test_the_tree_is_complete_where_there_is_detail_and_the_budget_allows():
    target = busy_in_places(27, 40, 0)
    full = full_tree(target)
    tree = initial_tree(target, CELLS, 10_000)
    assert np.array_equal(tree.indices, full.indices)
    assert np.array_equal(tree.levels, full.levels)


def test_a_flat_image_is_one_block():
    target = ImageTarget(np.full((40, 30, 3), 77, np.uint8))
    assert len(initial_tree(target, CELLS, 50)) == 1
