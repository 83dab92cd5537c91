"""Laws of the dyadic tree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_fields import random_tree, trees

from acorn_svc.field.tree import ABSENT, MAX_DEPTH, Tree, morton_decode, morton_encode

LAWS = settings(deadline=None, max_examples=25)


def covered(tree: Tree, row: int) -> tuple[slice, ...]:
    """Finest-level blocks under a node, as an index ``[(z,) y, x]``; may reach beyond the extent."""
    side = 1 << (tree.depth - int(tree.levels[row]))
    return tuple(slice(int(c) * side, (int(c) + 1) * side) for c in tree.coordinates[row][::-1])


def node_set(tree: Tree) -> set[tuple[int, ...]]:
    return {
        (int(level), *map(int, place)) for level, place in zip(tree.levels, tree.coordinates, strict=True)
    }


def same(first: Tree, second: Tree) -> bool:
    return np.array_equal(first.levels, second.levels) and np.array_equal(first.indices, second.indices)


@LAWS
@given(trees())
def test_every_grown_tree_is_valid_and_its_leaves_partition_the_extent(tree):
    tree.validate()
    count = np.zeros(tree.extent[::-1], int)
    for row in tree.leaf_rows:
        part = count[covered(tree, row)]
        assert part.size
        part += 1
    assert (count == 1).all()


@LAWS
@given(trees(), st.data())
def test_merge_undoes_split(tree, data):
    rows = tree.leaf_rows[tree.levels[tree.leaf_rows] < tree.depth]
    assume(len(rows))
    chosen = np.array(sorted(data.draw(st.sets(st.sampled_from(rows.tolist()), min_size=1))))
    finer = tree.split(chosen)
    finer.validate()
    assert len(finer) == len(tree) + tree.inside_children(chosen).sum()
    assert same(finer.merge(finer.find(tree.levels[chosen], tree.coordinates[chosen])), tree)


@LAWS
@given(trees(), st.integers(0, 9))
def test_one_bit_a_node_says_the_whole_tree(tree, spare):
    flags = np.concatenate([tree.split_flags, np.zeros(spare, bool)])
    again = Tree.from_split_flags(tree.depth, tree.extent, flags)
    assert same(again, tree)
    assert (again.dimension, again.depth, again.extent) == (tree.dimension, tree.depth, tree.extent)
    assert again.levels.dtype == np.uint8
    assert again.indices.dtype == np.uint64


@LAWS
@given(trees(), st.lists(st.booleans(), min_size=1, max_size=40))
def test_any_bits_are_a_valid_tree_or_refused(tree, bits):
    try:
        made = Tree.from_split_flags(tree.depth, tree.extent, np.array(bits))
    except ValueError:
        return
    made.validate()
    assert made.split_flags.tolist() == bits[: len(made)]
    assert not any(bits[len(made) :])


def test_bits_that_are_no_tree_are_refused():
    for bits, message in [
        ([], "fewer"), ([True], "fewer"), ([True] + [False] * 3, "fewer"), ([False, True], "more"),
        ([True] * 2 + [False] * 7 + [True], "more"),
        ([True] * 2 + [False] * 3 + [True] + [False] * 3, "finest"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Tree.from_split_flags(2, (4, 4), np.array(bits, bool))
    for depth, extent in [(60, (4, 4)), (-1, (1, 1)), (2, (5, 4)), (2, (4, 0))]:
        with pytest.raises(ValueError, match="depth"):
            Tree.from_split_flags(depth, extent, np.zeros(1, bool))


@LAWS
@given(trees())
def test_refine_is_a_merge_and_a_split_at_once(tree):
    splittable = tree.leaf_rows[tree.levels[tree.leaf_rows] < tree.depth]
    grown = tree.split(splittable[-1:])
    mergeable = [
        row for row in np.flatnonzero(~grown.is_leaf)
        if all(child == ABSENT or grown.is_leaf[child] for child in grown.children[row])
    ][:1]  # fmt: skip
    others = np.setdiff1d(
        grown.leaf_rows[grown.levels[grown.leaf_rows] < grown.depth], grown.children[mergeable]
    )
    assume(len(mergeable) and len(others))
    refined = grown.refine(others[:1], np.array(mergeable))
    refined.validate()
    merged = grown.merge(np.array(mergeable))
    assert same(refined, merged.split(merged.find(grown.levels[others[:1]], grown.coordinates[others[:1]])))


@LAWS
@given(trees())
def test_locate_finds_the_leaf_over_every_block_and_clamps(tree):
    answer = np.full(tree.extent[::-1], ABSENT)
    for row in tree.leaf_rows:
        answer[covered(tree, row)] = row
    places = np.stack(np.meshgrid(*(np.arange(-1, side + 1) for side in tree.extent), indexing="ij"), axis=-1)
    places = places.reshape(-1, tree.dimension)
    clamped = np.clip(places, 0, np.array(tree.extent) - 1)
    assert np.array_equal(tree.locate(places), answer[tuple(clamped[:, ::-1].T)])


@LAWS
@given(trees())
def test_parents_children_and_ancestors_agree(tree):
    for row in range(len(tree)):
        parent = tree.parents[row]
        line = [row]
        while tree.parents[line[0]] != ABSENT:
            line.insert(0, int(tree.parents[line[0]]))
        assert tree.ancestors[row].tolist() == line + [ABSENT] * (tree.depth + 1 - len(line))
        if row == 0:
            assert parent == ABSENT
            continue
        assert tree.levels[parent] == tree.levels[row] - 1
        assert np.array_equal(tree.coordinates[parent], tree.coordinates[row] // 2)
        corner = sum(int(bit) << axis for axis, bit in enumerate(tree.coordinates[row] % 2))
        assert tree.children[parent, corner] == row
    assert (tree.children != ABSENT).sum() == len(tree) - 1
    assert np.array_equal(tree.is_leaf, ~np.isin(np.arange(len(tree)), tree.parents))


@LAWS
@given(trees(), st.data())
def test_neighbours_are_the_nodes_that_far_away(tree, data):
    offset = np.array([data.draw(st.integers(-2, 2)) for _ in range(tree.dimension)])
    found = tree.neighbours(np.arange(len(tree)), offset)
    nodes = node_set(tree)
    for row, other in enumerate(found):
        wanted = tree.coordinates[row] + offset
        if other == ABSENT:
            assert (int(tree.levels[row]), *map(int, wanted)) not in nodes
        else:
            assert tree.levels[other] == tree.levels[row]
            assert np.array_equal(tree.coordinates[other], wanted)


@LAWS
@given(trees())
def test_children_inside_the_extent_are_those_that_touch_it(tree):
    rows = np.flatnonzero(tree.levels < tree.depth)
    for row, count in zip(rows, tree.inside_children(rows), strict=True):
        side = 1 << (tree.depth - int(tree.levels[row]) - 1)
        start = tree.child_coordinates(np.array([row]))[0] * side
        assert count == sum(all(c < e for c, e in zip(child, tree.extent, strict=True)) for child in start)


@pytest.mark.parametrize("extent", [(1, 1), (5, 3), (8, 8), (3, 2, 5)])
def test_uniform_trees_have_all_blocks_of_their_level(extent):
    for level in range(5):
        tree = Tree.uniform(3, extent, level)
        tree.validate()
        side = 1 << (3 - min(level, 3))
        assert len(tree.leaf_rows) == np.prod([-(-length // side) for length in extent])
        assert (tree.levels[tree.leaf_rows] == min(level, 3)).all()


@given(st.sampled_from((2, 3)), st.data())
def test_morton_codes_interleave_the_bits(dimension, data):
    limit = (1 << MAX_DEPTH[dimension]) - 1
    place = [data.draw(st.integers(0, limit)) for _ in range(dimension)]
    code = morton_encode(np.array([place]))
    bits = "".join(
        "".join(str((value >> bit) & 1) for value in reversed(place))
        for bit in reversed(range(MAX_DEPTH[dimension]))
    )
    assert int(code[0]) == int(bits, 2)
    assert morton_decode(code, dimension).tolist() == [place]


def test_refine_refuses_what_cannot_be_done():
    tree = random_tree((4, 4), 0).split(np.array([0]))
    deeper = tree.split(tree.leaf_rows[:1])
    nothing = np.empty(0, np.int64)
    for split, merge, message in [
        ([0], [], "only leaves"),
        (deeper.leaf_rows[-1:], [], "finest level"),
        ([], deeper.leaf_rows[:1], "can be merged"),
        ([], [0], "can be merged"),
    ]:
        with pytest.raises(ValueError, match=message):
            deeper.refine(np.array(split, np.int64), np.array(merge, np.int64))
    with pytest.raises(ValueError, match="at once"):
        tree.refine(tree.leaf_rows[:1], np.array([0]))
    assert same(deeper.refine(nothing, nothing), deeper)


BASE = random_tree((5, 3), 0, spare_levels=1).split(np.array([0]))


def without(tree: Tree, row: int) -> Tree:
    return replace(tree, levels=np.delete(tree.levels, row), indices=np.delete(tree.indices, row))


def with_node(tree: Tree, level: int, index: int) -> Tree:
    levels, indices = np.append(tree.levels, level), np.append(tree.indices, index)
    return Tree.from_nodes(tree.depth, tree.extent, levels.astype(np.uint8), indices.astype(np.uint64))


BROKEN = {
    "dimension must": replace(BASE, dimension=4),
    "dimension must be": replace(BASE, extent=(5, 3, 1)),
    "depth must": replace(BASE, depth=25),
    "depth must lie": replace(BASE, depth=-1),
    "does not fit": replace(BASE, extent=(17, 3)),
    "fit a depth": replace(BASE, extent=(5, 0)),
    "at least 1": replace(BASE, levels=BASE.levels[:0], indices=BASE.indices[:0]),
    "one length": replace(BASE, indices=BASE.indices[:-1]),
    "below the finest": with_node(BASE, 5, 0),
    "outside its level": with_node(BASE, 1, 4),
    "sorted": replace(BASE, levels=BASE.levels[::-1], indices=BASE.indices[::-1]),
    "without repeats": with_node(BASE, 1, 0),
    "outside the extent": with_node(BASE, 1, 2),
    "no parent": with_node(BASE, 3, 0),
    "a block has no": without(BASE, 0),
    "lacks a child": with_node(BASE, 2, 0),
}


@pytest.mark.parametrize("message", BROKEN)
def test_validate_names_the_broken_invariant(message):
    BASE.validate()
    with pytest.raises(ValueError, match=message):
        BROKEN[message].validate()
