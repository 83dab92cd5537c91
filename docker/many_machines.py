"""Runs the set-up of compose.many.yaml as processes of this machine, and kills some of them.

    python docker/many_machines.py [--scenes 20]

PostgreSQL, an object store, two API servers behind the proxy of docker/Caddyfile, and three workers, all on
the loopback addresses. While pictures are uploaded and fitted through the proxy, one worker and one API
server are ended with SIGKILL. Every upload that was acknowledged must become a scene whose file is, byte by
byte, that of a fit which nothing interrupted, and must have been finished once.

Needs the extra `test`, PostgreSQL and Caddy (Debian: apt install postgresql caddy).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import psycopg

import acorn_svc
from acorn_svc.client import Client
from acorn_svc.errors import Unavailable
from acorn_svc.formats.container import field_to_bytes
from acorn_svc.formats.images import encode_image

REPOSITORY = Path(__file__).parents[1]
sys.path.append(str(REPOSITORY / "tests"))
from servers import running_object_store, running_postgres  # noqa: E402

STEPS = 4000
SIDE = 64
PATIENCE_SECONDS = 600
SETTINGS = {
    "ACORN_EMBEDDED_WORKERS": "0",
    "ACORN_JOB_THREADS": "1",
    "ACORN_CHECKPOINT_SECONDS": "0.5",
    "ACORN_LEASE_SECONDS": "6",
    "ACORN_HEARTBEAT_SECONDS": "1",
}
T = TypeVar("T")


class Machines:
    """The processes that stand for machines; all gone when this is left."""

    def __init__(self, folder: Path, shared: dict[str, str]) -> None:
        self._folder = folder
        self._environment = {**os.environ, **shared, **SETTINGS}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *_error: object) -> None:
        for name in self._processes:
            self.kill(name)

    def start(self, name: str, *command: str, **environment: str) -> None:
        """Start a process with a data folder and a log file of its own."""
        own = {"ACORN_DATA": str(self._folder / name), "HOME": str(self._folder), **environment}
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                command, env={**self._environment, **own}, stderr=log, stdout=log, start_new_session=True
            )

    def kill(self, name: str) -> None:
        """End the process and all below it at once, as a loss of power would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._processes[name].pid, signal.SIGKILL)
        self._processes[name].wait()

    def log(self, name: str) -> str:
        """What the process has written so far."""
        return (self._folder / f"{name}.log").read_text()

    def require_alive(self) -> None:
        """Fail, with what it wrote last, when a process has ended by itself."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} has ended:\n{self.log(name)[-3000:]}")


def main() -> None:
    """Run it all, and say what came of it."""
    parser = argparse.ArgumentParser(description="Runs many machines on this one, and kills some.")
    parser.add_argument("--scenes", type=int, default=20)
    count = parser.parse_args().scenes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything ends with this
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # the object store's requests
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(running_postgres()).format(name="postgres")
        objects = stack.enter_context(running_object_store())
        shared = {"ACORN_DATABASE_URL": database, "ACORN_BLOB_URL": f"{objects}/acorn"}
        machines = stack.enter_context(Machines(folder, shared))
        url = start_all(machines)
        say(f"Two API servers, three workers, a proxy: {url}")
        pictures = [picture(number) for number in range(count)]
        scenes = upload_while_killing(machines, url, pictures)
        say("All are fitted")
        wrong = [number for number, scene in enumerate(scenes) if not is_right(url, scene, pictures[number])]
        assert not wrong, f"scenes {wrong} are not what an uninterrupted fit makes"
        check_database(database, scenes)
        taken_over = sum(machines.log(f"worker-{n}").count("a job was lost") for n in range(3))
    print(f"{count} scenes, each byte by byte as without any interruption, each finished once.")
    print(f"One API server and one worker were killed; {taken_over} jobs were taken over.")


def start_all(machines: Machines) -> str:
    """Start every machine and wait until the proxy answers; its URL."""
    ports = {name: free_port() for name in ("api-1", "api-2", "proxy")}
    acorn = (sys.executable, "-m", "acorn_svc.cli")
    for name in ("api-1", "api-2"):
        machines.start(name, *acorn, "serve", ACORN_PORT=str(ports[name]))
    for number in range(3):
        machines.start(f"worker-{number}", *acorn, "worker")
    machines.start(
        "proxy",
        *("caddy", "run", "--adapter", "caddyfile", "--config", str(REPOSITORY / "docker" / "Caddyfile")),
        ACORN_PORT=str(ports["proxy"]),
        ACORN_SERVERS=f"127.0.0.1:{ports['api-1']} 127.0.0.1:{ports['api-2']}",
        ACORN_LB_POLICY="round_robin",
    )
    for port in ports.values():
        patiently(Client(f"http://127.0.0.1:{port}").is_ready, machines.require_alive)
    return f"http://127.0.0.1:{ports['proxy']}"


def upload_while_killing(machines: Machines, url: str, pictures: list[bytes]) -> list[str]:
    """Every picture's scene, fitted; in the middle of it all one API server and one worker die."""
    acorn = Client(url)
    middle = len(pictures) // 2

    def upload(number: int) -> str:
        if number == middle:
            machines.kill("api-1")
            say("Killed one API server while pictures are uploaded")
        content = pictures[number]
        return patiently(lambda: acorn.upload(content, preset="draft", steps=STEPS)).id

    with ThreadPoolExecutor(4) as pool:
        scenes = list(pool.map(upload, range(len(pictures))))
    say(f"{len(scenes)} uploads are acknowledged")
    victim = wait_for_a_busy_worker(machines)
    machines.kill(victim)
    say(f"Killed {victim} in the middle of a fit")
    for scene in scenes:
        acorn.wait(scene, seconds=PATIENCE_SECONDS)
    return scenes


