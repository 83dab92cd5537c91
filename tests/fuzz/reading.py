"""One long-lived process in the sandbox that says what files are, as the child of an upload does."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from acorn_svc.jobs.child import describe
from acorn_svc.jobs.inspection import file_limits
from acorn_svc.jobs.process import Message, limit_resources, say
from acorn_svc.jobs.sandbox import confine
from acorn_svc.settings import Settings

SECONDS = 60
"""After which one file has hung the reader, on the slowest machine."""


class Reader:
    """Give it paths in `folder`, and it says what they are; it dies when a file kills it."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def read(self, path: Path) -> dict[str, Any]:
        """The child's answer. Raises AssertionError when there is none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"{path.name} ended the process that read it ({self._process.wait()})"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> int:
        """Ends it; returns the most memory that it ever held, in bytes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        peak = json.loads(self._process.stdout.readline())["peak"]
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        return int(peak)


def _main(folder: Path) -> None:
    settings = Settings()
    for library in ("torch", "acorn_svc.formats.container", "acorn_svc.formats.meshes"):
        import_module(library)
    confine(readable=[folder])
    limit_resources(settings.decode_memory_bytes)
    for line in sys.stdin:
        if not line.strip():
            say({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})
            return
        signal.alarm(SECONDS)
        say(_answer(Path(line.strip()), settings))
        signal.alarm(0)


def _answer(path: Path, settings: Settings) -> Message:
    return describe(path, file_limits(settings), settings.decode_memory_bytes)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
