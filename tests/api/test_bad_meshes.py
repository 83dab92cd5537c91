"""Meshes that other programs choke on: each is taken or refused with a reason, and the service goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Gallery

FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "bad" / "meshes"
FILES = sorted(FOLDER.iterdir()) if FOLDER.is_dir() else []


@pytest.mark.slow
@pytest.mark.skipif(not FILES, reason=f"there are no meshes in {FOLDER}")
def test_every_broken_mesh_gets_an_answer(gallery: Gallery) -> None:
    taken = set()
    for path in FILES:
        answer = gallery.client.post("/scenes", content=path.read_bytes())
        if answer.status_code == 201:
            taken.add(path.name)
            assert answer.json()["kind"] == "shape"
            continue
        error = answer.json()["error"]
        assert 400 <= answer.status_code < 500, (path.name, answer.text)
        assert set(error) == {"code", "message", "limit", "value"}
        assert error["message"].endswith("."), path.name
        assert "/" not in error["message"].replace("n/a", ""), path.name
    assert 0 < len(taken) < len(FILES)
    assert gallery.client.get("/healthz").status_code == 200
