"""The state of a fit as plain arrays, enough to go on as if it had never stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class FitState:
    """A stopped fit.

    Attributes:
        arrays: tree, parameters, optimiser moments, error statistics, random state.
        meta: JSON object: the configuration, steps done and to do, seconds spent.
    """

    arrays: dict[str, NDArray[np.generic]]
    meta: dict[str, Any]


def with_prefix(prefix: str, arrays: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """Names the arrays ``prefix.name``."""
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def select_prefix(prefix: str, arrays: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """Inverse of :func:`with_prefix`."""
    start = f"{prefix}."
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
