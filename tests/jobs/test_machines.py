"""Machines that share PostgreSQL and an object store take over each other's jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_server import Server, picture

STEPS = 4_000


@pytest.mark.slow
def test_a_fit_goes_on_on_another_machine_and_ends_with_the_same_bytes(
    tmp_path: Path, database_url: str, blob_url: str
) -> None:
    urls = {"database_url": database_url, "blob_url": blob_url}
    with Server(tmp_path / "here", checkpoint_seconds=0.05, **urls) as here:
        scene = here.upload(picture(), steps=STEPS, preset="draft")
        here.wait_for_version(scene["id"], 2)
        assert here.scene(scene["id"])["progress"]["step"] < STEPS
    with Server(tmp_path / "there", **urls) as there:
        there.wait_for_status(scene["id"], "ready")
        resumed = there.file(scene["id"])
        whole = there.upload(picture(), steps=STEPS, preset="draft")
        there.wait_for_status(whole["id"], "ready")
        assert there.file(whole["id"]) == resumed
