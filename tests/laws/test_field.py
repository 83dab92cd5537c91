"""Laws of the field: one picture, however it is asked for."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import constant_field, random_field

from acorn_svc.errors import BadModel, BadRequest
from acorn_svc.field.conventions import scaled_size
from acorn_svc.field.model import Field
from acorn_svc.field.resample import area_mean
from acorn_svc.field.state import FieldState, FitRecord

LAWS = settings(deadline=None, max_examples=15)
CLOSE = {"atol": 5e-6, "rtol": 0}
WIDTH, HEIGHT = 53, 37
FIELDS = {encoder: random_field((WIDTH, HEIGHT), encoder=encoder) for encoder in ("grid", "coordinate")}
GRID = FIELDS["grid"]
CONSTANT = constant_field((0.2, 0.6, 1.0), (WIDTH, HEIGHT))
WHOLE = {field: (field.render(), field.render_values()) for field in FIELDS.values()}

both = pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)


def integer_spans(limit: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, limit - 1), st.integers(1, limit)).map(
        lambda span: (span[0], min(span[1], limit - span[0]))
    )


def spans(limit: int) -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(st.floats(0, limit - 1), st.floats(0.01, limit)).map(
        lambda span: (span[0], min(span[1], limit - span[0]))
    )


def overlaps(start: float, length: float, count: int, limit: int, scale: int) -> np.ndarray:
    """``[count, pixels of the scale]``: share of each output pixel that each pixel of the scale covers."""
    bounds = start + np.arange(count + 1) * length / count
    edges = np.minimum(np.arange(scaled_size(limit, scale) + 1) * 2.0**scale, limit)
    common = np.minimum(bounds[1:, None], edges[1:]) - np.maximum(bounds[:-1, None], edges[:-1])
    return np.maximum(common, 0) / (length / count)


def centres(x: float, y: float, width: float, height: float, size: tuple[int, int]) -> np.ndarray:
    """``[height, width, 2]``: centres of the output's pixels."""
    across = x + (np.arange(size[0]) + 0.5) * width / size[0]
    down = y + (np.arange(size[1]) + 0.5) * height / size[1]
    return np.stack(np.meshgrid(across, down), axis=-1)


@both
@LAWS
@given(across=integer_spans(WIDTH), down=integer_spans(HEIGHT))
def test_a_native_region_is_a_crop_of_the_whole(field, across, down):
    (x, width), (y, height) = across, down
    region = (x, y, width, height)
    crop = (slice(y, y + height), slice(x, x + width))
    picture, values = WHOLE[field]
    np.testing.assert_allclose(field.render_values(region), values[crop], **CLOSE)
    difference = field.render(region).astype(int) - picture[crop]
    assert np.abs(difference).max() <= 1


@LAWS
@given(
    across=spans(WIDTH), down=spans(HEIGHT), rows=st.integers(1, 70),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)  # fmt: skip
def test_strips_are_the_picture_in_slices(across, down, rows, size):
    region = (across[0], down[0], across[1], down[1])
    strips = list(GRID.render_strips(region, size, rows))
    assert [len(strip) for strip in strips[:-1]] == [rows] * (len(strips) - 1)
    joined, whole = np.concatenate(strips), GRID.render(region, size)
    assert joined.shape == whole.shape == (size[1], size[0], 3)
    assert np.abs(joined.astype(int) - whole).max() <= 1


@both
@pytest.mark.parametrize("scale", [0, 1, 2, 3])
def test_a_power_of_two_smaller_is_the_scale_itself(field, scale):
    region = (0, 0, 48, 32)
    small = field.render_values(region, (48 >> scale, 32 >> scale))
    np.testing.assert_allclose(small, field.render_scale(scale)[: 32 >> scale, : 48 >> scale], **CLOSE)


