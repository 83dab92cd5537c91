"""Exact re-allocation of a budget of blocks: which leaves to split, which siblings to merge.

In one re-allocation every leaf is kept or split once, and every group of siblings that are all
leaves may be merged into its parent. A split gains error and costs leaves, a merge the other way
round; the task is the least predicted error with at most `budget` leaves. ACORN (Martel et al.,
SIGGRAPH 2021) solves this with a general integer program. It is a multiple-choice knapsack with
small weights, and is solved here exactly in three steps:

1. per sibling group the best gain of every total weight (a tiny dynamic program, because blocks
   on the border of the extent have fewer children), and the upper convex hull of these options;
2. one sort of all hull steps by gain per leaf, taken greedily: the optimum of the Lagrangian
   relaxation, with a bound on what is still missing;
3. if leaves are left over, a dynamic program over the few options whose reduced cost is below that
   bound (the "core" of Pisinger, "A minimal algorithm for the multiple-choice knapsack problem",
   EJOR 1995) closes the gap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from acorn_svc.field.tree import Tree

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MERGE, KEEP, SPLIT = -1, 0, 1


@dataclass(frozen=True)
class Moves:
    """What each of L leaves may do, and what that is predicted to change.

    group         int64 [L]    sibling group; -1 where the leaf's siblings are not all leaves.
                               All leaves of a group are merged together, into one leaf.
    merge_loss    float64 [L]  >= 0, error added when the leaf's group is merged (summed over it)
    split_gain    float64 [L]  >= 0, error removed when the leaf is split
    split_weight  int64 [L]    >= 0, leaves added when the leaf is split; -1 where it cannot be
    """

    group: Integers
    merge_loss: Floats
    split_gain: Floats
    split_weight: Integers


@dataclass(frozen=True)
class _Options:
    """All useful options of all units (a sibling group or a single leaf), those of one unit
    adjacent and in increasing order of both weight and gain. Leaves are named by their slot.
    """

    unit: Integers
    weight: Integers
    gain: Floats
    split_slots: NDArray[np.uint8]


@dataclass(frozen=True)
class _Core:
    """Deviations from a base solution: `weight` more leaves for `cost` >= 0, price included."""

    unit: Integers
    weight: Integers
    cost: Floats
    option: Integers

    def take(self, rows: NDArray[np.bool_] | Integers) -> _Core:
        return _Core(self.unit[rows], self.weight[rows], self.cost[rows], self.option[rows])


def allocate(tree: Tree, errors: Floats, budget: int, *, alpha: float = 0.2, beta: float = -0.02) -> Tree:
    """The tree after the best single round of splits and merges within `budget` leaves.

    errors: float [leaves], finite and >= 0, in the order of `tree.leaf_rows`: each leaf's sum (not
    mean) of squared errors over its part of the extent. A merge is predicted to leave
    (1 + alpha / 2^d) times the sum of the group's errors, a split (1 + 2^d * beta) times the
    leaf's, at least zero: ACORN's (2^d + alpha) and (2^-d + beta) per block, with the volumes of
    parent and children taken into account. alpha >= 0, beta <= 0.

    Moves that promise no gain are not made: of equally good trees a smaller one results. If one
    round of merges cannot reach the budget, the result has as few leaves as one round can reach.
    Raises ValueError for errors of wrong length, negative or not finite, for a budget below 1 and
    for alpha or beta of the wrong sign.
    """
    errors = np.asarray(errors, dtype=np.float64)
    _check(tree, errors, budget, alpha, beta)
    leaves = tree.leaf_rows
    choice = solve(predict(tree, errors, alpha=alpha, beta=beta), budget - len(leaves))
    merged = np.unique(tree.parents[leaves[choice == MERGE]])
    return tree.refine(leaves[choice == SPLIT], merged)


def predict(tree: Tree, errors: Floats, *, alpha: float, beta: float) -> Moves:
    """The moves open to each leaf of the tree, with the changes of error `allocate` describes."""
    leaves, arity = tree.leaf_rows, 2**tree.dimension
    can_split = tree.levels[leaves] < tree.depth
    split_weight = np.full(len(leaves), -1, dtype=np.int64)
    split_weight[can_split] = tree.inside_children(leaves[can_split]) - 1
    return Moves(
        group=_sibling_groups(tree),
        merge_loss=errors * (alpha / arity),
        split_gain=errors * min(1.0, -beta * arity),
        split_weight=split_weight,
    )


def solve(moves: Moves, capacity: int) -> NDArray[np.int8]:
    """Per leaf -1 (merge its group), 0 (keep) or +1 (split), of the greatest total gain.

    At most `capacity` leaves are added (at least -capacity taken away, if negative). If that is out
    of reach, every mergeable group is merged. Exact up to the rounding of float64 sums;
    deterministic. Result int8 [L].
    """
    if not len(moves.group):
        return np.zeros(0, dtype=np.int8)
    unit, slot = _units(moves)
    options = _list_options(moves, unit, slot)
    return _apply(options, _best_options(options, capacity), unit, slot)


def _check(tree: Tree, errors: Floats, budget: int, alpha: float, beta: float) -> None:
    if errors.shape != (len(tree.leaf_rows),):
        raise ValueError(f"{len(tree.leaf_rows)} leaves, but errors of shape {errors.shape}")
    if not (np.isfinite(errors).all() and (errors >= 0).all()):
        raise ValueError("errors must be finite and not negative")
    if budget < 1:
        raise ValueError("the budget must be at least 1")
    if not (alpha >= 0 and beta <= 0):
        raise ValueError("alpha must not be negative and beta not positive")


def _sibling_groups(tree: Tree) -> Integers:
    """The parent's row where all its children inside the extent are leaves, else -1."""
    parents = tree.parents[tree.leaf_rows]
    leaf_children = np.bincount(parents[parents >= 0], minlength=len(tree.levels))
    all_children = (tree.children >= 0).sum(axis=1)
    complete = (parents >= 0) & (leaf_children == all_children)[parents]
    return np.where(complete, parents, -1)


