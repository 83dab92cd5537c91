"""Exact area means along one axis: how a rendered scale becomes an output of any smaller size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def area_mean(
    values: NDArray[np.float32], edges: NDArray[np.float64], bounds: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Means of a piecewise constant signal between consecutive bounds, along the first axis.

    Args:
        values: ``[n, ...]``, constant between ``edges``.
        edges: ``[n + 1]``, ascending.
        bounds: ``[m + 1]``, ascending, within the edges.

    Returns:
        ``[m, ...]``.
    """
    widths = np.diff(edges)
    flat = values.reshape(len(values), -1).astype(np.float64)
    integral = np.concatenate([np.zeros((1, flat.shape[1])), np.cumsum(flat * widths[:, None], axis=0)])
    cell = np.clip(np.searchsorted(edges, bounds, side="right") - 1, 0, len(widths) - 1)
    at_bounds = integral[cell] + flat[cell] * (bounds - edges[cell])[:, None]
    means = np.diff(at_bounds, axis=0) / np.diff(bounds)[:, None]
    return means.reshape(-1, *values.shape[1:]).astype(np.float32)