def wait_for_a_busy_worker(machines: Machines) -> str:
    """A worker that has begun more fits than it has ended."""
    while True:
        for number in range(3):
            log = machines.log(f"worker-{number}")
            if log.count("fit starts") > log.count("fit ends"):
                return f"worker-{number}"
        time.sleep(0.1)


def is_right(url: str, scene_id: str, content: bytes) -> bool:
    """Whether the scene's file is that of a fit which nothing interrupted."""
    with tempfile.TemporaryDirectory() as folder:
        original, kept = Path(folder, "original.png"), Path(folder, "kept.acorn")
        original.write_bytes(content)
        patiently(lambda: Client(url).download(scene_id, kept))
        field = acorn_svc.fit(original, "draft", steps=STEPS, threads=1)
        return kept.read_bytes() == field_to_bytes(field)


def check_database(database: str, scenes: list[str]) -> None:
    """No scene was finished twice, and none is there that nobody asked for, but for unanswered uploads."""
    query = "SELECT scene_id FROM progress_events WHERE data->>'stage' = 'done'"
    with psycopg.connect(database) as connection:
        finished = [row[0] for row in connection.execute(query)]
        unready = connection.execute("SELECT count(*) FROM scenes WHERE status <> 'ready'").fetchone()
    assert unready == (0,), f"{unready} scenes are not ready"
    assert len(finished) == len(set(finished)), "a scene was finished twice"
    assert set(scenes) <= set(finished)


def picture(seed: int) -> bytes:
    """A PNG of its own: smooth colours with a sharp disc somewhere in it."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    across, down, red = np.random.default_rng(seed).random(3)
    disc = (x - across) ** 2 + (y - down) ** 2 < 0.05
    pixels = np.stack([x * red, y, np.where(disc, 1.0, 0.2)], axis=-1)
    return encode_image((pixels * 255).astype(np.uint8), "png")


def patiently(ask: Callable[[], T], meanwhile: Callable[[], object] = lambda: None) -> T:
    """What `ask` returns, as soon as the service can be reached."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except Unavailable:
            if time.monotonic() > end:
                raise
            meanwhile()
            time.sleep(0.2)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


BEGIN = time.monotonic()


def say(what: str) -> None:
    """Tell people how far it is."""
    print(f"==> [{time.monotonic() - BEGIN:3.0f} s] {what}", flush=True)


if __name__ == "__main__":
    main()
