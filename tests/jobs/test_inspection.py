"""Checks of uploads that somebody interrupts: the file is not to blame."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from acorn_svc.errors import LimitExceeded, Unavailable
from acorn_svc.jobs import inspection
from acorn_svc.jobs.inspection import Inspector
from acorn_svc.jobs.process import ORPHANED, end, spawn_child
from acorn_svc.settings import Settings

KILLED = "import os; os.kill(os.getpid(), {})"
Replace = Callable[[str], threading.Semaphore]


@pytest.fixture
def replace_child(monkeypatch: pytest.MonkeyPatch) -> Replace:
    """Let a short program stand for the child; what is returned is released when one starts."""

    def replace(program: str) -> threading.Semaphore:
        started = threading.Semaphore(0)

        def begin(_command: str, _request: object) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-S", "-c", program]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            started.release()
            return process

        monkeypatch.setattr(inspection, "spawn_child", begin)
        return started

    return replace


@pytest.mark.parametrize(
    "program",
    [
        KILLED.format(int(signal.SIGTERM)),
        "import signal; signal.signal(2, signal.SIG_DFL); " + KILLED.format(int(signal.SIGINT)),
        KILLED.format(int(signal.SIGHUP)),
        f"import os; os._exit({ORPHANED})",
    ],
)
def test_whoever_ends_the_child_says_nothing_of_the_file(replace_child: Replace, program: str) -> None:
    replace_child(program)
    with pytest.raises(Unavailable, match="interrupted"):
        Inspector(Settings()).inspect(Path("unused"))


def test_the_system_still_ends_the_child_for_lack_of_memory(replace_child: Replace) -> None:
    replace_child(KILLED.format(int(signal.SIGKILL)))
    with pytest.raises(LimitExceeded) as caught:
        Inspector(Settings()).inspect(Path("unused"))
    assert caught.value.limit == "decode_memory_bytes"


def test_stopping_ends_checks_that_run_or_wait(replace_child: Replace) -> None:
    started = replace_child("import sys; sys.stdin.read()")
    inspector = Inspector(Settings(max_decodes=1))
    answers: list[Exception] = []

    def check() -> None:
        try:
            inspector.inspect(Path("unused"))
        except Exception as error:
            answers.append(error)

    threads = [threading.Thread(target=check) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.acquire(timeout=60)
    inspector.stop()
    for thread in threads:
        thread.join(60)
    assert [type(answer) for answer in answers] == [Unavailable] * 3
    with pytest.raises(Unavailable):
        inspector.inspect(Path("unused"))
    assert not started.acquire(blocking=False), "no other child was started"


def test_the_child_leaves_interrupts_to_the_service(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    limits = inspection.file_limits(Settings())
    request = {"path": str(path), "memory_bytes": 1 << 32, "cpu_seconds": 60, "limits": limits}
    process = spawn_child("inspect", request)
    try:
        with path.open("wb") as pipe:  # the child opens it too now, or will wait for what is in it
            process.send_signal(signal.SIGINT)
            pipe.write(bytes(16))
            pipe.flush()
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(60) in (0, ORPHANED)
    finally:
        end(process)
