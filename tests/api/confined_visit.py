"""A server and a visit to it, for `test_confinement`: upload, fit, look, delete.

Usage: confined_visit.py DATA
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from typing import Any

import numpy as np

from acorn_svc.formats.images import encode_image

BASE = "http://127.0.0.1:8099"
WAIT_SECONDS = 300


def call(path: str, method: str = "GET", body: bytes | None = None) -> bytes:
    request = urllib.request.Request(BASE + path, data=body, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: bytes = answer.read()
        return content


def until(look: Any) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            found = look()
        except OSError:
            found = None
        if found:
            return found
        time.sleep(0.5)
    raise TimeoutError


def main() -> None:
    command = [sys.executable, "-m", "acorn_svc.cli", "serve", "--port", "8099", "--data", sys.argv[1]]
    server = subprocess.Popen(command, env={**os.environ, "ACORN_JOB_THREADS": "1"})
    try:
        until(lambda: call("/healthz"))
        picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
        made = json.loads(call("/scenes?preset=draft&steps=20", "POST", encode_image(picture, "png")))
        scene = f"/scenes/{made['id']}"
        until(lambda: json.loads(call(scene))["status"] == "ready")
        for path in (f"/iiif/{made['id']}/full/max/0/default.jpg", f"{scene}/file", f"{scene}/original"):
            assert call(path)
        call(scene, "DELETE")
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()