@LAWS
@given(across=spans(WIDTH), down=spans(HEIGHT), shares=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)))
def test_a_smaller_picture_is_the_area_mean_of_the_next_finer_scale(across, down, shares):
    region = (across[0], down[0], across[1], down[1])
    size = (max(1, int(across[1] * shares[0])), max(1, int(down[1] * shares[1])))
    pixel = (across[1] / size[0], down[1] / size[1])
    scale = min(int(math.log2(max(1, min(pixel)))), GRID.depth)
    if min(pixel) < 1 or max(pixel) >= 8 * min(pixel):
        return
    rows = overlaps(down[0], down[1], size[1], HEIGHT, scale)
    columns = overlaps(across[0], across[1], size[0], WIDTH, scale)
    expected = np.einsum("ij,jkc,lk->ilc", rows, GRID.render_scale(scale), columns)
    np.testing.assert_allclose(GRID.render_values(region, size), expected, atol=2e-5, rtol=0)


@LAWS
@given(across=spans(WIDTH), down=spans(HEIGHT), zoom=st.floats(1.1, 9))
def test_a_larger_picture_has_the_values_at_its_pixels_centres(across, down, zoom):
    region = (across[0], down[0], across[1] / 3, down[1] / 3)
    size = (math.ceil(region[2] * zoom), math.ceil(region[3] * zoom))
    values = GRID.render_values(region, size)
    assert np.isfinite(values).all()
    expected = GRID.query(centres(*region, size).reshape(-1, 2)).reshape(values.shape)
    np.testing.assert_allclose(np.clip(values, 0, 1), expected, **CLOSE)


@both
def test_an_odd_zoom_passes_through_the_native_pixels(field):
    zoomed = field.render_values(size=(WIDTH * 3, HEIGHT * 3))
    np.testing.assert_allclose(zoomed[1::3, 1::3], field.render_values(), **CLOSE)
    assert np.isfinite(field.render_values((20, 20, 0.001, 0.001), (9, 9))).all()


@both
@pytest.mark.parametrize("scale", [0, 1, 2, 3, 4])
def test_a_query_at_pixel_centres_is_the_render(field, scale):
    scale = min(scale, field.depth)
    expected = field.render_scale(scale)
    size = (expected.shape[1], expected.shape[0])
    points = centres(0, 0, size[0] << scale, size[1] << scale, size)
    inside = (points <= (WIDTH, HEIGHT)).all(axis=-1)
    values = field.query(points[inside], pixel_size=2.0**scale)
    np.testing.assert_allclose(values, expected[inside], **CLOSE)


def test_a_query_between_two_scales_blends_them():
    points = np.random.default_rng(0).random((20, 2)) * (WIDTH, HEIGHT)
    fine, coarse = GRID.query(points, 2.0), GRID.query(points, 4.0)
    np.testing.assert_allclose(GRID.query(points, 2**1.25), 0.75 * fine + 0.25 * coarse, **CLOSE)
    assert np.abs(fine - coarse).max() > 0.01
    np.testing.assert_array_equal(GRID.query(points, 0.1), GRID.query(points, 1.0))
    np.testing.assert_array_equal(GRID.query(points, 1e9), GRID.query(points, 2.0**GRID.depth))


def test_outside_the_image_the_border_is_repeated():
    points = np.array([[-5.0, 3.3], [WIDTH + 9.0, 3.3], [7.1, -1e9], [7.1, 1e9]])
    clamped = np.clip(points, 0, (WIDTH, HEIGHT))
    np.testing.assert_array_equal(GRID.query(points), GRID.query(clamped))


@both
def test_queries_are_continuous_across_leaf_edges(field):
    blocks = field.blocks()
    steps = np.array([0, 0.2, 0.5, 0.8])
    x, y, side = blocks[:, 0, None], blocks[:, 1, None], blocks[:, 2, None]
    vertical = np.stack([x + 0 * steps, y + steps * side], axis=-1)
    horizontal = np.stack([x + steps * side, y + 0 * steps], axis=-1)
    points = np.concatenate([vertical, horizontal]).reshape(-1, 2)
    points = points[(points < (WIDTH, HEIGHT)).all(axis=1) & (points > 0).any(axis=1)]
    for scale in range(field.depth + 1):
        before = field.query(points * (1 - 1e-9), 2.0**scale)
        assert np.abs(before - field.query(points * (1 + 1e-9), 2.0**scale)).max() <= 1e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (53, 17), (64, 64), (5, 4)])
