"""Why a fit ended without a result, as people are told it."""

from __future__ import annotations

import signal

from acorn_svc.errors import FitFailed, OutOfMemory, OutOfTime

GPU_FAULT = 4  # exit status of a child whose GPU reported one
# How native code ends when it is wrong, or finds that something is.
NATIVE_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP)


def out_of_memory(limit: int) -> OutOfMemory:
    """The process of a fit asked for more memory than it may have, in bytes."""
    return OutOfMemory(f"The fit needs more memory than job_memory_bytes allows: {limit} bytes.")


def out_of_gpu_memory() -> OutOfMemory:
    """The GPU has less memory than a fit asked for."""
    return OutOfMemory("The fit needs more memory than the GPU has.")


def out_of_time(limit: int) -> OutOfTime:
    """One start of a fit took longer than it may, in seconds."""
    return OutOfTime(f"The fit takes longer than job_wall_seconds allows: {limit} seconds.")


def ended_too_often(attempts: int) -> FitFailed:
    """A job ended so often without progress, and nobody saw why: its workers ended too."""
    return FitFailed(f"The fit was started {attempts} times and ended each time without any progress.")


def reason_of(status: int, wall_seconds: int) -> FitFailed:
    """Why a process ended that gave no reason itself; `status` is as `subprocess` has it."""
    if -status == signal.SIGXCPU:
        return out_of_time(wall_seconds)
    if status == GPU_FAULT:
        return FitFailed("The fit was ended by a fault of the GPU.")
    if -status == signal.SIGKILL:
        return FitFailed("The fit was ended by the system, probably for lack of memory.")
    if -status in NATIVE_CRASHES:
        return FitFailed(f"The fit was ended by a crash in native code ({signal.Signals(-status).name}).")
    cause = f"signal {-status}" if status < 0 else f"an error (exit status {status})"
    return FitFailed(f"The fit was ended by {cause}.")
