"""What people are told about fits that ended without a result."""

from __future__ import annotations

import signal

import pytest
import torch

from acorn_svc.jobs import child, endings

NATIVE = [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL]


@pytest.mark.parametrize("number", NATIVE)
def test_a_crash_in_native_code_is_named(number: signal.Signals) -> None:
    reason = endings.reason_of(-number, 60)
    assert reason.code == "fit_failed"
    assert "native code" in reason.message
    assert number.name in reason.message


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (-signal.SIGXCPU, "out_of_time", "job_wall_seconds allows: 60 seconds"),
        (-signal.SIGKILL, "fit_failed", "memory"),
        (-signal.SIGHUP, "fit_failed", "signal 1"),
        (1, "fit_failed", "exit status 1"),
        (endings.GPU_FAULT, "fit_failed", "GPU"),
    ],
)
def test_other_ends_are_told_apart(status: int, code: str, words: str) -> None:
    reason = endings.reason_of(status, 60)
    assert reason.code == code
    assert words in reason.message


def test_limits_are_named() -> None:
    assert "job_memory_bytes allows: 4096" in endings.out_of_memory(4096).message
    assert (endings.out_of_memory(1).code, endings.out_of_time(1).code) == ("out_of_memory", "out_of_time")


def test_what_a_lack_of_memory_raises_is_recognised() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50)
    of_gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    told = [child._lack_of_memory(error, 4096) for error in (refused.value, MemoryError(), of_gpu)]
    assert [error.code for error in told if error] == ["out_of_memory"] * 3
    assert [error.message for error in told if error][1:] == [
        "The fit needs more memory than job_memory_bytes allows: 4096 bytes.",
        "The fit needs more memory than the GPU has.",
    ]
    assert child._lack_of_memory(RuntimeError("sizes differ"), 4096) is None


def test_a_fault_of_the_gpu_is_told_from_other_errors() -> None:
    assert child._is_gpu_fault(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not child._is_gpu_fault(RuntimeError("CUDA error: out of memory"))
    assert not child._is_gpu_fault(RuntimeError("sizes differ"))
