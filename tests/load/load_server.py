"""A server as a process of its own, without a worker, with one scene and short deadlines."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import psutil
import torch

from acorn_svc.field.base import empty_tree, initial_parameters
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.model import Field
from acorn_svc.field.state import Architecture, Signal
from acorn_svc.formats.container import write_field
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import Scene, SceneStore, Status, new_id

# On a lifeline, so that no server is left behind by tests that were themselves killed.
PROGRAM = """
import gc

from acorn_svc.api.app import create_app
from acorn_svc.api.server import Server
from acorn_svc.jobs.process import hold_lifeline
from acorn_svc.settings import Settings

hold_lifeline()
settings = Settings()
gc.freeze()
Server(create_app(settings), settings).run()
"""
HOST = "127.0.0.1"
SIDE, TILE = 512, 256
PATIENCE_SECONDS = 120


def noise(side: int) -> Field:
    """A field whose picture is noise: its parameters are as before a fit, but livelier."""
    signal, architecture = Signal(side, side, 3, 8), Architecture()
    lattice = Lattice.build(empty_tree(signal, architecture.cells), architecture.cells)
    parameters = initial_parameters(architecture, signal, lattice, torch.Generator().manual_seed(0))
    lively = {name: tensor * 20 for name, tensor in parameters.items() if "features" in name}
    return Field(signal, architecture, lattice, {**parameters, **lively})


def add_scene(data: Path, field: Field, status: Status = Status.READY) -> str:
    """The id of a scene that shows `field`, in a data folder that no server has open."""
    store = SceneStore(Settings(data=data))
    upload = store.blobs.spool_file()
    write_field(upload, field)
    scene = Scene(
        id=new_id(),
        status=status,
        version=1,
        width=field.width,
        height=field.height,
        channels=field.channels,
        bit_depth=field.bit_depth,
        bytes_original=upload.stat().st_size,
        format_original="acorn",
        preset="custom",
        encoder=field.encoder,
    )
    store.create(scene, upload)
    store.close()
    return str(scene.id)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that must happen; how long it takes on a busy machine is no matter."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.05)


class LoadServer:
    """One server process with one scene; starts on entering, is gone on leaving."""

    def __init__(self, data: Path, **settings: object) -> None:
        self.port = _free_port()
        self.settings = Settings.model_validate({"data": data, "port": self.port, **settings})

    def __enter__(self) -> LoadServer:
        self.scene = add_scene(self.settings.data, noise(SIDE))
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **self.settings.environment()},
        )
        self.client = httpx2.Client(base_url=f"http://{HOST}:{self.port}", timeout=60)
        wait_until(self._answers, "the server answers")
        self.seen = psutil.Process(self.process.pid)
        return self

    def __exit__(self, *_error: object) -> None:
        self.client.close()
        self.process.kill()
        self.process.communicate()

    def _answers(self) -> bool:
        assert self.process.poll() is None, "the server ended at its start"
        with contextlib.suppress(httpx2.TransportError):
            return self.client.get("/healthz").is_success
        return False

    def connect(self, source: str = HOST) -> socket.socket:
        """A connection from an address of this machine: all of 127.0.0.0/8 are."""
        return socket.create_connection((HOST, self.port), timeout=60, source_address=(source, 0))

    def tiles(self, stride: int = 1) -> Iterator[str]:
        """Paths of tiles, each of them another one, for ever."""
        places = itertools.cycle(itertools.product(range(0, TILE, stride), repeat=2))
        return (f"/iiif/{self.scene}/{x},{y},{TILE},{TILE}/{TILE},/0/default.jpg" for y, x in places)

    @property
    def connections(self) -> int:
        """Clients that are connected."""
        return sum(one.status == psutil.CONN_ESTABLISHED for one in self.seen.net_connections("tcp"))

    @property
    def descriptors(self) -> int:
        """Files and connections that are open, but for the database's: a pool keeps a few of those."""
        pooled = sum("acorn.sqlite" in file.path for file in self.seen.open_files())
        return self.seen.num_fds() - pooled

    @property
    def threads(self) -> int:
        """Threads that there are."""
        return self.seen.num_threads()

    @property
    def memory(self) -> int:
        """Bytes in memory."""
        return int(self.seen.memory_info().rss)


def roomy_server(data: Path) -> LoadServer:
    """For one address that asks for more than can be done; tiles are dropped soon, and rendered again."""
    limits = {"max_connections_per_address": 2000, "max_connections": 2000, "keep_alive_seconds": 2}
    return LoadServer(data, tile_cache_bytes=2**21, field_cache_bytes=2**25, **limits)


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])
