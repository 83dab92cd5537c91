"""What happens to pixels between a field and a file."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from acorn_svc.api.rendition import recolored, rotated

Pixels = NDArray[Any]
KINDS = [(dtype, channels) for dtype in (np.uint8, np.uint16) for channels in (1, 2, 3, 4)]


def noise(dtype: type, channels: int, height: int = 20, width: int = 30) -> Pixels:
    most = np.iinfo(dtype).max
    generator = np.random.default_rng(channels)
    return generator.integers(0, most, (height, width, channels), dtype, endpoint=True)


@pytest.mark.parametrize(("dtype", "channels"), KINDS)
def test_color_has_three_colors_and_keeps_the_alpha(dtype: type, channels: int) -> None:
    pixels = noise(dtype, channels)
    color = recolored(pixels, "color")
    assert color.dtype == dtype
    assert color.shape[2] == {1: 3, 2: 4, 3: 3, 4: 4}[channels]
    np.testing.assert_array_equal(color[..., 0], pixels[..., 0])
    if channels in (2, 4):
        np.testing.assert_array_equal(color[..., -1], pixels[..., -1])


@pytest.mark.parametrize(("dtype", "channels"), KINDS)
def test_gray_is_one_channel_between_the_darkest_and_the_lightest(dtype: type, channels: int) -> None:
    pixels = noise(dtype, channels)
    gray = recolored(pixels, "gray")
    assert gray.dtype == dtype
    assert gray.shape[2] == {1: 1, 2: 2, 3: 1, 4: 2}[channels]
    colors = pixels[..., :3] if channels > 2 else pixels[..., :1]
    assert (gray[..., 0] >= colors.min(axis=2)).all()
    assert (gray[..., 0] <= colors.max(axis=2)).all()


def test_gray_weighs_green_most_and_blue_least() -> None:
    red, green, blue = (recolored(np.eye(3, dtype=np.uint8)[None] * 255, "gray"))[0, :, 0]
    assert (red, green, blue) == (76, 150, 29)


@pytest.mark.parametrize(("dtype", "channels"), KINDS)
def test_bitonal_is_black_and_white(dtype: type, channels: int) -> None:
    pixels = recolored(noise(dtype, channels), "bitonal")
    assert pixels.dtype == dtype
    assert pixels.shape[2] == 1
    assert set(np.unique(pixels)) == {0, np.iinfo(dtype).max}


def test_what_is_transparent_is_white_in_bitonal() -> None:
    pixels = np.array([[[0, 0], [0, 255], [255, 255]]], np.uint8)
    assert recolored(pixels, "bitonal")[0, :, 0].tolist() == [255, 0, 255]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_right_angles_turn_clockwise(degrees: int) -> None:
    pixels = noise(np.uint8, 3)
    expected = np.rot90(pixels, k=degrees // 90, axes=(1, 0))
    np.testing.assert_array_equal(rotated(pixels, Decimal(degrees), transparent=True), expected)


@pytest.mark.parametrize(("dtype", "channels"), KINDS)
def test_other_angles_open_transparent_corners(dtype: type, channels: int) -> None:
    most = np.iinfo(dtype).max
    turned = rotated(np.full((60, 60, channels), most, dtype), Decimal(45), transparent=True)
    assert turned.dtype == dtype
    assert turned.shape[2] == {1: 2, 2: 2, 3: 4, 4: 4}[channels]
    assert abs(turned.shape[0] - 60 * 2**0.5) < 2
    assert turned[0, 0, -1] == 0
    assert (turned[42, 42] == most).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_corners_are_black_where_nothing_can_be_transparent(channels: int) -> None:
    turned = rotated(np.full((60, 60, channels), 255, np.uint8), Decimal(45), transparent=False)
    assert turned.shape[2] == channels
    assert (turned[0, 0] == 0).all()
    assert (turned[42, 42] == 255).all()


def test_a_small_angle_turns_clockwise() -> None:
    """A mark right of the centre moves down."""
    pixels = np.zeros((61, 61, 1), np.uint8)
    pixels[28:33, 50:55] = 255
    turned = rotated(pixels, Decimal("30.5"), transparent=False)[..., 0].astype(np.float64)
    row, column = (np.average(axis, weights=turned) for axis in np.indices(turned.shape))
    angle = np.degrees(np.arctan2(row - turned.shape[0] / 2, column - turned.shape[1] / 2))
    assert abs(angle - 30.5) < 3
