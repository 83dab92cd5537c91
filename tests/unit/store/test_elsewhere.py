"""Machines that share PostgreSQL and an object store, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_scene_store import PROGRESS, show, upload

from acorn_svc.errors import Unavailable
from acorn_svc.jobs.queue import JobQueue
from acorn_svc.settings import Settings
from acorn_svc.store.database import PostgresDatabase, ProgressEvent
from acorn_svc.store.scenes import SceneStore


@pytest.fixture
def machines(tmp_path: Path, database_url: str, blob_url: str) -> Iterator[list[SceneStore]]:
    """The stores of two machines; their caches hold 40 bytes."""
    urls = {"database_url": database_url, "blob_url": blob_url, "blob_cache_bytes": 40}
    stores = [SceneStore(Settings(data=tmp_path / name, **urls)) for name in ("here", "there")]
    yield stores
    for store in stores:
        store.close()


def test_what_one_machine_keeps_another_reads(machines: list[SceneStore]) -> None:
    here, there = machines
    scene_id = upload(here, b"a picture")
    show(here, scene_id, b"a snapshot", b"a state")
    assert there.original(scene_id).read_bytes() == b"a picture"
    assert there.local(there.snapshot(scene_id)).read_bytes() == b"a snapshot"
    assert [path.read_bytes() for path in there.checkpoints(scene_id)] == [b"a state"]
    with pytest.raises(BlockingIOError):
        here.head_now(scene_id)
    there.delete(scene_id)
    assert not list(here.blobs.listing())


def test_copies_take_no_more_than_their_cache(machines: list[SceneStore], tmp_path: Path) -> None:
    here, there = machines
    contents = [f"picture {number:2}".encode() for number in range(6)]  # of 10 bytes
    scenes = [upload(here, content) for content in contents]
    for scene_id, content in zip(scenes, contents, strict=True):
        assert there.original(scenes[0]).read_bytes() == contents[0]  # in use all the time
        assert there.original(scene_id).read_bytes() == content
    copies = {path.read_bytes() for path in (tmp_path / "there" / "cache").rglob("*") if path.is_file()}
    assert copies == {contents[0], *contents[-3:]}
    large = upload(here, b"x" * 50)
    assert there.original(large).read_bytes() == b"x" * 50
    assert there.original(scenes[1]).read_bytes() == contents[1]


def test_many_who_want_the_same_file_fetch_it_once(
    machines: list[SceneStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = machines
    scene_id = upload(here, b"a picture")
    fetched = []
    download = there.blobs._download  # type: ignore[attr-defined]

    def counted(key: str, path: Path) -> None:
        fetched.append(key)
        download(key, path)

    monkeypatch.setattr(there.blobs, "_download", counted)
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda _: there.original(scene_id).read_bytes(), range(8)))
    assert contents == [b"a picture"] * 8
    assert len(fetched) == 1


def test_an_object_store_that_is_away_is_told(
    machines: list[SceneStore], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here, _ = machines
    scene_id = upload(here, b"a picture")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    away = SceneStore(here.settings.model_copy(update={"data": tmp_path / "away"}))
    for attempt in (lambda: away.original(scene_id), lambda: upload(away, b"other"), lambda: away.collect(0)):
        with pytest.raises(Unavailable, match="object store"):
            attempt()
    away.close()
    assert here.page(10).total == 1


def test_progress_that_a_crash_has_undone_is_forgotten(machines: list[SceneStore]) -> None:
    here, there = machines
    scene_id = upload(here, b"a picture")
    for step in (1, 5, 9):
        here.note_progress(scene_id, 0, PROGRESS | {"step": step})
    there.forget_progress_after(scene_id, 0, 5)
    assert [event.data["step"] for event in there.progress_after(scene_id, 0)] == [1, 5]
    with here.database.read() as session:
        assert session.query(ProgressEvent).count() == 2


def test_jobs_are_queued_in_the_same_commit(machines: list[SceneStore]) -> None:
    here, there = machines
    queues = [JobQueue(store, 10) for store in machines]
    scene_id = upload(here, b"a picture")
    queues[0].cancel(scene_id)
    assert queues[1].retry(scene_id).run == 2
    assert there.get(scene_id).status == "queued"
    assert queues[1].signs() == set(), "it isn't lost"
    for queue in queues:
        queue.close()


def test_several_processes_may_make_the_tables_at_once(database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for database in pool.map(PostgresDatabase, [database_url] * 4):
            database.close()
