"""The worker: a process that runs jobs one after the other, and who keeps embedded ones running.

    server ── lifeline ──▶ embedded worker (this module, DBOS) ── lifeline ──▶ child (one fit)
    acorn worker: the same, alone (this module, DBOS) ── lifeline ──▶ child (one fit)

Any number of workers share one database: DBOS gives each job to one of them, and what one of them loses
another takes over. A worker is told apart from all others, also from itself before a restart, so that
nobody but the reaper decides that it is dead.
"""

from __future__ import annotations

import fcntl
import os
import platform
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import IO

import structlog
from dbos import DBOS, DBOSConfig

from acorn_svc import logs
from acorn_svc.errors import Conflict
from acorn_svc.jobs import life
from acorn_svc.jobs.process import Message, end, hold_lifeline, spawn
from acorn_svc.jobs.queue import APPLICATION, JOBS_VERSION, QUEUE, JobQueue
from acorn_svc.jobs.reaper import Reaper, keep_reaping
from acorn_svc.jobs.workflow import Child, Watcher, begin_fit, register
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import SceneStore, now

POLLING_SECONDS = 0.25
RESTART_SECONDS = 1.0

log = structlog.get_logger()


def main() -> None:
    """Be an embedded worker: run jobs until SIGTERM, or until the server is gone."""
    hold_lifeline()
    run(Settings(), stop_on=(signal.SIGTERM,))  # Ctrl-C reaches the group; the server decides


def run(
    settings: Settings,
    begin: Callable[[Message], Child] = begin_fit,
    stop_on: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT),
) -> None:
    """Run jobs until a signal of `stop_on`; then keep a checkpoint of the one that runs, and end the process.

    `begin` starts the child of a job.
    """
    stop = threading.Event()
    logs.configure(settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in stop_on:
        signal.signal(number, lambda *_: stop.set())
    watcher = _start(settings, begin, stop)
    stop.wait()
    watcher.stop(settings.shutdown_seconds)
    os._exit(0)  # DBOS would wait for steps that are not to end


def _start(settings: Settings, begin: Callable[[Message], Child], stop: threading.Event) -> Watcher:
    """Take up jobs from now on, and those that other workers lose."""
    store = SceneStore(settings)
    jobs = JobQueue(store, settings.max_queued_jobs, settings.max_queued_jobs_per_key)
    watcher = Watcher(store, jobs, settings, begin)
    config = DBOSConfig(
        name=APPLICATION,
        system_database_engine=store.database.engine,
        application_version=JOBS_VERSION,
        executor_id=f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}",
        log_level="WARNING",
    )
    DBOS(config=config)
    register(watcher.watch)
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=POLLING_SECONDS)
    tidying = partial(tidy, store, jobs, settings)
    reaping = (Reaper(jobs, settings.lease_seconds), tidying, settings.heartbeat_seconds, stop)
    threading.Thread(target=keep_reaping, args=reaping, name="reaper", daemon=True).start()
    return watcher


def tidy(store: SceneStore, jobs: JobQueue, settings: Settings) -> None:
    """Forget what nobody needs of jobs that are over, and what dead workers left in this machine's spool."""
    store.blobs.sweep_spool(settings.gc_age_seconds)
    jobs.prune()
    store.forget_history(now() - timedelta(days=settings.history_days), *life.OVER)


def lock_folder(data: Path, name: str) -> IO[bytes]:
    """Lock the data folder for as long as the returned file is open; the system unlocks it.

    Raises Conflict when another process has it.
    """
    data.mkdir(parents=True, exist_ok=True)
    lock = (data / name).open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise Conflict("Another server already uses this data folder.") from None
    return lock


class EmbeddedWorkers:
    """Starts the worker processes of a server, starts them again when they die, and ends them with it."""

    def __init__(self, settings: Settings) -> None:
        self._workers = [_EmbeddedWorker(settings) for _ in range(settings.embedded_workers)]

    def start(self) -> None:
        """Start the processes and watch over them."""
        for worker in self._workers:
            worker.start()

    @property
    def alive(self) -> bool:
        """Whether every process is there at this moment."""
        return all(worker.alive for worker in self._workers)

    def ask_to_stop(self) -> None:
        """Let running jobs make a last checkpoint and end; returns at once."""
        for worker in self._workers:
            worker.ask_to_stop()

    def stop(self, seconds: float) -> None:
        """End the processes: those that haven't ended by themselves after `seconds`, at once."""
        self.ask_to_stop()
        deadline = time.monotonic() + seconds
        for worker in self._workers:
            worker.stop(deadline - time.monotonic())


class _EmbeddedWorker:
    """One of them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_running, name="worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ask_to_stop(self) -> None:
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()

    def stop(self, seconds: float) -> None:
        self._thread.join(max(seconds, 0))
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
