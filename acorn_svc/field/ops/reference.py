"""Plain PyTorch for every operation: the specification that the kernels are held to."""

from __future__ import annotations

from torch import Tensor

from acorn_svc.field.ops.checks import require_contiguous, require_float32


def identity(values: Tensor) -> Tensor:
    """Copies ``values``: the do-nothing operation, the pattern for every one to come.

    Args:
        values: float32, any shape (empty too), contiguous.

    Returns:
        A new tensor, equal to ``values``.

    Raises:
        TypeError: ``values`` is not float32.
        ValueError: ``values`` is not contiguous.
    """
    require_float32(values)
    require_contiguous(values)
    return values.clone()
