"""Nothing outside the data folder is opened, and nobody is called, whatever the service is asked."""

from __future__ import annotations

import ast
import asyncio
import mimetypes
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from structlog.testing import capture_logs

import acorn_svc
from acorn_svc.api import access, safe_headers
from acorn_svc.api.app import create_app
from acorn_svc.jobs.inspection import Inspection
from acorn_svc.settings import Settings

PACKAGE = Path(acorn_svc.__file__).parent
CANARY = "the canary that lives outside the data folder"
LONG = 4096
Headers = list[tuple[bytes, bytes]]


def _escapes(dots: str, slash: str) -> list[str]:
    """Ways up from a folder, with one spelling of dots and slashes."""
    up = f"{dots}{slash}"
    return [
        f"{up}{dots}",
        up,
        f"{up}canary",
        f"{up * 2}canary",
        f"{up * 8}etc{slash}passwd",
        f"{slash}{up * 8}etc{slash}passwd",
        f"x{slash}{up * 9}etc{slash}passwd",
        f"{dots * 2}{slash}{slash}canary",
    ]


SPELLINGS = [
    ("..", "/"), ("%2e%2e", "%2f"), ("..", "%2f"), ("%2E%2E", "/"), ("%252e%252e", "%252f"),
    ("..", "%5c"), ("..", "\\"), ("%c0%ae%c0%ae", "%c0%af"), ("%uff0e%uff0e", "%u2215"), ("..;", "/"),
    ("%ef%bc%8e%ef%bc%8e", "%ef%bc%8f"), ("..%00", "/"), ("%e0%80%ae%e0%80%ae", "%e0%80%af"),
]  # fmt: skip
OTHERS = [
    "/etc/passwd", "%2fetc%2fpasswd", "//etc/passwd", "file:///etc/passwd", "~root/.ssh/id_rsa", "%00",
    "original%00.png", "\\\\server\\share\\x", "%5c%5cserver%5cshare%5cx", "//server/share/x",
    "C:\\Windows\\win.ini", "/proc/self/environ", "/dev/zero", "/./" * (LONG // 3), "../" * (LONG // 3),
    "x" * LONG,
]  # fmt: skip
TRAVERSALS = [text for spelling in SPELLINGS for text in _escapes(*spelling)] + OTHERS
HEADERS = (
    "host", "range", "if-none-match", "if-match", "accept", "content-type", "content-disposition",
    "last-event-id", "x-forwarded-host", "x-forwarded-prefix", "x-original-url", "x-rewrite-url",
    "x-sendfile", "authorization", "cookie", "origin", "upload-metadata",
)  # fmt: skip
QUERIES = ("cursor", "title", "region", "format", "v")


def test_there_are_as_many_strings_as_promised() -> None:
    assert len(TRAVERSALS) == len(set(TRAVERSALS)) == 120


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


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    folder = tmp_path_factory.mktemp("outside")
    (folder / "canary").write_text(CANARY)
    mimetypes.init()  # reads the lists of the system, once
    app = create_app(Settings(data=folder / "data"))
    app.state.inspector.inspect = lambda _path: Inspection("image", "png", 8, 8, 3, 8)
    with TestClient(app, raise_server_exceptions=False):
        yield app


async def ask(app: FastAPI, method: str, target: str, headers: Headers) -> tuple[int, bytes]:
    """The answer to a request whose target no client has tidied up; as uvicorn hands it on."""
    raw, _, query = target.encode().partition(b"?")
    names = {name for name, _ in headers}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": unquote_to_bytes(raw).decode("utf-8", "replace"), "raw_path": raw, "query_string": query,
        "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
        "headers": [*headers, *([] if b"host" in names else [(b"host", b"localhost")])],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    pending = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in pending:
            return message
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(dict(message))

    # An unforeseen error is answered, and raised for the server's log.
    with suppress(Exception):
        await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def requests_with(text: str, app: FastAPI) -> Iterator[tuple[str, str, Headers]]:
    """`text` in place of each parameter of each path, in queries, and in headers."""
    for path, methods in access.routes_of(app):
        parameters = re.findall(r"{[a-z]+(?::int)?}", path)
        for wanted in parameters:
            target = path
            for parameter in parameters:
                usual = "0" * 26 if parameter == "{id}" else "0"
                target = target.replace(parameter, text if parameter == wanted else usual)
            yield min(methods - {"HEAD", "OPTIONS"}, default="OPTIONS"), target, []
    for prefix in ("/", "/s/", "/assets/", "/swagger-ui/", "/static/"):
        yield "GET", prefix + text, []
    for name in QUERIES:
        yield "GET", f"/scenes?{name}={text}", []
    for name in HEADERS:
        yield "GET", "/scenes", [(name.encode(), text.encode("utf-8", "replace"))]
        yield "GET", f"/scenes/{'0' * 26}/file", [(name.encode(), text.encode("utf-8", "replace"))]


def allowed_roots(data: Path) -> tuple[str, ...]:
    """Where files may be opened: the data, the program and what it is made of."""
    libraries = [path for path in sysconfig.get_paths().values() if path]
    return tuple(map(str, {data, PACKAGE, *map(Path, libraries), Path(sys.base_prefix)}))


def test_no_string_leads_out_of_the_data_folder(
    app: FastAPI, amount: Callable[[int, int], int], tell: Callable[[str, object], None]
) -> None:
    """All strings, in the test command each at some of the places, in turn; under torture at all of them."""
    every, count = amount(20, 1), 0

    async def ask_all() -> None:
        nonlocal count
        for number, text in enumerate(TRAVERSALS):
            for place, request in enumerate(requests_with(text, app)):
                if (number + place) % every == 0:
                    await check(app, *request)
                    count += 1

    with capture_logs() as logs:
        asyncio.run(ask_all())
    assert not [entry for entry in logs if entry["log_level"] == "error"]
    tell("requests with traversal strings", count)
    assert count > 300


async def check(app: FastAPI, method: str, target: str, headers: Headers) -> None:
    """One request opens nothing outside, calls nobody, fails in no unforeseen way, and tells nothing."""
    WATCH.opened, WATCH.called, WATCH.on = [], [], True
    try:
        status, body = await ask(app, method, target, headers)
    finally:
        WATCH.on = False
    case = f"{method} {target[:200]} {headers[:1]}"
    assert status < 500, (case, body[:500])
    assert CANARY.encode() not in body, case
    assert b"root:" not in body, case
    roots = allowed_roots(app.state.settings.data)
    assert not [path for path in WATCH.opened if not os.path.abspath(path).startswith(roots)], case
    assert not WATCH.called, case


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


CLIENTS = {"http.client", "urllib.request", "ftplib", "smtplib", "requests", "httpx", "httpx2", "aiohttp",
           "urllib3", "xmlrpc.client", "websockets"}  # fmt: skip
DANGEROUS_CALL = re.compile(r"(?<![.\w])(eval|exec)\(|shell=True|os\.system|torch\.load|allow_pickle=True")
DANGERS = {"pickle", "marshal", "shelve", "yaml", "dill", "cloudpickle"}


def imports_of(source: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def test_no_module_can_call_others_or_run_what_it_reads() -> None:
    """But for the demonstration, which uploads its photo to its own server."""
    for source in PACKAGE.rglob("*.py"):
        found = imports_of(source)
        assert not found & DANGERS, source
        if source.name != "demo.py":
            assert not found & CLIENTS, source
        text = source.read_text()
        assert not re.search(
            r"\beval\(|\bexec\(|shell=True|os\.system|torch\.load|allow_pickle=True", text
        ), source


def test_the_middleware_sees_every_route(app: FastAPI) -> None:
    kinds = [middleware.cls for middleware in app.user_middleware]
    assert kinds.index(safe_headers.SafeHeaders) < kinds.index(access.Access)


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