@pytest.mark.parametrize(("channels", "bit_depth"), [(1, 8), (2, 16), (3, 16), (4, 8)])
def test_shapes_and_types_of_any_image(size, channels, bit_depth):
    field = random_field(size, channels, bit_depth, splits=3)
    picture = field.render()
    assert picture.shape == (size[1], size[0], channels)
    assert picture.dtype == (np.uint8 if bit_depth == 8 else np.uint16)
    assert field.render(size=(3, 2)).shape == (2, 3, channels)
    assert field.query(np.zeros((2, 2))).shape == (2, channels)
    assert field.query(np.zeros((0, 2))).shape == (0, channels)
    assert field.info().channels == channels


@LAWS
@given(across=spans(WIDTH), down=spans(HEIGHT), size=st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_a_constant_stays_constant_at_every_size(across, down, size):
    picture = CONSTANT.render((across[0], down[0], across[1], down[1]), size)
    assert np.array_equal(picture, np.broadcast_to(np.uint8([51, 153, 255]), (size[1], size[0], 3)))


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**32))
def test_area_mean_is_the_mean_by_definition(samples, outputs, seed):
    rng = np.random.default_rng(seed)
    edges = np.cumsum(rng.uniform(0.1, 3, samples + 1))
    bounds = np.sort(rng.uniform(edges[0], edges[-1], outputs + 1))
    bounds[0] = edges[0] if seed % 2 else bounds[0]
    bounds[-1] = edges[-1] if seed % 3 else bounds[-1]
    values = rng.random((samples, 2)).astype(np.float32)
    means = area_mean(values, edges, bounds)
    for mean, low, high in zip(means, bounds[:-1], bounds[1:], strict=True):
        common = np.maximum(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0)
        np.testing.assert_allclose(mean, common @ values / (high - low), rtol=1e-4, atol=1e-5)


def test_alpha_is_straight_outside_and_premultiplied_inside():
    field = constant_field((0.3, 0.1, 0.0, 0.5))
    assert field.render()[0, 0].tolist() == [153, 51, 0, 128]
    np.testing.assert_allclose(field.render_values()[0, 0], [0.3, 0.1, 0, 0.5], **CLOSE)
    np.testing.assert_allclose(field.query(np.zeros((1, 2)))[0], [0.6, 0.2, 0, 0.5], **CLOSE)
    assert constant_field((0.9, 0.5)).render()[0, 0].tolist() == [255, 128]
    assert constant_field((0.3, 0.0), bit_depth=16).render()[0, 0].tolist() == [0, 0]
    assert constant_field((0.25, 0.5), bit_depth=16).render()[0, 0].tolist() == [32768, 32768]


def test_transparent_pixels_do_not_bleed_when_made_smaller():
    field = random_field((WIDTH, HEIGHT), channels=4)
    values = field.render_values(size=(20, 11))
    expected = np.concatenate([values[..., :3] / values[..., 3:], values[..., 3:]], axis=-1)
    difference = field.render(size=(20, 11)) - np.clip(expected, 0, 1) * 255
    assert np.abs(difference).max() <= 0.5 + 1e-3


NAN, INFINITY = math.nan, math.inf


@pytest.mark.parametrize(
    ("region", "size"),
    [
        ((0, 0, 0, 5), None), ((0, 0, 5, 0), None), ((0, 0, -1, 5), None), ((-1, 0, 5, 5), None),
        ((0, -0.1, 5, 5), None), ((50, 0, 4, 4), None), ((0, 30, 4, 8), None), ((0, 0, NAN, 5), None),
        ((NAN, 0, 5, 5), None), ((0, INFINITY, 5, 5), None), ((0, 0, INFINITY, 5), None),
        ((-INFINITY, 0, 5, 5), None), ((0, 0, 5e-324, 5e-324), (10, 10)), ((53, 0, 1, 1), None),
        (None, (0, 5)), (None, (5, 0)), (None, (-3, 5)), ((0, 0, 5, 5), (0, 0)),
    ],
)  # fmt: skip
def test_nonsense_is_refused(region, size):
    with pytest.raises(BadRequest):
        GRID.render(region, size)
    with pytest.raises(BadRequest):
        GRID.render_strips(region, size)