def _units(moves: Moves) -> tuple[Integers, Integers]:
    """Per leaf the number of its unit and its rank among the unit's leaves that can be split."""
    count = len(moves.group)
    alone = moves.group.max() + 1 + np.arange(count)
    _, unit = np.unique(np.where(moves.group >= 0, moves.group, alone), return_inverse=True)
    slot = np.full(count, -1, dtype=np.int64)
    can_split = np.flatnonzero(moves.split_weight >= 0)
    can_split = can_split[np.argsort(unit[can_split], kind="stable")]
    slot[can_split] = _rank_in_run(unit[can_split])
    return unit, slot


def _rank_in_run(values: Integers) -> Integers:
    """0, 1, 2, ... within every run of equal values."""
    position = np.arange(len(values))
    is_start = np.diff(values, prepend=values[:1] - 1) != 0
    return position - np.maximum.accumulate(np.where(is_start, position, 0))


def _list_options(moves: Moves, unit: Integers, slot: Integers) -> _Options:
    size = np.bincount(unit)
    can_merge = np.bincount(unit, weights=moves.group >= 0) > 1
    merge_gain = np.where(can_merge, -np.bincount(unit, weights=moves.merge_loss), -np.inf)
    can_split = slot >= 0
    slots = np.bincount(unit[can_split], minlength=len(size))
    members = np.full((len(size), slots.max(initial=0)), -1, dtype=np.int64)
    members[unit[can_split], slot[can_split]] = np.flatnonzero(can_split)
    parts = []
    for count in np.unique(slots):
        units = np.flatnonzero(slots == count)
        leaves = members[units, :count]
        gain, chosen = _best_subsets(moves.split_gain[leaves], moves.split_weight[leaves])
        parts.append(_useful(units, 1 - size[units], merge_gain[units], gain, chosen))
    return _concatenate(parts)


def _best_subsets(gain: Floats, weight: Integers) -> tuple[Floats, NDArray[np.uint8]]:
    """For U units of m leaves each ([U, m]) the greatest gain [U, W] of splits that add exactly
    0, 1, ..., W - 1 leaves (-inf where none does), and the split leaves as bits.
    """
    columns = np.arange(weight.sum(axis=1).max(initial=0) + 1)
    best = np.where(columns == 0, 0.0, np.full((len(gain), 1), -np.inf))
    chosen = np.zeros(best.shape, dtype=np.uint8)
    for member in range(gain.shape[1]):
        source = columns - weight[:, member, None]
        reached = np.take_along_axis(best, np.maximum(source, 0), axis=1) + gain[:, member, None]
        better = (source >= 0) & (reached > best)
        before = np.take_along_axis(chosen, np.maximum(source, 0), axis=1)
        best = np.where(better, reached, best)
        chosen = np.where(better, before | np.uint8(1 << member), chosen)
    return best, chosen


