"""A server without a worker, and fields that no fit was needed for."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from made_shapes import ball, made_shape

from acorn_svc.api.app import create_app
from acorn_svc.api.server import Server
from acorn_svc.field.base import empty_tree, initial_parameters
from acorn_svc.field.kinds import AnyField, as_shape
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.model import Field
from acorn_svc.field.shape import ShapeField
from acorn_svc.field.state import Architecture, Signal
from acorn_svc.formats.container import field_to_bytes, read_field, write_field
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import Scene, SceneStore, Status, new_id

CENTRE, RADIUS = (33.0, 28.0, 30.0), 22.0
"""Of a ball, in voxels."""
ORIGIN, VOXEL = (100.0, -20.0, 3.0), 0.5
"""Where its box lies in the units of its mesh, and how large a voxel is."""


def random_field(width: int, height: int, channels: int = 3, bit_depth: int = 8, seed: int = 0) -> Field:
    """A whole field whose picture is noise: its parameters are as before a fit, but livelier."""
    signal, architecture = Signal(width, height, channels, bit_depth), Architecture()
    lattice = Lattice.build(empty_tree(signal, architecture.cells), architecture.cells)
    generator = torch.Generator().manual_seed(seed)
    parameters = initial_parameters(architecture, signal, lattice, generator)
    lively = {name: tensor * 20 for name, tensor in parameters.items() if "features" in name}
    return Field(signal, architecture, lattice, {**parameters, **lively})


class Gallery:
    """A client of a server, and a way to hang pictures there without uploading them."""

    def __init__(self, client: httpx2.Client, store: SceneStore) -> None:
        self.client = client
        self.store = store

    def add(self, field: AnyField, *, status: Status = Status.READY, rights: str | None = None) -> str:
        """A scene that shows `field`; returns its id."""
        upload = self.store.blobs.spool_file()
        write_field(upload, field)
        scene = Scene(
            id=new_id(),
            status=status,
            version=1,
            bytes_original=upload.stat().st_size,
            format_original="acorn",
            preset="custom",
            encoder=field.encoder,
            rights=rights,
            **_facts(field),
        )
        return self.store.create(scene, upload).id

    def add_empty(self) -> str:
        """A scene whose fit hasn't shown anything yet."""
        upload = self.store.blobs.spool_file()
        upload.write_bytes(b"an image")
        scene = Scene(
            id=new_id(),
            status=Status.FITTING,
            width=8,
            height=8,
            channels=3,
            bit_depth=8,
            bytes_original=8,
            format_original="png",
            preset="draft",
            encoder="grid",
        )
        return self.store.create(scene, upload).id

    def publish(self, scene_id: str, field: AnyField) -> None:
        """The next version of a scene, as a running fit publishes it."""
        upload = self.store.blobs.spool_file()
        write_field(upload, field)
        progress = {
            "stage": "fitting", "step": 1, "steps": 2, "seconds": 1.0, "psnr": None,
            "blocks": len(field.blocks()), "parameters": 1, "bytes": upload.stat().st_size,
        }  # fmt: skip
        self.store.publish_snapshot(scene_id, 0, upload, progress)


def _facts(field: AnyField) -> dict[str, Any]:
    if isinstance(field, ShapeField):
        bounds = field.to_mesh_units(np.array([[0.0, 0.0, 0.0], field.signal.size])).tolist()
        shape = {"vertices": None, "faces": None, "bounds": bounds, "repairs": []}
        return {"kind": "shape", "shape": {**shape, "colours": field.signal.has_colour}}
    return {name: getattr(field, name) for name in ("width", "height", "channels", "bit_depth")}


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """`app` under the service's own server on a free port of this machine; yields its URL."""
    server = Server(app, app.state.settings)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def settings_for(data: Path) -> Settings:
    """The limits that the tests of pictures rely on."""
    return Settings(data=data, max_tile_side=4096, max_tile_pixels=4_194_304)


@pytest.fixture(scope="package")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    """One server for all tests of pictures; each test adds its own scenes."""
    app = create_app(settings_for(tmp_path_factory.mktemp("data")))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Gallery(client, app.state.store)


@pytest.fixture(scope="package")
def live_gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    """The same under a real server, for what only a network connection shows."""
    app = create_app(settings_for(tmp_path_factory.mktemp("live")))
    with served(app) as url, httpx2.Client(base_url=url, timeout=60) as client:
        yield Gallery(client, app.state.store)


@pytest.fixture(scope="package")
def ball_field() -> ShapeField:
    """A coloured ball, as its file holds it."""
    made = made_shape(ball(CENTRE, RADIUS), colour=True, origin=ORIGIN, voxel=VOXEL)
    return as_shape(read_field(field_to_bytes(made)))
