"""Laws of reading, in the plain reference: one definition, several ways in; continuous; differentiable."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import random_features, random_tree, read_by_definition, small_architecture, trees

from acorn_svc.field import encoders
from acorn_svc.field.decoder import initial_decoder
from acorn_svc.field.encoders import VertexFeatures, block_inputs, initial_encoder
from acorn_svc.field.geometry import SLOTS, fold, geometry_of
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.ops import reference
from acorn_svc.field.ops.learning import scale_layers
from acorn_svc.field.tree import Tree

LAWS = settings(deadline=None, max_examples=15)
CELLS = 4


def random_positions(tree: Tree, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(count, tree.dimension, generator=generator, dtype=torch.float64)
    return unit * torch.tensor(tree.extent) * CELLS


def patch_corners(tree: Tree, scale: int, side: int) -> torch.Tensor:
    """Some of the aligned patches of one scale that begin inside the extent."""
    axes = [torch.arange(0, -(-length * CELLS >> scale), side) for length in tree.extent]
    corners = torch.cartesian_prod(*axes).reshape(-1, tree.dimension)
    return corners[torch.randperm(len(corners), generator=torch.Generator().manual_seed(0))[:60]]


def patch_centres(corners: torch.Tensor, scale: int, side: int) -> torch.Tensor:
    """``[side**dimension, n, dimension]``: pixel centres, ``(z,) y, x`` order."""
    places = torch.tensor(list(itertools.product(range(side), repeat=corners.shape[1]))).flip(1)
    return (corners.double() + places[:, None] + 0.5) * 2**scale


@LAWS
@given(trees(), st.integers(0, 2**32))
def test_points_read_what_the_definition_says(tree, seed):
    lattice = Lattice.build(tree, CELLS)
    features = random_features(lattice)
    positions = random_positions(tree, 12, seed)
    for scale in range(tree.depth + 1):
        expected = [
            read_by_definition(lattice, features.double().numpy(), position, scale)
            for position in positions.numpy()
        ]
        read = reference.encode_points(geometry_of(lattice), features, positions, scale)
        np.testing.assert_allclose(read, np.array(expected), atol=1e-5)


@LAWS
@given(trees())
def test_patches_and_folded_reads_equal_points(tree):
    lattice = Lattice.build(tree, CELLS)
    geometry, features = geometry_of(lattice), random_features(lattice)
    folded = fold(lattice, features)
    for scale, side in itertools.product(range(tree.depth + 1), (1, 2, CELLS)):
        corners = patch_corners(tree, scale, side)
        far = torch.tensor(tree.extent) * CELLS
        centres = torch.minimum(patch_centres(corners, scale, side), far - 0.5)
        inside = (patch_centres(corners, scale, side) < far).all(dim=2)
        expected = reference.encode_points(geometry, features, centres.reshape(-1, tree.dimension), scale)
        expected = expected.reshape(side**tree.dimension, len(corners), -1)
        for table in (None, folded):
            patches = reference._patches(geometry, features, corners, scale, side, table)
            torch.testing.assert_close(patches[inside], expected[inside], atol=1e-5, rtol=0)
        points = reference.encode_points(
            geometry, features, centres.reshape(-1, tree.dimension), scale, folded
        )
        torch.testing.assert_close(points.reshape(expected.shape), expected, atol=1e-5, rtol=0)


@LAWS
@given(trees())
def test_a_scale_does_not_depend_on_finer_blocks(tree):
    lattice = Lattice.build(tree, CELLS)
    features, positions = random_features(lattice), random_positions(tree, 50)
    for scale in range(tree.depth + 1):
        kept = tree.levels <= tree.depth - scale
        coarse = Tree(tree.dimension, tree.depth, tree.extent, tree.levels[kept], tree.indices[kept])
        pruned = Lattice.build(coarse, CELLS)
        moved = carry(features, lattice, pruned)
        torch.testing.assert_close(
            reference.encode_points(geometry_of(pruned), moved, positions, scale),
            reference.encode_points(geometry_of(lattice), features, positions, scale),
            atol=1e-6,
            rtol=0,
        )


def carry(features: torch.Tensor, old: Lattice, new: Lattice) -> torch.Tensor:
    here, there = new.carry_over(old)
    moved = torch.zeros(new.vertices + 1, features.shape[1])
    moved[here] = features[there]
    return moved


@LAWS
@given(trees())
def test_a_split_with_zero_features_changes_nothing(tree):
    rows = tree.leaf_rows[tree.levels[tree.leaf_rows] < tree.depth][::2]
    lattice, finer = Lattice.build(tree, CELLS), Lattice.build(tree.split(rows), CELLS)
    features, positions = random_features(lattice), random_positions(tree, 50)
    for scale in range(tree.depth + 1):
        torch.testing.assert_close(
            reference.encode_points(geometry_of(finer), carry(features, lattice, finer), positions, scale),
            reference.encode_points(geometry_of(lattice), features, positions, scale),
            atol=1e-6,
            rtol=0,
        )


def one_sided_limits(tree: Tree) -> torch.Tensor:
    """Points on all sides of the faces, edges and corners of every leaf: ``[2**dimension, n, dimension]``."""
    faces = []
    for row in tree.leaf_rows:
        side = CELLS << (tree.depth - int(tree.levels[row]))
        low = tree.coordinates[row] * side
        steps = np.array([0, 0.25, 0.37, 0.5, 0.9]) * side
        places = np.array([p for p in itertools.product(steps, repeat=tree.dimension) if 0 in p])
        faces.append(low + places)
    points = np.concatenate(faces)
    points = points[(points < np.array(tree.extent) * CELLS).all(axis=1)]
    below = np.where(np.isin(points % CELLS, 0), np.nextafter(points, -np.inf), points)
    sides = [
        np.where(np.array(choice), below, points)
        for choice in itertools.product((0, 1), repeat=tree.dimension)
    ]
    return torch.from_numpy(np.stack(sides))


@pytest.mark.parametrize("encoder", ["grid", "coordinate"])
@pytest.mark.parametrize(
    ("extent", "splits"), [((13, 9), 14), ((32, 32), 20), ((5, 3, 4), 8), ((8, 8, 8), 9)]
)
def test_the_field_is_continuous_across_all_leaf_edges(extent, splits, encoder):
    architecture = small_architecture(encoder)
    tree = random_tree(extent, splits, seed=3)
    assert len(np.unique(tree.levels[tree.leaf_rows])) >= 2
    lattice = Lattice.build(tree, CELLS)
    generator = torch.Generator().manual_seed(0)
    parameters = initial_encoder(architecture, lattice, generator)
    features = (
        5 * random_features(lattice)
        if encoder == "grid"
        else VertexFeatures(architecture, lattice)(parameters)
    )
    features /= features.std() / 5
    weights = initial_decoder(architecture, (0.5,) * 3, tree.depth + 1, generator)
    geometry, limits = geometry_of(lattice), one_sided_limits(tree)
    for scale, table in itertools.product(range(tree.depth + 1), (None, fold(lattice, features))):
        layers = scale_layers(weights, scale)
        positions = limits.reshape(-1, tree.dimension)
        values = reference.render_points(geometry, features, table, layers, positions, scale)
        values = values.reshape(*limits.shape[:2], -1)
        jump = (values.amax(dim=0) - values.amin(dim=0)).max()
        assert values.std() > 0.5
        assert jump <= 1e-3


@pytest.mark.parametrize("extent", [(11, 7), (3, 2, 4)])
def test_no_samples_are_no_values(extent):
    lattice = Lattice.build(random_tree(extent, 6), CELLS)
    geometry, features = geometry_of(lattice), random_features(lattice)
    nothing = torch.zeros(0, len(extent))
    for table in (None, fold(lattice, features)):
        assert reference.encode_points(geometry, features, nothing.double(), 0, table).shape == (0, SLOTS * 4)
        patches = reference.encode_patches(geometry, features, nothing.long(), 0, table)
        assert patches.shape == (0, 4 ** len(extent), SLOTS * 4)


@pytest.mark.parametrize("extent", [(20, 9), (6, 3, 10)])
@pytest.mark.parametrize("scale", [0, 1])
def test_gradients_of_reading(extent, scale):
    lattice = Lattice.build(random_tree(extent, 4), 2)
    assert lattice.tree.depth > 3
    geometry = geometry_of(lattice)
    features = random_features(lattice, 2, dtype=torch.float64)[:60].requires_grad_()
    rest = random_features(lattice, 2, dtype=torch.float64)[60:]
    positions = random_positions(lattice.tree, 5) / 2
    corners = (positions / 2**scale).long() // 2 * 2

    def points(head: torch.Tensor) -> torch.Tensor:
        return reference._points(geometry, torch.cat([head, rest]), positions, scale, None)

    def patches(head: torch.Tensor) -> torch.Tensor:
        return reference._patches(geometry, torch.cat([head, rest]), corners, scale, 2, None)

    assert points(features).abs().sum() > 0
    assert torch.autograd.gradcheck(points, [features], fast_mode=True)
    assert torch.autograd.gradcheck(patches, [features], fast_mode=True)


def test_gradients_of_the_decoder():
    generator = torch.Generator().manual_seed(0)
    weights = initial_decoder(small_architecture(), (0.5,) * 3, 2, generator)
    weights = {name: tensor.double().requires_grad_() for name, tensor in weights.items()}
    inputs = torch.randn(6, SLOTS * 4, generator=generator, dtype=torch.float64, requires_grad=True)

    def run(inputs: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return reference._decode(inputs, scale_layers(dict(zip(weights, tensors, strict=True)), 1))

    assert torch.autograd.gradcheck(run, [inputs, *weights.values()])


def test_the_decoder_is_an_mlp_of_its_scale():
    generator = torch.Generator().manual_seed(0)
    weights = initial_decoder(small_architecture(), (0.5,) * 3, 3, generator)
    inputs = torch.randn(7, SLOTS * 4, generator=generator)
    for scale in range(3):
        hidden = inputs @ weights["decoder.0.weight"][scale] + weights["decoder.0.bias"][scale]
        expected = hidden.clamp(min=0) @ weights["decoder.1.weight"][scale] + weights["decoder.1.bias"][scale]
        torch.testing.assert_close(reference.decode(inputs, scale_layers(weights, scale)), expected)


def test_gradients_of_the_coordinate_encoder(monkeypatch):
    monkeypatch.setattr(encoders, "BLOCKS_AT_ONCE", 2)
    lattice = Lattice.build(random_tree((3, 2), 2), 2)
    architecture = replace(small_architecture("coordinate"), cells=2)
    encoder = VertexFeatures(architecture, lattice)
    encoder._inputs, encoder._share = encoder._inputs.double(), encoder._share.double()
    parameters = initial_encoder(architecture, lattice, torch.Generator().manual_seed(0))
    tensors = [tensor.double().requires_grad_() for tensor in parameters.values()]

    class Encode(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            ctx.save_for_backward(*tensors)
            return encoder(dict(zip(parameters, tensors, strict=True)))

        @staticmethod
        def backward(ctx, gradient):
            named = dict(zip(parameters, ctx.saved_tensors, strict=True))
            return tuple(encoder.backward(named, gradient)[name] for name in parameters)

    assert torch.autograd.gradcheck(Encode.apply, tensors, fast_mode=True)


@LAWS
@given(trees((2,), splits=6))
def test_a_shared_vertex_has_the_mean_of_what_its_blocks_say(tree):
    architecture = small_architecture("coordinate")
    lattice = Lattice.build(tree, CELLS)
    parameters = initial_encoder(architecture, lattice, torch.Generator().manual_seed(0))
    features = VertexFeatures(architecture, lattice)(parameters)
    said = block_inputs(tree, architecture.frequencies)
    last = architecture.encoder_layers + 1
    for number in range(last + 1):
        said = said @ parameters[f"encoder.{number}.weight"] + parameters[f"encoder.{number}.bias"]
        said = said.clamp(min=0) if number < last else said
    said = said.reshape(len(tree), -1, architecture.features)
    for row in range(1, lattice.vertices + 1):
        node, place = np.nonzero(lattice.table[:-1] == row)
        torch.testing.assert_close(features[row], said[node, place].mean(dim=0))
    assert (features[0] == 0).all()
