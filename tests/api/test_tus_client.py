"""The client that the page uses, tus-js-client, on a network that breaks: uploads go on where they were."""

from __future__ import annotations

import json
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import Gallery
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "tests" / "tools" / "resume_upload.mjs"
BREAKS = 3


def large_picture() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), np.uint8)
    content = BytesIO()
    Image.fromarray(noise).save(content, "PNG", compress_level=0)
    return content.getvalue()


def test_a_broken_upload_goes_on_and_gives_the_scene(
    live_gallery: Gallery, tmp_path: Path, node: str
) -> None:
    if not (REPOSITORY / "web/node_modules/tus-js-client").is_dir():
        pytest.skip("there is no tus-js-client in web/node_modules (npm ci)")
    content = large_picture()
    file = tmp_path / "picture.png"
    file.write_bytes(content)
    base = str(live_gallery.client.base_url)
    ran = subprocess.run(
        [node, str(SCRIPT), base, str(file), str(BREAKS)], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["broken"] == BREAKS
    outcome = live_gallery.client.get(report["upload"]).json()
    assert outcome["status"] == "done"
    assert outcome["scene"].endswith(f"/scenes/{outcome['scene_id']}")
    scene = live_gallery.client.get(f"/scenes/{outcome['scene_id']}").json()
    assert (scene["title"], scene["preset"]) == ("Through thick and thin", "draft")
    assert live_gallery.client.get(f"/scenes/{outcome['scene_id']}/original").content == content
    assert [method for method, _ in report["requests"]].count("POST") == 1
    resumed = [offset for method, offset in report["requests"] if method == "PATCH" and offset > 0]
    assert len(resumed) >= 1
