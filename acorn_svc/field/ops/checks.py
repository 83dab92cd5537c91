"""What every back end demands of its arguments, said once."""

from __future__ import annotations

import torch
from torch import Tensor


def require_float32(values: Tensor) -> None:
    """Refuses every dtype but float32: a silent conversion costs time that nobody sees.

    Raises:
        TypeError: ``values`` has another dtype.
    """
    if values.dtype != torch.float32:
        raise TypeError(f"expected float32, got {values.dtype}")


def require_contiguous(values: Tensor) -> None:
    """Refuses strided tensors: kernels read memory in order.

    Raises:
        ValueError: ``values`` is not C-contiguous.
    """
    if not values.is_contiguous():
        raise ValueError("expected a contiguous tensor")
