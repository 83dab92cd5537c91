"""Workers by the hundred: forked from a process that has loaded everything, their child a shell script.

The workers are real; only what computes is replaced, through the parameter that `jobs.worker.run` has for
it. The script notes which worker started it for which scene, takes a moment, and says that
it is done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil

from acorn_svc.settings import Settings

SCRIPT = """
scene=$(cat "$1")
echo "$PPID $scene" >> "$2"
trap 'kill $!; exit' TERM
sleep "$3" &
wait
printf 'field of %s' "$scene" > "$4"
printf '{"say": "done", "file": "%s", "progress": {"stage": "done", "step": 1}}\\n' "$4"
"""


def main(data: str, starts: str, seconds: str) -> None:
    """Fork one worker for each line of standard input and answer with its process id; at its end, end all."""
    from acorn_svc.jobs import worker
    from acorn_svc.jobs.process import Message

    def begin(request: Message) -> subprocess.Popen[bytes]:
        file = Path(request["spool"]) / "field"
        command = ["/bin/sh", "-c", SCRIPT, "fit", request["original"], starts, seconds, str(file)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    worker.POLLING_SECONDS = 0.02
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(2, 1)  # what it logs is no answer
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            worker.run(Settings(data=Path(data)), begin)
        print(pid, flush=True)
    os.killpg(0, signal.SIGKILL)


class Farm:
    """Workers on one data folder that tests start and kill."""

    def __init__(self, data: Path, fit_seconds: float, **settings: float) -> None:
        self._starts = data / "starts"
        values = Settings(data=data, **settings).environment()  # type: ignore[arg-type]
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(data), str(self._starts), str(fit_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **values},
            start_new_session=True,
        )

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def start(self) -> int:
        """Start a worker; returns its process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def starts(self) -> list[tuple[int, str]]:
        """Which worker started the fit of which scene, in order."""
        if not self._starts.exists():
            return []
        lines = [line.split() for line in self._starts.read_text().splitlines()]
        return [(int(pid), scene) for pid, scene in lines]

    def kill_children(self, name: str) -> None:
        """Kill every process below that has a name."""
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == name:
                    process.kill()

    def processes(self) -> Counter[str]:
        """The names of all processes below, by how many there are."""
        names: Counter[str] = Counter()
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                names[process.name()] += 1
        return names


if __name__ == "__main__":
    main(*sys.argv[1:])