def _useful(
    units: Integers,
    merge_weight: Integers,
    merge_gain: Floats,
    gain: Floats,
    chosen: NDArray[np.uint8],
) -> _Options:
    """The options that gain more than every option of less weight: merge, then 0, 1, 2, ..."""
    gain = np.column_stack([merge_gain, gain])
    weight = np.tile(np.arange(-1, gain.shape[1] - 1), (len(units), 1))
    weight[:, 0] = merge_weight
    best_before = np.maximum.accumulate(gain, axis=1)[:, :-1]
    useful = np.column_stack([np.isfinite(merge_gain), gain[:, 1:] > best_before])
    chosen = np.pad(chosen, ((0, 0), (1, 0)))
    unit = np.broadcast_to(units[:, None], gain.shape)
    return _Options(unit[useful], weight[useful], gain[useful], chosen[useful])


def _concatenate(parts: list[_Options]) -> _Options:
    return _Options(
        unit=np.concatenate([part.unit for part in parts]),
        weight=np.concatenate([part.weight for part in parts]),
        gain=np.concatenate([part.gain for part in parts]),
        split_slots=np.concatenate([part.split_slots for part in parts]),
    )


def _apply(options: _Options, chosen: Integers, unit: Integers, slot: Integers) -> NDArray[np.int8]:
    """The choice per leaf from the chosen option per unit."""
    merged = options.weight[chosen] < 0
    split = (slot >= 0) & (options.split_slots[chosen][unit] >> np.maximum(slot, 0) & 1 > 0)
    return np.where(merged[unit], MERGE, np.where(split, SPLIT, KEEP)).astype(np.int8)


def _best_options(options: _Options, capacity: int) -> Integers:
    """The row of the best option of every unit."""
    base, price, spare = _greedy(options, capacity)
    if price > 0 and spare > 0:
        base = base.copy()
        core = _core(options, base, price, spare)
        rows = _search(*_thin_out(core, price, spare))
        base[options.unit[rows]] = rows
    return base


def _greedy(options: _Options, capacity: int) -> tuple[Integers, float, int]:
    """The chosen rows, the gain per leaf of the first hull step that no longer fits (0 if all do,
    or if not even the lightest options fit), and the leaves that remain.
    """
    source, target, slope = _hull_steps(options)
    order = np.argsort(-slope, kind="stable")
    first = np.flatnonzero(np.diff(options.unit, prepend=-1))
    base = np.empty(len(first), dtype=np.int64)
    base[options.unit[first]] = first
    spare = capacity - int(options.weight[first].sum())
    used = np.cumsum((options.weight[target] - options.weight[source])[order])
    taken = int(np.searchsorted(used, spare, side="right"))
    if taken:
        np.maximum.at(base, options.unit[target[order[:taken]]], target[order[:taken]])
        spare -= int(used[taken - 1])
    price = float(slope[order[taken]]) if taken < len(order) else 0.0
    return base, price, spare


def _hull_steps(options: _Options) -> tuple[Integers, Integers, Floats]:
    """Steps (from row, to row, gain per leaf) along every unit's upper convex hull."""
    rows = np.arange(len(options.unit))
    while True:
        same = np.diff(options.unit[rows]) == 0
        slope = np.diff(options.gain[rows]) / np.where(same, np.diff(options.weight[rows]), 1)
        below = same[:-1] & same[1:] & (slope[:-1] <= slope[1:])
        if not below.any():
            return rows[:-1][same], rows[1:][same], slope[same]
        rows = np.delete(rows, np.flatnonzero(below) + 1)


def _core(options: _Options, base: Integers, price: float, spare: int) -> _Core:
    """All deviations from the base that could belong to a better solution: of less reduced cost
    than the base loses by leaving `spare` leaves unused.
    """
    origin = base[options.unit]
    weight = options.weight - options.weight[origin]
    # Rounding can make a reduced cost negative; the search relies on its sign.
    cost = np.maximum(options.gain[origin] - options.gain + price * weight, 0.0)
    rows = np.flatnonzero((weight != 0) & (cost < price * spare))
    return _Core(options.unit[rows], weight[rows], cost[rows], rows)


