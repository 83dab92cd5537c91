"""The demonstration: the service, and a photo that is fitted while one looks on."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import urllib.parse
import urllib.request
import webbrowser
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from acorn_svc.errors import NotFound, Unavailable

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
START_SECONDS = 120.0
POLL_SECONDS = 0.2
REQUEST_SECONDS = 30.0
# The service runs on this machine: proxies of the environment are not for it.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
PHOTO = {
    "title": "Astronaut",
    "description": "Eileen Collins, pilot and commander of the Space Shuttle.",
    "attribution": "NASA",
    "rights": "https://creativecommons.org/publicdomain/mark/1.0/",
}


def photo() -> Path:
    """The file of the photo that scikit-image carries.

    Raises:
        NotFound: scikit-image is not installed.
    """
    package = find_spec("skimage")
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder) / "data" / "astronaut.png"
        if path.is_file():
            return path
    raise NotFound(
        "The demo's photo comes with scikit-image, which is not installed: pip install 'acorn-svc[demo]'."
    )


def free_port(host: str | None) -> int:
    """The usual port if it is free, else any free one."""
    for port in (DEFAULT_PORT, 0):
        try:
            with socket.create_server((host or DEFAULT_HOST, port)) as server:
                return int(server.getsockname()[1])
        except OSError:
            continue
    raise Unavailable("There is no free port on this address.")


def show_when_ready(url: str, path: Path, say: Callable[[str], None], *, browser: bool) -> None:
    """In the background: waits for the service, uploads the photo once, opens the page."""

    def run() -> None:
        try:
            wait_until_ready(url)
            upload_once(url, path)
        except OSError as error:
            say(f"The photo could not be uploaded: {error}")
        say(f"Acorn is at {url}/ - Ctrl-C ends it")
        if browser and _has_display():
            webbrowser.open(f"{url}/")

    threading.Thread(target=run, name="demo", daemon=True).start()


def wait_until_ready(url: str) -> None:
    """Returns when the service answers.

    Raises:
        TimeoutError: it doesn't in two minutes.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            _get(f"{url}/healthz")
            return
        except OSError:
            time.sleep(POLL_SECONDS)
    raise TimeoutError("the service did not start")


def upload_once(url: str, path: Path) -> str:
    """Uploads the photo, unless a scene of its title is there; the scene's id.

    Raises:
        OSError: the service refuses it, or can't be reached.
    """
    for scene in _scenes(url):
        if scene["title"] == PHOTO["title"] and scene["status"] not in ("failed", "cancelled"):
            return str(scene["id"])
    request = urllib.request.Request(
        f"{url}/scenes?{urllib.parse.urlencode(PHOTO)}",
        path.read_bytes(),
        {"Content-Type": "image/png"},
    )
    with DIRECT.open(request, timeout=REQUEST_SECONDS) as answer:
        return str(json.load(answer)["id"])


def _scenes(url: str) -> list[dict[str, Any]]:
    """All scenes of the service, page by page."""
    scenes: list[dict[str, Any]] = []
    query = "limit=100"
    while True:
        page = json.loads(_get(f"{url}/scenes?{query}"))
        scenes += page["items"]
        if not page["next"]:
            return scenes
        query = urllib.parse.urlencode({"limit": 100, "cursor": page["next"]})


def _get(url: str) -> bytes:
    with DIRECT.open(url, timeout=REQUEST_SECONDS) as answer:
        content: bytes = answer.read()
        return content


def _has_display() -> bool:
    graphical = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform == "darwin" or any(os.environ.get(name) for name in graphical)
