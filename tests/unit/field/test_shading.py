"""Small pictures of shapes: where the shape is, lit from above, the right way up."""

from __future__ import annotations

import numpy as np
from made_shapes import ball, made_shape, torus

from acorn_svc.field.shading import picture


def lying(positions):
    """A torus around the y axis, in voxels."""
    return torus((30, 30, 16), 18, 7)(positions[:, [0, 2, 1]])


def test_a_ball_is_a_disc_lit_from_above() -> None:
    pixels = picture(made_shape(ball((32, 32, 32), 24), (64, 64, 64)), 64).astype(float)
    covered = pixels[..., 3] > 127
    height, width = (np.ptp(np.flatnonzero(covered.any(axis=axis))) + 1 for axis in (1, 0))
    assert abs(height - width) <= 1
    assert abs(covered.sum() - np.pi / 4 * width**2) < 0.05 * width**2
    brightness = np.where(covered, pixels[..., 0], np.nan)
    assert np.nanmean(brightness[:32]) > np.nanmean(brightness[32:]) + 20
    assert (pixels[~covered & (pixels[..., 3] == 0)] == 0).all()


def test_colours_are_those_of_the_surface() -> None:
    pixels = picture(made_shape(ball((32, 32, 32), 24), (64, 64, 64), colour=True), 64)
    # Colours are positions: x, and with it red, grows to the right, y, and with it green, upwards.
    middle = pixels[32].astype(float)
    seen = np.flatnonzero(middle[:, 3] == 255)
    ratio = middle[seen, 0] / middle[seen, 2]
    assert ratio[-1] > ratio[0]
    column = pixels[:, 32].astype(float)
    seen = np.flatnonzero(column[:, 3] == 255)
    assert column[seen[0], 1] > column[seen[-1], 1]


def test_either_axis_may_point_up() -> None:
    around_z = made_shape(torus((30, 30, 16), 18, 7), (60, 60, 32))
    around_y = made_shape(lying, (60, 32, 60))
    same = picture(around_z, 48, up="z").astype(int) - picture(around_y, 48, up="y")
    other = picture(around_z, 48, up="y").astype(int) - picture(around_y, 48, up="y")
    assert np.abs(same).mean() < 2
    assert np.abs(other).mean() > 20
