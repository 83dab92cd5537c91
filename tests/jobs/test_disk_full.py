"""A disk that fills up: reads go on, writes are refused, and all goes on when there is room again."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import numpy as np
import pytest
from live_server import Server, picture, wait_until

from acorn_svc.formats.images import encode_image
from acorn_svc.settings import MIB, Settings
from acorn_svc.store.scenes import SceneStore

DISK_BYTES = 16 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def _noise(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (750, 750, 3), np.uint8)
    return encode_image(noise, "png")


def _upload(server: Server, content: bytes) -> httpx2.Response:
    return server.client.post("/scenes", content=content)


@pytest.mark.slow
@pytest.mark.torture
def test_a_full_disk_stops_writing_only_and_only_while_it_is_full(disk: Path) -> None:
    limits = {"max_upload_bytes": 2 * MIB, "min_free_disk_bytes": 2 * MIB}
    with Server(disk / "data", **limits) as server:
        ready = server.upload(picture(), preset="draft", steps=50)
        server.wait_for_status(ready["id"], "ready")
        fitting = server.upload(picture(128), steps=10_000_000)
        server.wait_for_version(fitting["id"], 1)

        # Uploads fill it as far as they may, something else the rest.
        answers = [_upload(server, _noise(seed)) for seed in range(DISK_BYTES // (2 * MIB))]
        refused = answers[-1]
        assert refused.status_code == 507, refused.text
        assert refused.json()["error"]["limit"] == "min_free_disk_bytes"
        _fill(disk / "something else")

        address = f"/scenes/{ready['id']}"
        assert server.client.patch(address, json={"title": "x"}).status_code == 507
        for path in (address, "/scenes", f"{address}/file", f"{address}/original", f"{address}/events"):
            with server.client.stream("GET", path) as answer:
                assert answer.status_code == 200, path
        for size in range(10, 20):  # none of them was made before
            tile = server.client.get(f"/iiif/{ready['id']}/full/{size},/0/default.png")
            assert tile.status_code == 200, tile.text
        child = server.processes("acorn_svc.jobs.child")
        wait_until(lambda: not any(process.is_running() for process in child), "the fit finds no room")
        version = server.scene(fitting["id"])["version"]

        (disk / "something else").unlink()
        assert server.client.patch(address, json={"title": "x"}).status_code == 200
        kept = [answer.json()["id"] for answer in answers if answer.status_code == 201]
        for scene_id in kept:
            assert server.client.delete(f"/scenes/{scene_id}").status_code == 204
        assert _upload(server, _noise(1)).status_code == 201
        if server.scene(fitting["id"])["status"] == "failed":
            assert server.scene(fitting["id"])["error"]["code"] == "insufficient_storage"
            server.client.post(f"/scenes/{fitting['id']}/retry")
        server.wait_for_version(fitting["id"], version + 1)
        assert server.client.get("/healthz").status_code == 200
    _check(disk / "data")


def _check(data: Path) -> None:
    """Nothing is damaged, and nothing is left behind."""
    with closing(sqlite3.connect(data / "acorn.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        named = {key for (key,) in database.execute("SELECT key FROM files")}
    store = SceneStore(Settings(data=data))
    store.collect(age=0)
    assert {blob.key for blob in store.blobs.listing()} == named
    store.close()
