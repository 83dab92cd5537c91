"""What the process that meets untrusted bytes cannot do any more, and what it still can."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from acorn_svc.jobs import process as processes
from acorn_svc.jobs.process import NICENESS, end, spawn_child
from acorn_svc.jobs.sandbox import JUDGED, REFUSED, holds

HOLDS = holds()
ATTEMPTS = """
import ctypes, errno, fcntl, json, mmap, os, resource, signal, socket, struct, subprocess, sys, threading
from pathlib import Path
from acorn_svc.jobs.sandbox import confine

readable, writable, other = map(Path, sys.argv[1:])
confine(readable=[readable], writable=[writable])
libc = ctypes.CDLL(None, use_errno=True)


def native(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)


def write(path):
    path.write_text("new")


def replace():
    write(writable / "a")
    (writable / "a").replace(writable / "b")
    (writable / "b").unlink()


def share(path):
    write(path)
    with path.open("r+b") as file:
        mmap.mmap(file.fileno(), 3)[0] = 1
    path.unlink()


def use_a_thread():
    thread = threading.Thread(target=write, args=[writable / "thread"])
    thread.start()
    thread.join()
    (writable / "thread").unlink()


def write_from_a_thread():
    failures = []
    thread = threading.Thread(target=lambda: failures.append(outcome(lambda: write(other / "x"))))
    thread.start()
    thread.join()
    raise OSError(getattr(errno, failures[0], 0), "in the thread")


def outcome(action):
    try:
        action()
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]


ACTIONS = {
    "read what is given": readable.read_text,
    "replace a file where it may": replace,
    "import a library": lambda: __import__("numpy"),
    "use a thread": use_a_thread,
    "signal itself": lambda: os.kill(os.getpid(), 0),
    "bound itself": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    "choose a processor": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "take memory": lambda: mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
    "share the file that it may write": lambda: share(writable / "shared"),
    "open a socket": lambda: socket.socket(socket.AF_INET),
    "open a socket of IPv6": lambda: socket.socket(socket.AF_INET6),
    "open a local socket": lambda: socket.socket(socket.AF_UNIX),
    "open a pair of sockets": socket.socketpair,
    "resolve a name": lambda: Path("/etc/resolv.conf").read_text(),
    "become a program": lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),
    "start a program": lambda: subprocess.run([sys.executable, "-c", ""]),
    "fork": os.fork,
    "trace its parent": lambda: native("ptrace", 16, os.getppid(), 0, 0),
    "signal its parent": lambda: os.kill(os.getppid(), 0),
    "bound its parent": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE),
    "have its parent signalled": lambda: fcntl.fcntl(0, 8, os.getppid()),
    "have its parent signalled by a thread": lambda: fcntl.fcntl(0, 15, struct.pack("ii", 1, os.getppid())),
    "choose that signal": lambda: fcntl.fcntl(0, 10, signal.SIGKILL),
    "have its parent signalled by a socket": lambda: fcntl.ioctl(0, 0x8901, struct.pack("i", os.getppid())),
    "type for its parent": lambda: fcntl.ioctl(0, 0x5412, b"x"),
    "choose a processor for its parent": lambda: os.sched_setaffinity(os.getppid(), os.sched_getaffinity(0)),
    "schedule its parent": lambda: os.sched_setscheduler(os.getppid(), os.SCHED_OTHER, os.sched_param(0)),
    "share memory": lambda: mmap.mmap(-1, 4096),
    "make a file of memory": lambda: os.memfd_create("x"),
    "take memory as a stack": lambda: mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100),
    "ask for shared memory": lambda: native("shmget", 0, 4096, 0o600),
    "leave its namespaces": lambda: native("unshare", 0x10000000),
    "read accounts": lambda: Path("/etc/passwd").read_text(),
    "read the environment of its parent": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "list the root": lambda: os.listdir("/"),
    "read another file": lambda: (other / "file").read_text(),
    "write elsewhere": lambda: write(other / "x"),
    "write elsewhere from a thread": write_from_a_thread,
    "write for everybody": lambda: write(Path("/tmp/acorn-sandbox")),
    "write what it may read": lambda: write(readable),
    "change the mode of a file": lambda: os.chmod(readable, 0o777),
    "make a link": lambda: os.symlink("/etc/passwd", writable / "link"),
    "remove another file": lambda: (other / "file").unlink(),
    "take a file away": lambda: readable.replace(writable / "taken"),
}
print(json.dumps({name: outcome(action) for name, action in ACTIONS.items()}))
"""
# The errors of the kernel: EPERM is seccomp's, EACCES and EXDEV are Landlock's.
ALLOWED = {
    "read what is given", "replace a file where it may", "import a library", "use a thread", "signal itself",
    "bound itself", "choose a processor", "take memory", "share the file that it may write",
}  # fmt: skip
BY_LANDLOCK = {
    "resolve a name", "read accounts", "read the environment of its parent", "list the root",
    "read another file", "write elsewhere", "write elsewhere from a thread", "write for everybody",
    "write what it may read", "make a link", "remove another file", "take a file away",
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sandbox")
    for name in ("writable", "other"):
        (folder / name).mkdir()
    for file in ("given", "other/file"):
        (folder / file).write_text("old")
    places = [str(folder / name) for name in ("given", "writable", "other")]
    ran = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, *places],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert sorted(path.name for path in folder.rglob("*")) == ["file", "given", "other", "writable"]
    assert (folder / "given").read_text() == (folder / "other" / "file").read_text() == "old"
    told: dict[str, str] = json.loads(ran.stdout)
    return told


def test_what_is_needed_still_works(outcomes: dict[str, str]) -> None:
    assert {name: outcomes[name] for name in ALLOWED} == dict.fromkeys(ALLOWED, "done")


@pytest.mark.skipif(not HOLDS.calls, reason="this kernel has no seccomp for this machine")
def test_networks_programs_and_processes_are_out_of_reach(outcomes: dict[str, str]) -> None:
    refused = outcomes.keys() - ALLOWED - BY_LANDLOCK
    assert len(refused) == 23
    assert {name: outcomes[name] for name in refused} == dict.fromkeys(refused, "EPERM")


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "x86_64-linux-gnu/asm/unistd_64.h"), (1, "asm-generic/unistd.h")],
    ids=["x86-64", "arm64"],
)
def test_system_calls_have_the_numbers_of_the_kernel(column: int, header: str) -> None:
    path = Path("/usr/include", header)
    if not path.is_file():
        pytest.skip("no headers of the kernel for this machine")
    defined = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())
    numbers = {name: int(number) for name, number in defined}
    newer = "fchmodat2"  # than the headers of some systems
    expected = {name: columns[column] for name, columns in (REFUSED | JUDGED).items() if name != newer}
    assert {name: numbers.get(name) for name in expected} == expected


@pytest.mark.skipif(not HOLDS.files, reason="this kernel has no Landlock")
def test_files_are_out_of_reach(outcomes: dict[str, str]) -> None:
    assert all(outcomes[name] in ("EACCES", "EXDEV") for name in BY_LANDLOCK), outcomes


def _request(folder: Path) -> dict[str, Any]:
    return {
        "original": str(folder / "original"), "checkpoints": [], "spool": str(folder), "options": {},
        "limits": {"image": {}, "mesh": {}}, "checkpoint_seconds": 1, "memory_bytes": 1 << 30,
    }  # fmt: skip


def test_the_child_is_in_the_sandbox_gives_way_and_knows_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"ACORN_DATABASE_URL": "s3cret", "AWS_SECRET_ACCESS_KEY": "s3cret", "PGPASSWORD": "s3cret"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    inherited = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    os.mkfifo(tmp_path / "original")  # the child waits for what never comes, in the sandbox
    child = spawn_child("fit", _request(tmp_path))
    try:
        process = Path(f"/proc/{child.pid}")
        while (facts := _facts(process))["Seccomp" if HOLDS.calls else "NoNewPrivs"] == "0":
            assert child.poll() is None
            time.sleep(0.02)
        assert facts["NoNewPrivs"] == "1"
        assert facts["Umask"] == "0077"
        assert os.getpriority(os.PRIO_PROCESS, child.pid) >= NICENESS
        assert b"s3cret" not in (process / "environ").read_bytes()
        assert str(tmp_path) not in _open_places(process)
    finally:
        end(child)
        os.close(inherited)


NEIGHBOUR = """
import json, sys
from pathlib import Path
from acorn_svc.jobs.sandbox import confine

