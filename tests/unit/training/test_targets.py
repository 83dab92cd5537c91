from __future__ import annotations

import numpy as np
import pytest
import torch

from acorn_svc.errors import BadImage
from acorn_svc.field.conventions import scaled_size
from acorn_svc.field.ops.reference import read_patches
from acorn_svc.training.targets import ImageTarget

SIZES = [(1, 1), (7, 13), (16, 16), (1, 9), (33, 18)]


def random_pixels(height: int, width: int, channels: int, bit_depth: int = 8) -> np.ndarray:
    dtype = np.uint8 if bit_depth == 8 else np.uint16
    rng = np.random.default_rng(height * width)
    return rng.integers(0, 1 << bit_depth, (height, width, channels), dtype)


def premultiplied(pixels: np.ndarray) -> np.ndarray:
    values = pixels / float(np.iinfo(pixels.dtype).max)
    if pixels.shape[2] in (2, 4):
        values[..., :-1] *= values[..., -1:]
    return values


def boxes(pixels: np.ndarray, scale: int) -> list[list[np.ndarray]]:
    """Full-size values under each pixel of a scale."""
    values, side = premultiplied(pixels), 1 << scale
    height, width = (scaled_size(length, scale) for length in pixels.shape[:2])
    return [
        [values[y * side : (y + 1) * side, x * side : (x + 1) * side] for x in range(width)]
        for y in range(height)
    ]


@pytest.mark.parametrize("bit_depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", SIZES)
def test_scales_are_area_means(size, channels, bit_depth):
    pixels = random_pixels(*size, channels, bit_depth)
    target = ImageTarget(pixels)
    for scale in range(6):
        expected = [[box.mean(axis=(0, 1)) for box in row] for row in boxes(pixels, scale)]
        np.testing.assert_allclose(target.values(scale), expected, atol=2e-6)
        np.testing.assert_array_equal(target.values(scale, slice(1, 3)), target.values(scale)[1:3])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 4])
def test_detail_is_what_one_value_per_pixel_leaves(size, channels):
    pixels = random_pixels(*size, channels)
    details = ImageTarget(pixels).detail(4)
    assert len(details) == 5
    for scale, detail in enumerate(details):
        expected = [
            [((box - box.mean(axis=(0, 1))) ** 2).sum() for box in row] for row in boxes(pixels, scale)
        ]
        np.testing.assert_allclose(detail, expected, atol=1e-4)


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_patches_hold_the_pixels_inside_and_no_others_count(scale):
    target = ImageTarget(random_pixels(19, 26, 3))
    image = target.values(scale)
    height, width = image.shape[:2]
    corners = torch.cartesian_prod(torch.arange(0, width, 4), torch.arange(0, height, 4))
    values, weights = read_patches(target.pyramid(2)[scale], corners)
    assert values.shape == (len(corners), 16, 3)
    assert weights.sum() == height * width
    for number, (x, y) in enumerate(corners.tolist()):
        for place in range(16):
            column, row = x + place % 4, y + place // 4
            inside = column < width and row < height
            assert weights[number, place] == inside
            if inside:
                assert np.array_equal(values[number, place], image[row, column])


def test_a_gray_image_may_have_two_axes():
    target = ImageTarget(random_pixels(4, 5, 1)[..., 0])
    assert (target.signal.width, target.signal.height, target.signal.channels) == (5, 4, 1)


def test_a_view_is_an_image_like_any_other():
    pixels = random_pixels(20, 30, 3)
    view = pixels[::2, ::-1]
    np.testing.assert_array_equal(ImageTarget(view).values(1), ImageTarget(view.copy()).values(1))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 5), np.uint8), np.zeros((4, 4, 0), np.uint8), np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 3), np.int16), np.zeros(4, np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(pixels):
    with pytest.raises(BadImage):
        ImageTarget(pixels)
