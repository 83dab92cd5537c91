"""The worker: one process that runs jobs one after the other, and who keeps it running.

    server ── lifeline ──▶ worker (this module, DBOS) ── lifeline ──▶ child (one fit)

Stopping is a crash that waits for a last checkpoint: nothing else is needed, since every job goes
on after a crash.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import IO

import structlog
from dbos import DBOS, DBOSConfig

from acorn_svc.errors import Conflict
from acorn_svc.jobs.process import end, hold_lifeline, spawn
from acorn_svc.jobs.queue import APPLICATION, JOBS_VERSION, QUEUE, JobQueue
from acorn_svc.jobs.workflow import Watcher, register
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import SceneStore

EXECUTOR = "embedded"
POLLING_SECONDS = 0.25
RESTART_SECONDS = 1.0
DRAIN_MARGIN_SECONDS = 5

log = structlog.get_logger()


def main() -> None:
    """Run jobs until SIGTERM, or until the parent is gone."""
    hold_lifeline()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the server decides
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    settings = Settings()
    with lock_folder(settings.data, "worker.lock", wait=True):
        watcher = start(settings)
        stop.wait()
        watcher.stop(settings.shutdown_seconds)
        os._exit(0)  # DBOS would wait for steps that are not to end


def start(settings: Settings) -> Watcher:
    """Take up jobs from now on, those first that an earlier worker left unfinished."""
    store = SceneStore(settings)
    jobs = JobQueue(store, settings.max_queued_jobs)
    watcher = Watcher(store, settings)
    config = DBOSConfig(
        name=APPLICATION,
        system_database_engine=store.database.engine,
        application_version=JOBS_VERSION,
        executor_id=EXECUTOR,
        log_level="WARNING",
    )
    DBOS(config=config)
    register(watcher.watch)
    jobs.restore_lost()
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=POLLING_SECONDS)
    return watcher


def lock_folder(data: Path, name: str, *, wait: bool) -> IO[bytes]:
    """Lock the data folder for as long as the returned file is open; the system unlocks it.

    Raises Conflict when another process has it and `wait` is false.
    """
    data.mkdir(parents=True, exist_ok=True)
    lock = (data / name).open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        lock.close()
        raise Conflict("Another server already uses this data folder.") from None
    return lock


class EmbeddedWorker:
    """Starts the worker process, starts it again when it dies, and ends it with the server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_running, name="worker", daemon=True)

    def start(self) -> None:
        """Start the process and watch over it."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the process is there at this moment."""
        return self._process is not None and self._process.poll() is None

    def ask_to_stop(self) -> None:
        """Let running jobs make a last checkpoint and end; returns at once."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()

    def stop(self) -> None:
        """End the process, after its jobs have made a checkpoint if that's soon enough."""
        self.ask_to_stop()
        self._thread.join(self._settings.shutdown_seconds + DRAIN_MARGIN_SECONDS)
        if self._process is not None:
            end(self._process)

    def _keep_running(self) -> None:
        while not self._stopping.is_set():
            self._process = spawn(
                "acorn_svc.jobs.worker", environment=self._settings.environment(), talks=False
            )
            if self._stopping.is_set():  # asked between the two lines above
                self._process.terminate()
            status = self._process.wait()
            if not self._stopping.wait(RESTART_SECONDS):
                log.error("the worker ended and is started again", exit=status)


if __name__ == "__main__":
    main()
