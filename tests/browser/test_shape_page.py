"""A shape on the page in a real browser: its tiles are loaded, drawn, and meet without cracks.

The visit itself is `shape.mjs`; what it saw is judged here. The shape is a ball of which one quarter is
divided finer than the rest, so that tiles of different levels meet in every picture.
"""

from __future__ import annotations

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
from made_shapes import ball, made_shape
from numpy.typing import NDArray
from PIL import Image

from acorn_svc.field.shape import ShapeField
from acorn_svc.formats.container import write_field

SCRIPT = Path(__file__).with_name("shape.mjs")
BACKGROUND = (255, 0, 255)
CLOSE = 24
"""Least difference to the background, of any channel: its pixels at the silhouette are mixed."""

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Visit:
    """What was seen: the report of `shape.mjs`, and the folder of its pictures."""

    base: str
    report: dict[str, Any]
    folder: Path

    def pixels(self, name: str) -> NDArray[np.int16]:
        """What was drawn on the background, `[height, width, 3]`."""
        # The last row may be half the stage's.
        return np.asarray(Image.open(self.folder / name).convert("RGB")).astype(np.int16)[:-1]

    def drawn(self, name: str) -> NDArray[np.bool_]:
        """Which pixels are not the background's, `[height, width]`."""
        drawn: NDArray[np.bool_] = np.abs(self.pixels(name) - BACKGROUND).max(axis=-1) > CLOSE
        return drawn


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    """The visit, made once."""
    require_browser()
    folder = tmp_path_factory.mktemp("pictures")
    upload = folder / "ball.acorn"
    write_field(upload, partly_fine_ball())
    with serving(tmp_path_factory.mktemp("data")) as base:
        request = urllib.request.Request(f"{base}/scenes?title=Ball", upload.read_bytes())
        urllib.request.urlopen(request).close()
        yield Visit(base, browsing.visit(SCRIPT, base, str(folder)), folder)


def partly_fine_ball() -> ShapeField:
    """A ball that has three levels of tiles in its left lower quarter and two elsewhere."""
    distance = ball((64, 64, 64), 56)

    def finer(centres: NDArray[np.float64]) -> NDArray[np.bool_]:
        return (centres[:, :2] < 64).all(axis=1)

    return made_shape(distance, (128, 128, 128), colour=True, levels=4, finer=finer)


def test_tiles_are_loaded_and_none_is_missing(visit: Visit) -> None:
    tiles = visit.report["tiles"]
    assert {tile["status"] for tile in tiles} <= {200, 503}
    answered = {tile["pathname"] for tile in tiles if tile["status"] == 200}
    assert answered == {tile["pathname"] for tile in tiles}
    assert any(path.endswith("/tileset.json") for path in answered)
    assert any(path.endswith(".subtree") for path in answered)
    assert sum(path.endswith(".glb") for path in answered) > 8
    assert visit.report["failed"] == []


def test_surface_is_drawn_whole(visit: Visit) -> None:
    drawn = visit.drawn("surface.png")
    assert 0.05 < drawn.mean() < 0.85
    colours = visit.pixels("surface.png")[drawn]
    assert colours.std(axis=0).min() > 20


@pytest.mark.parametrize("name", ["surface.png", "near.png"])
def test_tiles_meet_without_cracks(visit: Visit, name: str) -> None:
    label = pytest.importorskip("scipy.ndimage").label
    drawn = visit.drawn(name)
    assert drawn.any()
    pieces, count = label(~drawn)
    border = np.unique(np.concatenate([pieces[[0, -1]].ravel(), pieces[:, [0, -1]].ravel()]))
    assert count == np.count_nonzero(border)


def test_finer_tiles_come_when_near(visit: Visit) -> None:
    assert visit.report["tilesNear"] > 0
    assert visit.drawn("near.png").mean() > visit.drawn("surface.png").mean()


def test_edges_of_triangles_are_drawn_on_the_surface_while_wanted(visit: Visit) -> None:
    surface, wires, again = (visit.pixels(name) for name in ("surface.png", "wires.png", "again.png"))
    drawn = visit.drawn("surface.png")
    changed = np.abs(wires - surface).max(axis=-1) > CLOSE
    assert changed[drawn].mean() > 0.05
    assert np.array_equal(again, surface)


def test_blocks_are_drawn_around_the_surface(visit: Visit) -> None:
    assert visit.report["levels"] == 2
    outside = visit.drawn("blocks.png") & ~visit.drawn("surface.png")
    assert outside.mean() > 0.005


def test_gallery_needs_no_renderer(visit: Visit) -> None:
    assert visit.report["card"].startswith("Ball")
    assert not any("shape-stage" in url for url in visit.report["early"])
    assert any("shape-stage" in url for url in visit.report["requests"])


def test_page_asks_no_other_host(visit: Visit) -> None:
    requested = {urlsplit(url).netloc for url in visit.report["requests"] if "://" in url}
    assert requested == {urlsplit(visit.base).netloc}


def test_browser_has_nothing_to_complain_of(visit: Visit) -> None:
    assert [text for text in visit.report["complaints"] if "503" not in text] == []
