"""Processes that end with whoever started them.

A started process holds the reading end of a pipe, its lifeline, as standard input. When the parent
dies, however suddenly, the system closes the pipe and the process ends itself. What it has to say
it writes to standard output, one JSON object a line.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Any

Message = dict[str, Any]
CHILD = "acorn_svc.jobs.child"
ORPHANED = 3
OUT_OF_TIME_GRACE = 5
NICENESS = 5
MAX_OPEN_FILES = 256
MAX_LINE_BYTES = 1 << 16
# Threads that libraries start on import would be outside of the sandbox, and take memory before any work.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1"}
# What a child takes over of the environment. Settings of the service and of other programs may be secret.
HARMLESS = re.compile(
    r"PATH|HOME|LANG|LC_\w+|TZ|PYTHON\w+|(LD_LIBRARY|DYLD_\w+)_PATH|VIRTUAL_ENV|CONDA_PREFIX|XDG_CACHE_HOME"
    r"|(OPENBLAS|OMP|GOMP|KMP|MKL|VIPS|MALLOC|TORCH|CUDA|NVIDIA)_\w+"
)


def spawn(
    module: str, *arguments: str, environment: Mapping[str, str] | None = None, talks: bool = True
) -> subprocess.Popen[bytes]:
    """Start `python -P -m module arguments` on a lifeline; what it says can be read if it `talks`."""
    return _start({**os.environ, **(environment or {})}, module, *arguments, talks=talks)


def spawn_child(command: str, request: Message) -> subprocess.Popen[bytes]:
    """Start the child that meets untrusted bytes, to `inspect` or `fit`; it learns no secret."""
    known = {name: value for name, value in os.environ.items() if HARMLESS.fullmatch(name)}
    return _start(known | ONE_THREAD, CHILD, command, json.dumps(request), talks=True)


def _start(
    environment: Mapping[str, str], module: str, *arguments: str, talks: bool
) -> subprocess.Popen[bytes]:
    # -P: nothing is imported from the working directory, which may be the data folder
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if talks else None,
        env=environment,
    )


def end(process: subprocess.Popen[bytes], *, heard: bool = False) -> None:
    """Kill the process, if it is still there, and close its pipes.

    What a thread reads, `heard`, that thread closes: until it has read all, it can't be closed.
    """
    process.kill()
    process.wait()
    for pipe in (process.stdin, None if heard else process.stdout):
        if pipe is not None:
            pipe.close()


def lines(stream: IO[bytes]) -> Iterator[bytes]:
    """What a process says; one that was cut off by its death is left out, and what follows one too long."""
    while (line := stream.readline(MAX_LINE_BYTES)).endswith(b"\n"):
        yield line


def say(message: Message) -> None:
    """Tell the parent; called in the child."""
    sys.stdout.write(json.dumps(message, allow_nan=False) + "\n")
    sys.stdout.flush()


def hold_lifeline() -> None:
    """End this process when its parent is gone; called once, at the start of the child."""
    threading.Thread(target=_wait_for_end, name="lifeline", daemon=True).start()


def _wait_for_end() -> None:
    # Not through sys.stdin: its lock would be waited for when the interpreter ends.
    while os.read(0, 1):
        pass
    os._exit(ORPHANED)


def give_way() -> None:
    """Let whoever answers requests come first, when too much wants the processor.

    It holds for the thread that calls, and for those that it starts; on Linux, where threads are ranked.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))


def limit_resources(memory_bytes: int, cpu_seconds: int | None = None, file_bytes: int = 0) -> None:
    """Bound what this process may use; beyond it, memory is refused and the processor taken away.

    Memory counts what the process writes, not what it maps from libraries or a device. No file that it
    writes becomes larger than `file_bytes`.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    if cpu_seconds is not None:
        limits = (cpu_seconds, cpu_seconds + OUT_OF_TIME_GRACE)
        resource.setrlimit(resource.RLIMIT_CPU, limits)
