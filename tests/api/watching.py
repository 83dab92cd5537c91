"""What the Python code of this process opens and whom it calls, while it is watched."""

from __future__ import annotations

import mimetypes
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import acorn_svc

PACKAGE = Path(acorn_svc.__file__).parent
mimetypes.init()  # reads the lists of the system, once


class Watch:
    """What Python code of this process opens and calls, while it watches."""

    def __init__(self) -> None:
        self.on = False
        self.opened: list[str] = []
        self.called: list[tuple[str, Any]] = []
        sys.addaudithook(self._hear)  # for ever: it cannot be taken away

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in ("open", "sqlite3.connect", "os.listdir", "os.scandir", "os.remove", "os.mkdir"):
            if isinstance(arguments[0], str | bytes | os.PathLike):
                self.opened.append(os.fsdecode(arguments[0]))
        elif event.startswith(("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen")):
            self.called.append((event, arguments))


WATCH = Watch()


@contextmanager
def confined(data: Path) -> Iterator[None]:
    """Fails when something outside of `data`, the program and its libraries is opened, or anybody called."""
    WATCH.opened, WATCH.called, WATCH.on = [], [], True
    try:
        yield
    finally:
        WATCH.on = False
    roots = allowed_roots(data)
    assert not [path for path in WATCH.opened if not os.path.abspath(path).startswith(roots)]
    assert not WATCH.called


def allowed_roots(data: Path) -> tuple[str, ...]:
    """Where files may be opened: the data, the program and what it is made of."""
    libraries = [path for path in sysconfig.get_paths().values() if path]
    return tuple(map(str, {data, PACKAGE, *map(Path, libraries), Path(sys.base_prefix)}))
