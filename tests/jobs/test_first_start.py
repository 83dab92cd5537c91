"""Machines that start for the first time, all at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from acorn_svc.jobs.queue import JobQueue
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import SceneStore, Status

MACHINES = 3


def test_many_machines_make_the_tables_of_a_new_database_together(database_url: str, tmp_path: Path) -> None:
    def start(number: int) -> list[int]:
        store = SceneStore(Settings(data=tmp_path / str(number), database_url=database_url))
        jobs = JobQueue(store, 10)
        try:
            return store.counts(Status.QUEUED, Status.FITTING)
        finally:
            jobs.close()
            store.close()

    with ThreadPoolExecutor(MACHINES) as pool:
        assert list(pool.map(start, range(MACHINES))) == [[0, 0]] * MACHINES
