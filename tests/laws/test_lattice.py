"""Laws of the shared vertices, against their definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import grow, random_tree, trees

from acorn_svc.field.lattice import ZERO_ROW, Lattice, owned_counts
from acorn_svc.field.tree import Tree

LAWS = settings(deadline=None, max_examples=25)
SMALL_TREES = trees(splits=8)

Vertex = tuple[int, ...]


def vertices_by_definition(tree: Tree, cells: int) -> dict[Vertex, tuple[int, Vertex]]:
    """``(level, position)`` of all vertices that exist, with their owner and the place in it."""
    present = {
        (int(level), *map(int, place)): row
        for row, (level, place) in enumerate(zip(tree.levels, tree.coordinates, strict=True))
    }
    result = {}
    for level in range(tree.depth + 1):
        side = 1 << (tree.depth - level)
        counts = [-(-length // side) for length in tree.extent]
        for position in itertools.product(*(range(count * cells + 1) for count in counts)):
            touching = itertools.product(
                *(
                    [b for b in range(count) if b * cells <= p <= (b + 1) * cells]
                    for p, count in zip(position, counts, strict=True)
                )
            )
            if all((level, *block) in present for block in touching):
                owner = tuple(min(p // cells, count - 1) for p, count in zip(position, counts, strict=True))
                local = tuple(p - b * cells for p, b in zip(position, owner, strict=True))
                result[level, *position] = present[level, *owner], local[::-1]
    return result


def numbered(tree: Tree, cells: int) -> dict[Vertex, int]:
    """Rows of the vertices by definition: sorted by owner, then ``(z,) y, x``."""
    order = sorted(vertices_by_definition(tree, cells).items(), key=lambda item: item[1])
    return {vertex: row for row, (vertex, _) in enumerate(order, start=1)}


@LAWS
@given(SMALL_TREES, st.sampled_from((2, 4)))
def test_the_table_names_each_vertex_of_each_block(tree, cells):
    lattice, rows = Lattice.build(tree, cells), numbered(tree, cells)
    assert lattice.table.shape == (len(tree) + 1, (cells + 1) ** tree.dimension)
    assert (lattice.table[-1] == ZERO_ROW).all()
    for node in range(len(tree)):
        start = tree.coordinates[node] * cells
        expected = [
            rows.get((int(tree.levels[node]), *map(int, start + np.array(local[::-1]))), ZERO_ROW)
            for local in itertools.product(range(cells + 1), repeat=tree.dimension)
        ]
        assert lattice.table[node].tolist() == expected


@LAWS
@given(SMALL_TREES, st.sampled_from((2, 4)))
def test_every_vertex_has_the_owner_on_its_high_side(tree, cells):
    lattice = Lattice.build(tree, cells)
    owners = [owner for owner, _ in vertices_by_definition(tree, cells).values()]
    assert np.array_equal(np.diff(lattice.offsets), np.bincount(owners, minlength=len(tree)))
    assert lattice.offsets[0] == 0
    assert lattice.vertices == len(owners)


@LAWS
@given(SMALL_TREES, st.integers(0, 6), st.integers(0, 2**32), st.sampled_from((2, 4)))
def test_what_two_lattices_share_is_carried_over(tree, splits, seed, cells):
    rng = np.random.default_rng(seed)
    other = grow(Tree.root(tree.depth, tree.extent), splits, rng)
    here, there = Lattice.build(tree, cells).carry_over(Lattice.build(other, cells))
    mine, theirs = numbered(tree, cells), numbered(other, cells)
    shared = {(mine[vertex], theirs[vertex]) for vertex in mine.keys() & theirs.keys()}
    assert set(zip(here.tolist(), there.tolist(), strict=True)) == shared


def test_a_deep_lattice_carries_over_to_itself():
    tree = Tree.root(20, (1 << 20, 1 << 20))
    for _ in range(3):
        tree = tree.split(tree.leaf_rows[-1:])
    lattice = Lattice.build(tree, 16)
    here, there = lattice.carry_over(lattice)
    assert np.array_equal(here, there)
    assert np.array_equal(np.unique(here), np.arange(1, lattice.vertices + 1))


@pytest.mark.parametrize("extent", [(1, 1), (5, 3), (3, 2, 4)])
def test_a_uniform_level_has_a_full_lattice(extent):
    tree = random_tree(extent, splits=1000)
    lattice = Lattice.build(tree, 2)
    finest = lattice.offsets[-1] - lattice.offsets[np.searchsorted(tree.levels, tree.depth)]
    assert finest == np.prod([2 * length + 1 for length in extent])


@LAWS
@given(SMALL_TREES, st.sampled_from((2, 4, 8)))
def test_vertices_of_each_block_can_be_counted_without_a_lattice(tree: Tree, cells: int) -> None:
    assert np.array_equal(owned_counts(tree, cells), np.diff(Lattice.build(tree, cells).offsets))
