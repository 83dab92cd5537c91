"""Nothing outside the data folder is opened, and nobody is called: a whole server, and what watches it.

Ways out of the folder in paths and headers are tried in `test_bad_paths`, under the same watch.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from watching import PACKAGE, WATCH, allowed_roots, confined


def test_the_watch_sees_what_it_is_for(tmp_path: Path) -> None:
    WATCH.opened, WATCH.called, WATCH.on = [], [], True
    try:
        with suppress(FileNotFoundError):
            (tmp_path / "absent").open()
        with suppress(OSError), socket.create_connection(("127.0.0.1", 1), timeout=1):
            pass
    finally:
        WATCH.on = False
    assert str(tmp_path / "absent") in WATCH.opened
    assert any(event == "socket.connect" for event, _ in WATCH.called)


def test_what_is_outside_may_not_be_opened(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/x").write_text("x")
    with confined(tmp_path / "inside"):
        assert (tmp_path / "inside/x").read_text() == "x"
    with pytest.raises(AssertionError), confined(tmp_path / "inside"), suppress(FileNotFoundError):
        (tmp_path / "outside").open()


# Under torture alone: a whole server, in a network of its own without a way out, under strace.

SYSTEM = ("/usr/", "/lib", "/etc/", "/proc/", "/sys/", "/dev/", "/tmp/")
UP = 'ip link set lo up && exec "$@"'
IN_A_NETWORK_OF_ITS_OWN = ("unshare", "--net", "--map-root-user", "sh", "-c", UP, "sh")


@pytest.mark.torture
def test_a_whole_server_opens_and_calls_nothing_else(
    tmp_path: Path, amount: Callable[[int, int], int], tell: Callable[[str, object], None]
) -> None:
    """Upload, fit, look, delete: no call leaves the machine, and no file outside is opened."""
    if not amount(0, 1):
        return
    if not shutil.which("strace") or subprocess.run([*IN_A_NETWORK_OF_ITS_OWN, "true"]).returncode:
        pytest.skip("needs strace, unshare and ip")
    trace, data = tmp_path / "trace", tmp_path / "data"
    driver = Path(__file__).with_name("confined_visit.py")
    command = [
        *IN_A_NETWORK_OF_ITS_OWN, "strace", "-f", "-qq", "-y", "-o", str(trace), "-e",
        "trace=connect,sendto,openat,open,creat,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat",
        sys.executable, str(driver), str(data),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = trace.read_text(errors="replace")
    roots = allowed_roots(data)
    read = (*roots, *(os.path.realpath(root) for root in roots), *SYSTEM, str(PACKAGE.parent))
    calls, opened, changed = judge(told, read, (str(data), "/dev/", "/proc/", "/tmp/"))
    assert (calls, opened, changed) == ([], [], [])
    tell("system calls looked at", told.count("\n"))


CALLED = re.compile(r'connect\(.*AF_INET6?\b(?!.*(?:"127\.|"::1"))')
CHANGED = re.compile(r"O_(WRONLY|RDWR|CREAT)|\b(unlink|rename|mkdir|creat)\w*\(")


def judge(trace: str, may_open: tuple[str, ...], may_change: tuple[str, ...]) -> tuple[list[str], ...]:
    """Of a trace of strace: calls to other machines, and files opened or changed that may not be."""
    calls, opened, changed = [], [], []
    for line in trace.splitlines():
        if CALLED.search(line):
            calls.append(line)
        if "AF_" in line or "= -1 E" in line:
            continue
        for path in re.findall(r'"(/[^"]*)"', line):
            if CHANGED.search(line) and not path.startswith(may_change):
                changed.append(line)
            elif not path.startswith(may_open):
                opened.append(line)
    return calls, opened, changed


def test_a_trace_is_judged_rightly() -> None:
    connect = "1 connect(3<socket:[1]>, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr"
    trace = (
        f'{connect}("192.0.2.1")}}, 16) = 0\n'
        f'{connect}("127.0.0.1")}}, 16) = 0\n'
        '1 openat(AT_FDCWD</data>, "/data/x", O_WRONLY|O_CREAT, 0666) = 4\n'
        '1 openat(AT_FDCWD</data>, "/etc/passwd", O_WRONLY) = 4\n'
        '1 openat(AT_FDCWD</data>, "/etc/hosts", O_RDONLY) = 4\n'
        '1 unlink("/home/x") = 0\n'
        '1 openat(AT_FDCWD</data>, "/home/creation", O_RDONLY) = 4\n'
        '1 openat(AT_FDCWD</data>, "/home/absent", O_RDONLY) = -1 ENOENT (No such file)\n'
    )
    calls, opened, changed = judge(trace, ("/data", "/etc/"), ("/data",))
    assert ["192.0.2.1" in call for call in calls] == [True]
    assert [line.split('"')[1] for line in opened] == ["/home/creation"]
    assert [line.split('"')[1] for line in changed] == ["/etc/passwd", "/home/x"]