given = Path(json.loads(sys.argv[2])["path"])
confine(readable=[given])
import acorn_svc.formats.images, numpy.fft
given.read_text()
try:
    print((given.parent / "other").read_text())
except OSError as error:
    print(error.errno)
"""


@pytest.mark.skipif(not HOLDS.files, reason="this kernel has no Landlock")
@pytest.mark.parametrize(
    ("started_in", "imports_from"),
    [(".", None), ("data", None), ("data/spool", None), ("/", "."), ("/", "data")],
)
def test_the_data_is_out_of_reach_wherever_the_service_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started_in: str, imports_from: str | None
) -> None:
    """Imports are from a folder above the data when Acorn runs from a checkout."""
    spool, program = tmp_path / "data" / "spool", tmp_path / "program"
    for folder in (spool, program):
        folder.mkdir(parents=True)
    for name in ("given", "other"):
        (spool / name).write_text("somebody's")
    (program / "neighbour.py").write_text(NEIGHBOUR)
    path = [program] if imports_from is None else [program, tmp_path / imports_from]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, path)))
    monkeypatch.setattr(processes, "CHILD", "neighbour")
    monkeypatch.chdir(tmp_path / started_in)
    child = spawn_child("inspect", {"path": str(spool / "given")})
    try:
        assert child.stdout is not None
        assert child.stdout.read().decode() == f"{errno.EACCES}\n"
    finally:
        end(child)


def _facts(process: Path) -> dict[str, str]:
    """What the kernel tells of a process."""
    lines = (process / "status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)


def _open_places(process: Path) -> list[str]:
    places = []
    for entry in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            places.append(os.readlink(entry))
    return places
