"""The page in a real browser, on a real server: one visit from upload to block tree.

The visit itself is `page.mjs`; what it saw is judged here.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import browsing
import numpy as np
import pytest
from browsing import require_browser, serving
from PIL import Image

SCRIPT = Path(__file__).with_name("page.mjs")
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


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photo, small: the astronaut's face and the shuttle."""
    data = pytest.importorskip("skimage.data")
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(data.astronaut()).resize((SIDE * 2, SIDE * 2)).save(path)
    return path


@pytest.fixture(scope="module")
def visit(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    """The visit, made once."""
    require_browser()
    folder = tmp_path_factory.mktemp("pictures")
    with serving(tmp_path_factory.mktemp("data")) as base:
        yield Visit(base, browsing.visit(SCRIPT, base, str(original), str(folder)), folder)


def _difference(picture: Image.Image, original: Path) -> float:
    """Mean absolute difference at a common small size, 0 to 255."""
    pictures = (image.resize((SIDE, SIDE)) for image in (picture, Image.open(original)))
    first, second = (np.asarray(image, dtype=np.float64) for image in pictures)
    return float(np.abs(first - second).mean())


def test_fit_is_followed_live(visit: Visit) -> None:
    report = visit.report
    assert report["seen"][1:] == ["quality", "Ready"]
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


def test_page_of_an_image_loads_nothing_for_shapes(visit: Visit) -> None:
    scripts = [url for url in visit.report["requests"] if url.startswith(f"{visit.base}/assets/")]
    assert any("/stage-" in url for url in scripts)
    assert not any("shape-stage" in url for url in scripts)


def test_browser_has_nothing_to_complain_of(visit: Visit) -> None:
    assert visit.report["complaints"] == []
