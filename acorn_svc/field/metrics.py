"""Measures of quality."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]
PERFECT_DECIBELS = 100.0


def rounded_squares(rendered: FloatImage, truth: FloatImage) -> float:
    """Sum of squared differences of two pictures (0 to 1), both clipped and rounded to 8 bits first."""
    difference = np.rint(np.clip(rendered, 0, 1) * 255) - np.rint(np.clip(truth, 0, 1) * 255)
    return float(np.square(difference, dtype=np.float64).sum()) / 255**2


def decibels(mean_square: float) -> float:
    """PSNR of a mean squared error of values 0 to 1; at most 100."""
    if mean_square <= 0:
        return PERFECT_DECIBELS
    return min(PERFECT_DECIBELS, -10 * math.log10(mean_square))


def psnr(rendered: FloatImage, truth: FloatImage) -> float:
    """Peak signal-to-noise ratio in decibels over all channels, clipped and rounded to 8 bits."""
    return decibels(rounded_squares(rendered, truth) / rendered.size)


def overlap(ours: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Intersection over union of flags; 1 if none is set."""
    union = int((ours | truth).sum())
    return float((ours & truth).sum()) / union if union else 1.0


def seam_ratio(rendered: FloatImage, truth: FloatImage, blocks: NDArray[np.int64]) -> float:
    """How much block edges stand out, compared with the original picture.

    The mean absolute difference of neighbouring pixels across block edges, divided by the same inside
    blocks, divided by that quotient for the original. 1: edges cannot be told from the inside, or there
    are none.

    Args:
        rendered: ``[height, width, channels]``.
        truth: the original, of the same shape.
        blocks: ``[leaves, 4]``: x, y, side, level.
    """
    return _edge_contrast(rendered, blocks) / _edge_contrast(truth, blocks)


def _edge_contrast(image: FloatImage, blocks: NDArray[np.int64]) -> float:
    height, width = image.shape[:2]
    across = np.zeros((height, width), bool)
    down = np.zeros((height, width), bool)
    for x, y, side, _ in blocks:
        if x:
            across[y : y + side, x] = True
        if y:
            down[y, x : x + side] = True
    horizontal = np.abs(np.diff(image, axis=1)).mean(axis=2)
    vertical = np.abs(np.diff(image, axis=0)).mean(axis=2)
    edges = np.concatenate([horizontal[across[:, 1:]], vertical[down[1:]]])
    inside = np.concatenate([horizontal[~across[:, 1:]], vertical[~down[1:]]])
    return float(edges.mean() / inside.mean()) if len(edges) else 1.0
