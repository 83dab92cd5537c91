"""Workers by the hundred: forked from a process that has loaded everything, their child a shell script.

The workers are real; only what computes is replaced, through the parameter that `jobs.worker.run` has for
it. The script notes which worker started it for which scene, takes a moment, and says that
it is done. Workers have numbers of their own, for among thousands process ids are used again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from acorn_svc.settings import Settings

PROGRESS: dict[str, Any] = {"stage": "done", "step": 1, "steps": 1, "seconds": 0.0, "psnr": None, "iou": None}
PROGRESS |= {"blocks": 1, "parameters": 1, "bytes": 1}
SCRIPT = """
scene=$(cat "$1")
echo "$5 $scene" >> "$2"
trap 'kill $!; exit' TERM
sleep "$3" &
wait
printf 'field of %s' "$scene" > "$4"
printf '{"say": "done", "file": "%s", "progress": %s}\\n' "$4" "$6"
"""


def main(data: str, starts: str, seconds: str) -> None:
    """Fork one worker for each line of standard input and answer with its process id; at its end, end all."""
    from acorn_svc.jobs import worker
    from acorn_svc.jobs.process import Message

    def begin(request: Message) -> subprocess.Popen[bytes]:
        file = Path(request["spool"]) / "field"
        told = json.dumps(PROGRESS)
        arguments = (request["original"], starts, seconds, str(file), str(number), told)
        command = ["/bin/sh", "-c", SCRIPT, "fit", *arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    worker.POLLING_SECONDS = 0.02
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for number, _ in enumerate(sys.stdin):
        pid = os.fork()
        if pid == 0:
            log = os.open(_log(Path(data), number), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 2)
            os.dup2(log, 1)  # whatever it says is no answer
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            worker.run(Settings(data=Path(data)), begin)
        print(pid, flush=True)
    os.killpg(0, signal.SIGKILL)


def _log(data: Path, worker: int) -> Path:
    return data / "logs" / str(worker)


class Farm:
    """Workers on one data folder that tests start and kill."""

    def __init__(self, data: Path, fit_seconds: float, **settings: float) -> None:
        self._data = data
        self._starts = data / "starts"
        self._pids: list[int] = []
        (data / "logs").mkdir(parents=True, exist_ok=True)
        values = Settings(data=data, log_format="json", **settings).environment()  # type: ignore[arg-type]
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
        """Start a worker; returns its number."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        self._pids.append(int(self._process.stdout.readline()))
        return len(self._pids) - 1

    @property
    def workers(self) -> range:
        """The numbers of all workers that were started."""
        return range(len(self._pids))

    def signal(self, worker: int, number: signal.Signals) -> None:
        """Send a signal to a worker that lives."""
        os.kill(self._pids[worker], number)

    def log(self, worker: int) -> list[dict[str, Any]]:
        """What a worker has written down; a line that its death cut off is left out."""
        lines = _log(self._data, worker).read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def starts(self) -> list[tuple[int, str]]:
        """Which worker started the fit of which scene, in order."""
        if not self._starts.exists():
            return []
        lines = [line.split() for line in self._starts.read_text().splitlines()]
        return [(int(worker), scene) for worker, scene in lines]

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
