"""CUDA back end: the kernels of ``cuda_ext/cuda.cu``, compiled at first use by NVRTC.

Nothing here needs ``nvcc``: users of a prebuilt PyTorch have none. Compiling needs no GPU either.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from cuda.core import Device, LaunchConfig, Program, ProgramOptions, launch
from torch import Tensor

from acorn_svc.field.ops.checks import require_contiguous, require_float32

THREADS = 256


def source_directory() -> Path:
    """Where the kernel sources lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[2]
    installed = package / "cuda_ext"
    return installed if installed.is_dir() else package.parent / "cuda_ext"


def compile_kernels(architecture: str, log: TextIO | None = None) -> Any:
    """Compiles ``cuda.cu`` for an architecture such as ``"sm_75"``; no GPU is needed.

    Args:
        architecture: compute capability as NVRTC names it.
        log: takes the assembler's report: registers, stack and spills of every kernel.

    Returns:
        A ``cuda.core`` object code of type cubin.
    """
    directory = source_directory()
    options = ProgramOptions(
        arch=architecture,
        std="c++17",
        include_path=str(directory),
        ptxas_options=["--verbose"] if log else None,
    )
    program = Program((directory / "cuda.cu").read_text(), "c++", options)
    return program.compile("cubin", logs=log)


@cache
def _kernels(device_index: int) -> Any:
    major, minor = torch.cuda.get_device_capability(device_index)
    return compile_kernels(f"sm_{major}{minor}")


class _CurrentStream:
    """PyTorch's current stream under the protocol that ``cuda.core`` reads."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self._stream.cuda_stream)


def _launch(name: str, count: int, device: torch.device, *arguments: Any) -> None:
    """Starts kernel ``name`` with one thread per element; nothing at all for no element."""
    if count == 0:
        return
    Device(device.index).set_current()
    kernel = _kernels(device.index).get_kernel(name)
    config = LaunchConfig(grid=-(-count // THREADS), block=THREADS)
    launch(_CurrentStream(device), config, kernel, *arguments, np.uint64(count))


def identity(values: Tensor) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.identity`."""
    require_float32(values)
    require_contiguous(values)
    output = torch.empty_like(values)
    _launch("identity", values.numel(), values.device, values.data_ptr(), output.data_ptr())
    return output
