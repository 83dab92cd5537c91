"""Does operations in processes of their own, of which strace cuts off one system call.

A program: it reads a request a line, a JSON object, and answers each with one. Everything is imported
before, and each request is a fork; so it takes milliseconds, and the process has one thread.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path

import operations

from acorn_svc.settings import Settings
from acorn_svc.store.scenes import SceneStore

DONE, FAILED = 0, 7
CALLS = (
    "write,pwrite64,fsync,fdatasync,ftruncate,rename,renameat,renameat2,link,linkat,unlink,unlinkat,"
    "mkdir,mkdirat,rmdir,chmod,fchmod,fchmodat"
)


def perform(operation: str, data: Path, *, again: bool) -> int:
    """Do it; when it fails, changed nothing and is to be done again, do it once more. DONE or FAILED.

    A commit whose very last step fails is told as a failure, although it stands.
    """
    before = None
    try:
        store = SceneStore(Settings(data=data))
        before = operations.summary(store)
        operations.OPERATIONS[operation](store)
    except Exception:
        if not again:
            with suppress(OSError):  # it is a write, too
                traceback.print_exc()
            return FAILED
        if before is None or before == operations.summary(store):
            return perform(operation, data, again=False)
    return DONE


def run(operation: str, data: str, inject: str | None, *, again: bool) -> dict[str, object]:
    """How the process ended, and its system calls by name."""
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(perform(operation, Path(data), again=again))
    os.waitpid(child, os.WUNTRACED)
    log = Path(data).parent / "calls"
    options = ["-e", f"trace={CALLS}", *(["-e", f"inject={inject}"] if inject else [])]
    tracer = subprocess.Popen(
        ["strace", "-o", str(log), *options, "-p", str(child)], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    assert "attached" in (line := tracer.stderr.readline()), line
    os.kill(child, signal.SIGCONT)
    _, status = os.waitpid(child, 0)
    tracer.communicate()
    names = (line.split("(")[0] for line in log.read_text().splitlines() if "(" in line)
    return {"status": os.waitstatus_to_exitcode(status), "calls": Counter(names)}


def main() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
