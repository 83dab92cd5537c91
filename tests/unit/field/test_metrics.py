from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.data import astronaut

from acorn_svc.field.metrics import PERFECT_DECIBELS, decibels, psnr, rounded_squares, seam_ratio

PHOTO = astronaut()[100:148, 200:264].astype(np.float32) / 255
BLOCKS = np.array([[x, y, 16, 1] for y in (0, 16, 32) for x in (0, 16, 32, 48)])


def contrast(image: np.ndarray, blocks: np.ndarray) -> float:
    """Mean difference of neighbours across edges over that inside, pixel pair by pixel pair."""
    owner = np.zeros(image.shape[:2], int)
    for number, (x, y, side, _) in enumerate(blocks):
        owner[y : y + side, x : x + side] = number
    differences: dict[bool, list[float]] = {True: [], False: []}
    height, width = owner.shape
    for y in range(height):
        for x in range(width):
            for below, right in ((y + 1, x), (y, x + 1)):
                if below < height and right < width:
                    crosses = bool(owner[y, x] != owner[below, right])
                    differences[crosses].append(float(np.abs(image[y, x] - image[below, right]).mean()))
    return float(np.mean(differences[True]) / np.mean(differences[False]))


def test_psnr_is_that_of_8_bit_pictures():
    rng = np.random.default_rng(0)
    noisy = PHOTO + rng.normal(0, 0.4, PHOTO.shape).astype(np.float32)
    stored = np.rint(np.clip(noisy, 0, 1) * 255), np.rint(PHOTO * 255)
    mean_square = float(((stored[0] - stored[1]) ** 2).mean())
    assert psnr(noisy, PHOTO) == pytest.approx(20 * math.log10(255) - 10 * math.log10(mean_square))
    assert rounded_squares(noisy, PHOTO) == pytest.approx(mean_square * PHOTO.size / 255**2)


def test_psnr_of_what_looks_the_same_is_the_highest():
    assert psnr(PHOTO + 0.4 / 255, PHOTO) == PERFECT_DECIBELS
    assert psnr(np.full((2, 2, 1), 1.7, np.float32), np.ones((2, 2, 1), np.float32)) == PERFECT_DECIBELS
    assert decibels(0.01) == pytest.approx(20)
    assert decibels(1e-30) == PERFECT_DECIBELS


def test_the_original_has_no_seams():
    assert seam_ratio(PHOTO, PHOTO, BLOCKS) == 1


def test_block_means_show():
    shifted = PHOTO.copy()
    rng = np.random.default_rng(0)
    for x, y, side, _ in BLOCKS:
        shifted[y : y + side, x : x + side] += rng.normal(0, 0.05)
    assert seam_ratio(shifted, PHOTO, BLOCKS) > 1.05


@pytest.mark.parametrize(
    "blocks",
    [
        BLOCKS,
        np.array([[0, 0, 32, 1], [32, 0, 32, 1], [0, 32, 32, 1], [32, 32, 16, 2], [48, 32, 16, 2]]),
    ],
    ids=["uniform", "mixed levels, some reaching beyond the image"],
)
def test_seam_ratio_by_definition(blocks):
    rendered = PHOTO + np.random.default_rng(0).normal(0, 0.02, PHOTO.shape).astype(np.float32)
    expected = contrast(rendered, blocks) / contrast(PHOTO, blocks)
    assert seam_ratio(rendered, PHOTO, blocks) == pytest.approx(expected, rel=1e-4)


def test_a_single_block_has_no_seams():
    assert seam_ratio(PHOTO * 0.9, PHOTO, np.array([[0, 0, 64, 0]])) == 1