def _thin_out(core: _Core, price: float, spare: int) -> tuple[_Core, float, int]:
    """The same task with weights in units of their common divisor, and of each weight only as many
    deviations as an optimum can need.

    Some optimum has no deviations (or unused leaves, of weight 1) that together weigh nothing:
    undoing them is free. Ordered so that running totals stay above -lightest and up to heaviest,
    no total occurs twice, so it has fewer than heaviest + lightest members. As they balance up to
    `spare`, all that take leaves away weigh less than lightest * heaviest.
    """
    divisor = max(int(np.gcd.reduce(core.weight)), 1)
    price, spare = price * divisor, spare // divisor
    core = replace(core, weight=core.weight // divisor)
    core = core.take(core.cost < price * spare)
    lightest, heaviest = _weight_range(core)
    order = np.lexsort((core.unit, core.cost, core.weight))
    size = np.abs(core.weight[order])
    most = np.minimum(lightest + heaviest - 1, (lightest * heaviest + spare) // size)
    return core.take(order[_rank_in_run(core.weight[order]) < most]), price, spare


def _weight_range(core: _Core) -> tuple[int, int]:
    """The most leaves that one deviation takes away, and the most that one adds."""
    return -int(core.weight.min(initial=0)), int(core.weight.max(initial=0))


def _search(core: _Core, price: float, spare: int) -> Integers:
    """The option rows of the cheapest set of deviations, at most one per unit, that uses no more
    than `spare` leaves, each leaf left unused at `price`.

    Dynamic programming over total weight, units with the cheapest deviations first; it ends as
    soon as one more deviation costs more than the best set found. By the argument in `_thin_out`
    an optimum takes away less than lightest * heaviest leaves and adds as many and `spare`.
    """
    lightest, heaviest = _weight_range(core)
    origin = lightest * heaviest
    weights = np.arange(-origin, origin + spare + 1)
    unused = np.where(weights <= spare, price * (spare - weights), np.inf)
    cost = np.where(weights == 0, 0.0, np.inf)
    best_cost, best_state, best_depth = price * spare, origin, 0
    choices: list[Integers] = []
    for rows in _cheapest_first(core):
        cost[cost + core.cost[rows].min() >= best_cost] = np.inf
        if np.isinf(cost).all():
            break
        cost, choice = _extend(cost, core, rows)
        choices.append(choice)
        state = int(np.argmin(cost + unused))
        if cost[state] + unused[state] < best_cost:
            best_cost, best_state, best_depth = cost[state] + unused[state], state, len(choices)
    return core.option[_trace(choices[:best_depth], core, best_state)]


def _cheapest_first(core: _Core) -> list[Integers]:
    """The rows of each unit, units in order of their cheapest deviation."""
    if not len(core.unit):
        return []
    _, unit = np.unique(core.unit, return_inverse=True)
    cheapest = np.full(unit.max() + 1, np.inf)
    np.minimum.at(cheapest, unit, core.cost)
    order = np.lexsort((unit, cheapest[unit]))
    return np.split(order, np.flatnonzero(np.diff(unit[order])) + 1)


def _extend(cost: Floats, core: _Core, rows: Integers) -> tuple[Floats, Integers]:
    """The least cost per total weight once a unit's deviations are allowed, and which of them
    (a core row, -1 for none) each total weight then uses.
    """
    extended = cost.copy()
    choice = np.full(len(cost), -1, dtype=np.int64)
    for row in rows:
        weight = int(core.weight[row])
        source = slice(max(-weight, 0), len(cost) - max(weight, 0))
        target = slice(max(weight, 0), len(cost) - max(-weight, 0))
        reached = cost[source] + core.cost[row]
        better = reached < extended[target]
        extended[target][better] = reached[better]
        choice[target][better] = row
    return extended, choice


def _trace(choices: list[Integers], core: _Core, state: int) -> Integers:
    """The core rows that led to the state."""
    rows = []
    for choice in reversed(choices):
        row = int(choice[state])
        if row >= 0:
            rows.append(row)
            state -= int(core.weight[row])
    return np.array(rows, dtype=np.int64)