@pytest.mark.parametrize(
    ("points", "pixel_size"),
    [
        ([[0, NAN]], 1.0), ([[INFINITY, 0]], 1.0), ([0, 0], 1.0), ([[0, 0, 0]], 1.0), ([[0, 0]], 0.0),
        ([[0, 0]], -1.0), ([[0, 0]], NAN), ([[0, 0]], INFINITY),
    ],
)  # fmt: skip
def test_nonsense_queries_are_refused(points, pixel_size):
    with pytest.raises(BadRequest):
        GRID.query(np.array(points), pixel_size)


@both
def test_blocks_partition_the_image(field):
    count = np.zeros((HEIGHT, WIDTH), int)
    for x, y, side, level in field.blocks():
        assert side == field.architecture.cells << (field.depth - level)
        count[y : y + side, x : x + side] += 1
    assert (count == 1).all()
    assert field.info().blocks == len(field.blocks())


@both
def test_info_counts_what_a_file_holds(field):
    state, info = field.to_state(), field.info()
    assert info.parameters == state.features.size + sum(array.size for array in state.weights.values())
    assert info.levels == len(np.unique(state.levels))
    assert (info.width, info.height, info.encoder) == (WIDTH, HEIGHT, field.encoder)
    assert info.to_json()["kind"] == "image"


@pytest.mark.parametrize("encoder", ["grid", "coordinate"])
@pytest.mark.parametrize(("channels", "bit_depth"), [(1, 16), (4, 8)])
def test_a_field_survives_the_way_through_its_state(encoder, channels, bit_depth):
    field = random_field((19, 30), channels, bit_depth, encoder, splits=5)
    field = replace(field, record=FitRecord("draft", 7, 3, 12.5))
    again = Field.from_state(field.to_state())
    assert np.array_equal(again.render_values(), field.render_values())
    assert again.info() == field.info()


def tampered(change: str) -> FieldState:
    state = random_field((19, 30), encoder="coordinate" if "mlp" in change else "grid", splits=5).to_state()
    header = copy.deepcopy(state.header)
    match change.split():
        case ["drop", key]:
            del header[key]
        case [("architecture" | "tree") as part, key, value]:
            header[part][key] = "x" if value == "x" else int(value)
        case ["unknown", part]:
            header[part]["surprise"] = 1
        case ["extent"]:
            header["tree"]["extent"][0] += 1
        case ["encoder"]:
            header["architecture"]["encoder"] = "other"
        case ["kind"]:
            header["kind"] = "video"
        case ["features"]:
            return replace(state, features=state.features[:-1])
        case ["channels-of-features"]:
            return replace(state, features=state.features[:, :-1])
        case ["offsets"]:
            moved = state.offsets.copy()
            moved[1] += 1
            return replace(state, offsets=moved)
        case ["levels"]:
            return replace(state, levels=state.levels[:-1])
        case ["indices" | "mlp-indices"]:
            return replace(state, indices=state.indices[::-1].copy())
        case ["weight" | "mlp-weight", "missing"]:
            first = next(name for name in state.weights if name.startswith("encoder") or "mlp" not in change)
            return replace(state, weights={k: v for k, v in state.weights.items() if k != first})
        case ["weight" | "mlp-weight", "shape"]:
            weights = {name: array[..., :-1] for name, array in state.weights.items()}
            return replace(state, weights=weights)
        case ["weight", "extra"]:
            return replace(state, weights={**state.weights, "decoder.9.bias": np.zeros(3, np.float32)})
        case [key, value]:
            header[key] = "x" if value == "x" else int(value)
    return replace(state, header=header)


CHANGES = [
    "drop width", "drop architecture", "drop tree", "drop fit", "kind", "encoder", "extent",
    "unknown architecture", "unknown fit", "width 0", "width -5", "width 5000", "width x", "height 31000",
    "channels 0", "channels 5", "channels 1", "bit_depth 12", "architecture cells 5", "architecture cells 0",
    "architecture cells 8", "architecture cells 128", "architecture features 2", "architecture features -1",
    "architecture decoder_width 3", "architecture decoder_layers 2", "architecture decoder_layers x",
    "tree depth 9", "tree depth -1", "tree dimension 3", "tree depth x", "features", "channels-of-features",
    "offsets", "levels", "indices", "weight missing", "weight shape", "weight extra", "mlp-weight missing",
    "mlp-weight shape", "mlp-indices",
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_tampered_state_is_no_model(change):
    with pytest.raises(BadModel):
        Field.from_state(tampered(change))
