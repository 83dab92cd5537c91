"""A process that dies at any system call, or whose disk is full from there on, leaves the state from
before or the one after, never one between; what it leaves behind besides is removed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import operations
import pytest
from driver import DONE, FAILED
from operations import BACKUP, OPERATIONS
from sqlalchemy import text
from upload_operations import described_uploads

from acorn_svc.settings import Settings
from acorn_svc.store.backup import restore_backup
from acorn_svc.store.scenes import Scene, SceneStore

pytestmark = pytest.mark.torture
PROGRAM = Path(__file__).with_name("driver.py")
KILLED = -9
# What needs room on the disk, or waits until something is there.
NEED_ROOM = {"write", "pwrite64", "fsync", "fdatasync", "link", "mkdir"}
CLOCKS = {"created_at", "updated_at", "queued_at"}

State = list[dict[str, Any]]
Amount = Callable[[int, int], int]
Tell = Callable[[str, object], None]


class Bench:
    """A data folder that is put back to how it was before each operation."""

    def __init__(self, folder: Path, driver: subprocess.Popen[str]) -> None:
        self.data = folder / "data"
        self._template = folder / "template"
        self._driver = driver
        store = SceneStore(Settings(data=self._template))
        operations.fill(store)
        store.close()

    def reset(self) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
        (self.data.parent / BACKUP).unlink(missing_ok=True)
        shutil.copytree(self._template, self.data)

    def run(self, operation: str, inject: str | None = None, *, again: bool = False) -> dict[str, Any]:
        """Do it in a process of its own: how it ended, and its system calls."""
        request = {"operation": operation, "data": str(self.data), "inject": inject, "again": again}
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        self._driver.stdin.write(json.dumps(request) + "\n")
        self._driver.stdin.flush()
        answer: dict[str, Any] = json.loads(self._driver.stdout.readline())
        return answer

    def state(self) -> State:
        """What a server finds that starts now, after a look at whether all is well."""
        store = SceneStore(Settings(data=self.data))
        try:
            state = _described(store) + described_uploads(store)
            store.collect(age=0)
            _check_files(store)
            return state
        finally:
            store.close()

    def check_backup(self, expected: State) -> None:
        """A backup that has its name is whole."""
        backup, target = self.data.parent / BACKUP, self.data.parent / "restored"
        if backup.exists():
            restore_backup(backup, Settings(data=target))
            store = SceneStore(Settings(data=target))
            assert _described(store) == [row for row in expected if "upload" not in row]
            store.close()
            shutil.rmtree(target)


def _described(store: SceneStore) -> State:
    columns = [column.key for column in Scene.__table__.columns if column.key not in CLOCKS]
    return [
        {
            **{name: getattr(scene, name) for name in columns},
            "original": store.original(scene.id).read_bytes(),
            "snapshot": store.local(store.snapshot(scene.id)).read_bytes() if scene.version else None,
            "checkpoints": [path.read_bytes() for path in store.checkpoints(scene.id)],
            "events": [event.data for event in store.progress_after(scene.id, 0)],
        }
        for scene in store.page(100).items
    ]


def _check_files(store: SceneStore) -> None:
    """Nothing is there but what rows name, which is whole."""
    assert not list(store.blobs.spool.iterdir())
    with store.database.read() as session:
        assert session.scalar(text("PRAGMA integrity_check")) == "ok"
        assert not session.execute(text("PRAGMA foreign_key_check")).all()
        named = set(session.scalars(text("SELECT key FROM files")))
    assert {blob.key for blob in store.blobs.listing()} == named
    for key in named:
        path = store.blobs.local(key)
        assert path.stat().st_mode & 0o777 == 0o444
        if key.startswith("originals/"):
            assert path.name == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if shutil.which("strace") is None:
        pytest.skip("strace isn't installed")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, PROGRAM], stdin=pipe, stdout=pipe, text=True) as driver:
        yield Bench(tmp_path_factory.mktemp("crash"), driver)
        driver.communicate(timeout=60)


def _points(calls: dict[str, int], names: set[str], most: int) -> list[tuple[str, int]]:
    """System calls by name and number, at most so many, from everywhere in the operation."""
    every = [(name, number) for name in sorted(names & set(calls)) for number in range(1, calls[name] + 1)]
    step = max(1, len(every) / most)
    return [every[int(index * step)] for index in range(min(most, len(every)))]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_at_any_system_call(bench: Bench, operation: str, amount: Amount, tell: Tell) -> None:
    bench.reset()
    before = bench.state()
    bench.reset()
    whole = bench.run(operation)
    assert whole["status"] == DONE
    after = bench.state()
    points = _points(whole["calls"], set(whole["calls"]), amount(3, 10_000))
    for name, number in points:
        inject = f"{name}:signal=KILL:when={number}"
        bench.reset()
        assert bench.run(operation, inject)["status"] == KILLED, inject
        for _ in range(amount(0, 1)):  # once more, while what was left is being removed
            bench.run("collect", inject)
        found = bench.state()
        assert found in (before, after), inject
        bench.check_backup(before)
        if found == before:
            assert bench.run(operation)["status"] == DONE, inject
            assert bench.state() == after, inject
    tell("system calls at which it was killed", len(points))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_disk_full_at_any_write(bench: Bench, operation: str, amount: Amount, tell: Tell) -> None:
    bench.reset()
    before = bench.state()
    bench.reset()
    whole = bench.run(operation)
    after = bench.state()
    points = _points(whole["calls"], NEED_ROOM, amount(1, 10_000))
    for name, number in points:
        # for good, until someone makes room
        inject = f"{name}:error=ENOSPC:when={number}+"
        bench.reset()
        status = bench.run(operation, inject)["status"]
        assert status in (DONE, FAILED), inject
        assert bench.state() in ((before, after) if status == FAILED else (after,)), inject
        bench.check_backup(before)
        # for a moment: the same process goes on when there is room again
        inject = f"{name}:error=ENOSPC:when={number}"
        bench.reset()
        assert bench.run(operation, inject, again=True)["status"] == DONE, inject
        assert bench.state() == after, inject
    tell("writes at which the disk was full", len(points))
