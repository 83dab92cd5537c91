"""Laws of the allocation: optimal, within budget, monotone, deterministic."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from acorn_svc.field.allocation import KEEP, MERGE, SPLIT, Moves, allocate, predict, solve
from acorn_svc.field.tree import Tree

EXTENTS = [(64, 64), (41, 27), (16, 16, 16), (11, 7, 13)]
DISTRIBUTIONS = ["uniform", "lognormal", "equal", "ties", "huge range", "zero"]


def grow(extent: tuple[int, ...], leaves: int, rng: np.random.Generator) -> Tree:
    """A random tree of at least so many leaves."""
    tree = Tree.root(int(np.ceil(np.log2(max(extent)))), extent)
    while (count := len(tree.leaf_rows)) < leaves:
        rows = tree.leaf_rows[tree.levels[tree.leaf_rows] < tree.depth]
        picked = rng.choice(rows, min(len(rows), 1 + (leaves - count) // 8), replace=False)
        tree = tree.split(np.sort(picked))
    return tree


def draw_errors(distribution: str, count: int, rng: np.random.Generator) -> np.ndarray:
    return {
        "uniform": rng.random(count),
        "lognormal": np.exp(3 * rng.normal(size=count)),
        "equal": np.ones(count),
        "ties": rng.integers(0, 3, count).astype(float),
        "huge range": 10 ** rng.uniform(-12, 12, count),
        "zero": np.zeros(count),
    }[distribution]


def outcome(moves: Moves, choice: np.ndarray) -> tuple[int, float]:
    """Leaves added and error removed by a choice; fails if it is not allowed."""
    assert choice.dtype == np.int8
    assert set(np.unique(choice)) <= {MERGE, KEEP, SPLIT}
    assert (moves.split_weight[choice == SPLIT] >= 0).all()
    merged = np.unique(moves.group[choice == MERGE])
    in_merged_group = np.isin(moves.group, merged)
    assert (merged >= 0).all()
    assert np.array_equal(in_merged_group, choice == MERGE)
    weight = moves.split_weight[choice == SPLIT].sum() - in_merged_group.sum() + len(merged)
    gain = moves.split_gain[choice == SPLIT].sum() - moves.merge_loss[in_merged_group].sum()
    return int(weight), float(gain)


def units(moves: Moves) -> Iterator[np.ndarray]:
    """The leaves of every group, and every leaf outside groups on its own."""
    yield from (np.flatnonzero(moves.group == group) for group in set(moves.group) - {-1})
    yield from np.flatnonzero(moves.group == -1)[:, None]


def enumerate_unit(moves: Moves, unit: np.ndarray) -> Iterator[tuple[int, float]]:
    """(leaves added, error removed) of all that may be done with one unit."""
    if moves.group[unit[0]] >= 0:
        yield 1 - len(unit), -float(moves.merge_loss[unit].sum())
    for chosen in product([False, True], repeat=len(unit)):
        split = unit[np.array(chosen)]
        if (moves.split_weight[split] >= 0).all():
            yield int(moves.split_weight[split].sum()), float(moves.split_gain[split].sum())


def best_gain_by_table(moves: Moves, capacity: int) -> float:
    """The textbook dynamic program over the total weight; -inf if the capacity is out of reach."""
    table = {0: 0.0}
    for unit in units(moves):
        best: dict[int, float] = {}
        for weight, gain in enumerate_unit(moves, unit):
            best[weight] = max(gain, best.get(weight, -np.inf))
        grown: dict[int, float] = {}
        for total, so_far in table.items():
            for weight, gain in best.items():
                key = total + weight
                grown[key] = max(so_far + gain, grown.get(key, -np.inf))
        table = grown
    return max((gain for weight, gain in table.items() if weight <= capacity), default=-np.inf)


def best_gain_by_enumeration(moves: Moves, capacity: int) -> float:
    """All combinations of all units."""
    options = [list(enumerate_unit(moves, unit)) for unit in units(moves)]
    totals = (tuple(map(sum, zip(*combination, strict=True))) for combination in product(*options))
    return max((gain for weight, gain in totals if weight <= capacity), default=-np.inf)


def best_gain_by_milp(moves: Moves, capacity: int) -> float:
    """The integer program: a merge per group, a split per leaf, not both on one leaf."""
    groups, group = np.unique(moves.group[moves.group >= 0], return_inverse=True)
    member = np.flatnonzero(moves.group >= 0)
    leaves, count = len(moves.group), len(groups)
    loss = np.bincount(group, weights=moves.merge_loss[member], minlength=count)
    cost = np.concatenate([-moves.split_gain, loss])
    weight = np.concatenate([moves.split_weight, 1.0 - np.bincount(group, minlength=count)])
    row = np.concatenate([np.zeros(leaves + count, int), 1 + member, 1 + member])
    column = np.concatenate([np.arange(leaves + count), member, leaves + group])
    value = np.concatenate([weight, np.ones(2 * len(member))])
    limit = np.concatenate([[capacity], np.ones(leaves)])
    upper = np.concatenate([moves.split_weight >= 0, np.ones(count)])
    result = milp(
        # HiGHS works to absolute tolerances: costs of order one.
        cost / max(np.abs(cost).max(), 1e-300),
        integrality=np.ones(leaves + count, dtype=np.int64),
        bounds=Bounds(0, upper),
        constraints=LinearConstraint(
            coo_array((value, (row, column)), (1 + leaves, leaves + count)).tocsr(), -np.inf, limit
        ),
        options={"mip_rel_gap": 0},
    )
    assert result.status == 0
    return -float(cost @ np.round(result.x))


def assert_optimal(moves: Moves, capacity: int, expected: float, relative: float = 1e-12) -> None:
    weight, gain = outcome(moves, solve(moves, capacity))
    assert weight <= capacity
    scale = moves.split_gain.sum() + moves.merge_loss.sum()
    assert abs(gain - expected) <= relative * scale


def lightest(moves: Moves) -> int:
    """Leaves added when everything that can be merged is merged."""
    member = moves.group[moves.group >= 0]
    return len(np.unique(member)) - len(member)


@st.composite
def random_moves(draw: st.DrawFn, max_units: int, max_size: int, max_weight: int) -> Moves:
    gains = draw(
        st.sampled_from(
            [
                st.integers(0, 3).map(float),
                st.sampled_from([0.0, 1.0]),
                st.floats(0, 1, allow_subnormal=False),
                st.floats(-12, 12).map(lambda exponent: 10**exponent),
            ]
        )
    )
    weights = draw(st.sampled_from([st.integers(-1, max_weight), st.just(max_weight)]))
    sizes = draw(st.lists(st.integers(0, max_size), min_size=1, max_size=max_units))
    group = [number if size else -1 for number, size in enumerate(sizes) for _ in range(size or 1)]
    leaf = st.tuples(gains, gains, weights)
    leaves = draw(st.lists(leaf, min_size=len(group), max_size=len(group)))
    loss, gain, weight = zip(*leaves, strict=True)
    order = draw(st.permutations(range(len(group))))
    return Moves(
        group=np.array(group)[order],
        merge_loss=np.array(loss),
        split_gain=np.array(gain),
        split_weight=np.array(weight),
    )


@settings(max_examples=150, deadline=None)
@given(random_moves(max_units=3, max_size=4, max_weight=3), st.integers(-12, 20))
def test_equals_enumeration(moves: Moves, capacity: int) -> None:
    capacity = max(capacity, lightest(moves))
    assert_optimal(moves, capacity, best_gain_by_enumeration(moves, capacity))


@settings(max_examples=150, deadline=None)
@given(random_moves(max_units=12, max_size=4, max_weight=3), st.integers(-20, 60))
def test_equals_textbook_dynamic_program_in_2d(moves: Moves, capacity: int) -> None:
    capacity = max(capacity, lightest(moves))
    assert_optimal(moves, capacity, best_gain_by_table(moves, capacity))


@settings(max_examples=60, deadline=None)
@given(random_moves(max_units=8, max_size=8, max_weight=7), st.integers(-40, 150))
def test_equals_textbook_dynamic_program_in_3d(moves: Moves, capacity: int) -> None:
    capacity = max(capacity, lightest(moves))
    assert_optimal(moves, capacity, best_gain_by_table(moves, capacity))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("extent", EXTENTS, ids=str)
def test_equals_textbook_dynamic_program_on_trees(extent: tuple[int, ...], distribution: str) -> None:
    rng = np.random.default_rng(7)
    tree = grow(extent, 160, rng)
    moves = predict(tree, draw_errors(distribution, len(tree.leaf_rows), rng), alpha=0.2, beta=-0.02)
    for capacity in (0, 1, 5, 50, -20):
        assert_optimal(moves, capacity, best_gain_by_table(moves, capacity))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("extent", EXTENTS, ids=str)
def test_equals_milp(extent: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree = grow(extent, 120, rng)
    errors = 1e-9 * draw_errors(["uniform", "lognormal", "ties"][seed], len(tree.leaf_rows), rng)
    moves = predict(tree, errors, alpha=0.2, beta=-0.02)
    for capacity in (0, 20, -15):
        assert_optimal(moves, capacity, best_gain_by_milp(moves, capacity))


@settings(max_examples=60, deadline=None)
@given(random_moves(max_units=20, max_size=8, max_weight=7), st.integers(-40, 60))
def test_more_capacity_never_gains_less(moves: Moves, capacity: int) -> None:
    capacity = max(capacity, lightest(moves))
    gains = [outcome(moves, solve(moves, capacity + extra))[1] for extra in range(8)]
    rounding = 1e-12 * (moves.split_gain.sum() + moves.merge_loss.sum())
    assert (np.diff(gains) >= -rounding).all()


@settings(max_examples=60, deadline=None)
@given(random_moves(max_units=20, max_size=8, max_weight=7), st.integers(-40, 60), st.integers(-40, 40))
def test_deterministic_and_free_of_scale(moves: Moves, capacity: int, exponent: int) -> None:
    """A power of two changes no rounding, hence no choice."""
    scale = 2.0**exponent
    scaled = Moves(moves.group, scale * moves.merge_loss, scale * moves.split_gain, moves.split_weight)
    choice = solve(moves, capacity)
    assert np.array_equal(choice, solve(moves, capacity))
    assert np.array_equal(choice, solve(scaled, capacity))


@settings(max_examples=60, deadline=None)
@given(random_moves(max_units=10, max_size=8, max_weight=7), st.integers(1, 50))
def test_merges_all_it_can_when_the_budget_is_out_of_reach(moves: Moves, beyond: int) -> None:
    weight, _ = outcome(moves, solve(moves, lightest(moves) - beyond))
    assert weight == lightest(moves)


def test_no_leaves() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert len(solve(Moves(none, none.astype(float), none.astype(float), none), 5)) == 0


@pytest.mark.parametrize("distribution", ["uniform", "equal", "lognormal"])
@pytest.mark.parametrize("extent", EXTENTS, ids=str)
def test_tree_stays_valid_within_the_budget_and_uses_it(extent: tuple[int, ...], distribution: str) -> None:
    rng = np.random.default_rng(3)
    tree = grow(extent, 150, rng)
    for budget in (160, 161, 162, 150, 140):
        errors = draw_errors(distribution, len(tree.leaf_rows), rng)
        tree = allocate(tree, errors, budget)
        tree.validate()
        # Enough leaves can be split here that only less than one whole split remains.
        assert 0 <= budget - len(tree.leaf_rows) < 2 ** len(extent) - 1


def test_error_concentrates_the_leaves_where_it_is() -> None:
    tree = Tree.uniform(6, (64, 64), 3)
    for _ in range(3):
        corner = (tree.coordinates[tree.leaf_rows] == 0).all(axis=1)
        tree = allocate(tree, np.where(corner, 1.0, 1e-3), 64)
    corner = (tree.coordinates[tree.leaf_rows] == 0).all(axis=1)
    assert tree.levels[tree.leaf_rows][corner] == 6
    assert len(tree.leaf_rows) <= 64


def test_predicted_errors_count_the_volumes() -> None:
    """Block means x: a merge predicts (2^d + alpha) x for the parent's volume when the children's
    sum is 2^d x, a split (2^-d + beta) x for each of 2^d children."""
    tree = Tree.uniform(4, (16, 16, 16), 1)
    moves = predict(tree, np.full(8, 5.0), alpha=0.2, beta=-0.02)
    np.testing.assert_allclose(moves.merge_loss.sum(), 8 * 5.0 / 8 * 0.2)
    np.testing.assert_allclose(moves.split_gain, 5.0 * 8 * 0.02)
    assert (moves.split_weight == 7).all()
    assert (moves.group == 0).all()


def test_predicted_error_is_never_negative() -> None:
    moves = predict(Tree.root(3, (8, 8, 8)), np.array([3.0]), alpha=0.2, beta=-1.0)
    assert moves.split_gain[0] == 3.0


def test_blocks_on_the_border_weigh_their_inside_children() -> None:
    """A 3 x 2 extent at depth 2: the root has children (0, 0) and (1, 0), with 4 and 2 inside."""
    tree = Tree.uniform(2, (3, 2), 1)
    moves = predict(tree, np.array([1.0, 1.0]), alpha=0.2, beta=-0.02)
    assert moves.split_weight.tolist() == [3, 1]
    assert len(allocate(tree, np.array([1.0, 1.0]), 3).leaf_rows) == 3
    assert len(allocate(tree, np.array([1.0, 1.0]), 6).leaf_rows) == 6
    assert len(allocate(tree, np.array([1.0, 1.0]), 1).leaf_rows) == 1


def test_leaves_at_the_deepest_level_are_not_split() -> None:
    tree = Tree.uniform(2, (4, 4), 2)
    assert len(allocate(tree, np.ones(16), 100).leaf_rows) == 16


def test_leaves_beside_a_split_sibling_are_not_merged() -> None:
    tree = Tree.uniform(3, (8, 8), 1)
    tree = tree.split(tree.leaf_rows[:1])
    assert len(allocate(tree, np.ones(7), 1).leaf_rows) == 4


@pytest.mark.parametrize(
    ("errors", "budget", "alpha", "beta", "message"),
    [
        (np.ones(3), 4, 0.2, -0.02, "shape"),
        (np.array([1, 1, 1, -1.0]), 4, 0.2, -0.02, "not negative"),
        (np.array([1, 1, 1, np.nan]), 4, 0.2, -0.02, "finite"),
        (np.array([1, 1, 1, np.inf]), 4, 0.2, -0.02, "finite"),
        (np.ones(4), 0, 0.2, -0.02, "budget"),
        (np.ones(4), 4, -0.2, -0.02, "alpha"),
        (np.ones(4), 4, 0.2, 0.02, "beta"),
    ],
)
def test_refuses_what_makes_no_sense(
    errors: np.ndarray, budget: int, alpha: float, beta: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(Tree.uniform(2, (4, 4), 1), errors, budget, alpha=alpha, beta=beta)
