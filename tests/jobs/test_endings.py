"""What people are told about fits that ended without a result."""

from __future__ import annotations

import signal

import pytest

from acorn_svc.jobs import endings

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
