"""Laws of features in fewer bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from random_fields import trees

from acorn_svc.field.lattice import Lattice
from acorn_svc.field.quantisation import (
    DTYPES,
    INT8_LIMIT,
    MIN_SCALE,
    dequantised,
    dtype_for,
    quantised,
    rounded,
    row_levels,
    stored_as,
)

LAWS = settings(deadline=None)
DEPTH = 4
NUMBERS = st.floats(-1000, 1000, width=32) | st.floats(-(2.0**-50), 2.0**-50, width=32)


@st.composite
def rows(draw, numbers=NUMBERS):
    """Features ``[rows, 2]`` and the levels of the rows, ascending; some levels have none."""
    features = draw(arrays.arrays(np.float32, st.tuples(st.integers(0, 20), st.just(2)), elements=numbers))
    levels = draw(st.lists(st.integers(0, DEPTH), min_size=len(features), max_size=len(features)))
    return features, np.array(sorted(levels), np.uint8)


@LAWS
@given(rows())
def test_quantising_twice_is_quantising_once(pair):
    features, levels = pair
    stored, scales = quantised(features, levels, DEPTH)
    again, same = quantised(dequantised(stored, scales, levels), levels, DEPTH)
    assert np.array_equal(stored, again)
    assert np.array_equal(scales, same)


@LAWS
@given(rows())
def test_a_feature_moves_by_half_a_step_at_most_and_the_largest_becomes_127(pair):
    features, levels = pair
    stored, scales = quantised(features, levels, DEPTH)
    assert (stored.dtype, scales.dtype, scales.shape) == (np.int8, np.float32, (DEPTH + 1, 2))
    steps = scales[levels].astype(np.float64)
    values = stored * steps
    assert np.array_equal(values, dequantised(stored, scales, levels))
    assert (np.abs(values - features) <= steps * (0.5 + 1e-4)).all()
    for level in range(DEPTH + 1):
        of_level = levels == level
        peaks = np.abs(features[of_level]).max(axis=0, initial=0)
        seen = np.abs(stored[of_level].astype(int)).max(axis=0, initial=0)
        tiny = peaks < INT8_LIMIT * MIN_SCALE * (1 - 1e-4)
        assert (seen[tiny] == 0).all()
        assert (scales[level][tiny] == 1).all()
        large = peaks > INT8_LIMIT * MIN_SCALE * (1 + 1e-4)
        assert (seen[large] == INT8_LIMIT).all()
        assert np.allclose(scales[level][large], peaks[large] / INT8_LIMIT, rtol=2**-16)


def test_every_scale_survives_and_products_with_it_are_exact():
    """Peaks whose 127th, unrounded, would have all the bits of float32."""
    peaks = np.random.default_rng(0).uniform(1, 4, (1, 100_000)).astype(np.float32)
    level = np.zeros(1, np.uint8)
    stored, scales = quantised(peaks, level, 0)
    assert (stored == INT8_LIMIT).all()
    assert np.array_equal(dequantised(stored, scales, level), stored * scales.astype(np.float64))
    assert np.array_equal(quantised(dequantised(stored, scales, level), level, 0)[1], scales)


def test_halves_are_rounded_to_even():
    features = np.array([[127.0], [0.5], [1.5], [-0.5], [-2.5]], np.float32)
    stored, scales = quantised(features, np.zeros(5, np.uint8), 0)
    assert scales.tolist() == [[1.0]]
    assert stored[:, 0].tolist() == [127, 0, 2, 0, -2]


@LAWS
@given(rows(), st.integers(0, DEPTH), st.integers(0, 1))
def test_levels_and_channels_are_quantised_by_themselves(pair, level, channel):
    features, levels = pair
    other = features.copy()
    other[(levels != level), :] += 1
    other[:, 1 - channel] *= 3
    stored, scales = quantised(features, levels, DEPTH)
    stored_too, scales_too = quantised(other, levels, DEPTH)
    assert np.array_equal(stored[levels == level, channel], stored_too[levels == level, channel])
    assert scales[level, channel] == scales_too[level, channel]


@LAWS
@given(rows(), st.sampled_from(DTYPES))
def test_rounding_again_changes_nothing(pair, dtype):
    once = rounded(dtype, *pair, DEPTH)
    assert np.array_equal(rounded(dtype, once, pair[1], DEPTH), once)
    assert dtype != "float32" or np.array_equal(once, pair[0])
    assert dtype != "float16" or np.array_equal(once, pair[0].astype(np.float16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(dtype, value):
    features = np.array([[1.0, 2.0], [value, 0.0]], np.float32)
    with pytest.raises(ValueError, match="finite"):
        stored_as(dtype, features, np.zeros(2, np.uint8), 0)


@LAWS
@given(trees(splits=6))
def test_rows_have_the_levels_of_their_nodes(tree):
    lattice = Lattice.build(tree, 4)
    levels = row_levels(lattice)
    assert len(levels) == lattice.vertices
    for row in range(len(tree)):
        assert (levels[lattice.offsets[row] : lattice.offsets[row + 1]] == tree.levels[row]).all()


def test_each_kind_has_a_dtype():
    assert (dtype_for("image"), dtype_for("shape")) == ("float16", "int8")
