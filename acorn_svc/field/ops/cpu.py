"""CPU back end: the kernels of ``cuda_ext/cpu.cpp``, through the native module."""

from __future__ import annotations

import torch
from torch import Tensor

from acorn_svc import _native
from acorn_svc.field.ops.checks import require_contiguous, require_float32


def identity(values: Tensor) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.identity`."""
    require_float32(values)
    require_contiguous(values)
    output = torch.empty_like(values)
    _native.identity(values.detach(), output)
    return output
