"""Scenes and their files: what a row names is there, what none names goes."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from acorn_svc.errors import Conflict, InsufficientStorage, NotFound
from acorn_svc.settings import Settings
from acorn_svc.store.database import Beginning, File
from acorn_svc.store.scenes import Collected, Scene, SceneStore, Status, new_id, now

HERE, ELSEWHERE = "SQLite and a folder", "PostgreSQL and an object store"
PROGRESS = {"stage": "fitting", "step": 1}


@pytest.fixture
def folder_store(tmp_path: Path) -> Iterator[SceneStore]:
    store = SceneStore(Settings(data=tmp_path / "data", store_quota_bytes=1000))
    yield store
    store.close()


@pytest.fixture(params=[HERE, ELSEWHERE])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SceneStore]:
    urls = {}
    if request.param == ELSEWHERE:
        urls = {name: request.getfixturevalue(name) for name in ("database_url", "blob_url")}
    store = SceneStore(Settings(data=tmp_path / "data", store_quota_bytes=1000, **urls))
    yield store
    store.close()


def upload(store: SceneStore, content: bytes, format_original: str = "png") -> str:
    path = store.blobs.spool_file()
    path.write_bytes(content)
    ready = format_original == "acorn"
    scene = Scene(
        id=new_id(),
        status=Status.READY if ready else Status.FITTING,
        version=int(ready),
        bytes_original=len(content),
        format_original=format_original,
        preset="draft",
        encoder="grid",
    )
    return store.create(scene, path).id


def show(store: SceneStore, scene_id: str, content: bytes, state: bytes | None = None, run: int = 0) -> None:
    """Publish a snapshot, and a checkpoint if there is a state."""
    made = []
    for part in (content, state):
        path = None
        if part is not None:
            path = store.blobs.spool_file()
            path.write_bytes(part)
        made.append(path)
    assert made[0] is not None
    store.publish_snapshot(scene_id, run, made[0], PROGRESS, made[1])


def files(store: SceneStore) -> set[bytes]:
    """The contents of all published files, once the spool is empty."""
    assert not list(store.blobs.spool.iterdir())
    paths = [store.blobs.local(blob.key) for blob in store.blobs.listing()]
    contents = [path.read_bytes() for path in paths]
    assert len(set(contents)) == len(contents), "each content is there once"
    return set(contents)


def make_older(store: SceneStore, hours: float) -> None:
    """Let the database have been there for so long."""
    with store.database.write() as session:
        session.execute(update(Beginning).values(at=now() - timedelta(hours=hours)))


def leave(store: SceneStore, key: str) -> None:
    """Publish a file that no row names, as a crash may do."""
    path = store.blobs.spool_file()
    path.write_bytes(b"rubbish")
    store.blobs.publish(path, key)
    path.unlink()


def test_the_same_content_is_kept_once_and_goes_with_its_last_scene(store: SceneStore) -> None:
    first, second = upload(store, b"a picture"), upload(store, b"a picture")
    other = upload(store, b"another picture")
    digest = hashlib.sha256(b"a picture").hexdigest()
    assert store.original(first) == store.original(second)
    assert store.original(first).name == digest
    assert store.bytes_used() == len(b"a picture") + len(b"another picture")
    store.delete(first)
    assert store.original(second).read_bytes() == b"a picture"
    store.delete(second)
    assert files(store) == {b"another picture"}
    with pytest.raises(NotFound):
        store.original(second)
    assert store.original(other).read_bytes() == b"another picture"


def test_content_that_is_deleted_while_it_is_uploaded_again_is_kept(store: SceneStore) -> None:
    for _ in range(5):
        first = upload(store, b"a picture")
        uploaded: list[str] = []
        thread = threading.Thread(target=lambda: uploaded.append(upload(store, b"a picture")))  # noqa: B023
        thread.start()
        store.delete(first)
        thread.join()
        assert store.original(uploaded[0]).read_bytes() == b"a picture"
        store.delete(uploaded[0])
    assert files(store) == set()


def test_content_that_vanishes_between_its_publishing_and_its_row_comes_again(
    store: SceneStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = upload(store, b"a picture")
    publish = store.blobs.publish

    def publish_then_lose(source: Path, key: str) -> None:
        publish(source, key)
        monkeypatch.undo()
        store.delete(first)

    monkeypatch.setattr(store.blobs, "publish", publish_then_lose)
    second = upload(store, b"a picture")
    assert store.original(second).read_bytes() == b"a picture"


def test_an_uploaded_field_is_its_own_snapshot(store: SceneStore) -> None:
    scene_id = upload(store, b"a field", "acorn")
    assert store.local(store.snapshot(scene_id)) == store.original(scene_id)
    assert store.bytes_used() == len(b"a field")
    store.delete(scene_id)
    assert files(store) == set()


def test_the_newest_two_snapshots_and_checkpoints_are_kept_until_the_fit_is_done(store: SceneStore) -> None:
    scene_id = upload(store, b"a picture")
    for number in range(4):
        show(store, scene_id, b"snapshot %d" % number, b"state %d" % number)
    assert store.snapshot(scene_id).version == 4
    assert store.local(store.snapshot(scene_id)).read_bytes() == b"snapshot 3"
    assert [path.read_bytes() for path in store.checkpoints(scene_id)] == [b"state 3", b"state 2"]
    assert files(store) == {b"a picture", b"snapshot 3", b"snapshot 2", b"state 3", b"state 2"}
    last = store.blobs.spool_file()
    last.write_bytes(b"the last")
    store.publish_snapshot(
        scene_id, 0, last, PROGRESS, then=lambda scene: setattr(scene, "status", Status.READY)
    )
    assert files(store) == {b"a picture", b"snapshot 3", b"the last"}


def test_a_job_that_was_replaced_publishes_nothing_and_changes_nothing(store: SceneStore) -> None:
    scene_id = upload(store, b"a picture")
    show(store, scene_id, b"a snapshot", b"a state")
    with store.edit(scene_id) as scene:
        scene.run += 1
    before = files(store), store.snapshot(scene_id)
    path, state = store.blobs.spool_file(), store.blobs.spool_file()
    path.write_bytes(b"too late")
    state.write_bytes(b"too late as well")
    with pytest.raises(Conflict):
        store.publish_snapshot(scene_id, 0, path, PROGRESS, state)
    path.unlink()
    state.unlink()
    assert (files(store), store.snapshot(scene_id)) == before


def test_a_snapshot_whose_scene_was_deleted_goes_too(store: SceneStore) -> None:
    scene_id = upload(store, b"a picture")
    store.delete(scene_id)
    with pytest.raises(NotFound):
        show(store, scene_id, b"too late")
    for leftover in store.blobs.spool.iterdir():
        leftover.unlink()
    assert files(store) == set()


def test_published_files_are_read_only(folder_store: SceneStore) -> None:
    scene_id = upload(folder_store, b"a picture")
    assert folder_store.original(scene_id).stat().st_mode & 0o777 == 0o444


def test_only_what_is_old_and_unnamed_is_collected(folder_store: SceneStore) -> None:
    store = folder_store
    make_older(store, hours=2)
    scene_id = upload(store, b"a picture")
    show(store, scene_id, b"a snapshot", b"a state")
    wanted = files(store)
    old, new, folder = store.blobs.spool_file(), store.blobs.spool_file(), store.blobs.spool_file()
    for path in (old, new):
        path.write_bytes(b"rubbish")
        store.blobs.publish(path, f"snapshots/{path.name}")
    folder.mkdir()
    (folder / "piece").write_bytes(b"a piece")
    an_hour_ago = old.stat().st_mtime - 3600
    for path in (old, folder / "piece", folder):
        os.utime(path, (an_hour_ago, an_hour_ago))
    collected = store.collect(age=1800)
    assert (collected.files, collected.bytes) == (1, len(b"rubbish"))
    assert list(store.blobs.spool.iterdir()) == [new]
    assert store.collect(age=0).files == 1
    assert files(store) == wanted


def test_files_from_before_the_database_are_not_its_rubbish(folder_store: SceneStore) -> None:
    """A new database beside the files of one that is lost, or whose rows aren't back yet."""
    upload(folder_store, b"a picture")
    lost = folder_store.original(upload(folder_store, b"a picture of before"))
    with folder_store.database.write() as session:
        session.query(File).filter(File.key.endswith(lost.name)).delete()
    make_older(folder_store, hours=2)
    os.utime(lost, (lost.stat().st_atime, lost.stat().st_mtime - 3 * 3600))
    assert folder_store.collect(age=0) == Collected(foreign=1)
    make_older(folder_store, hours=4)
    assert folder_store.collect(age=0).files == 1


def test_where_no_file_is_named_none_is_rubbish(store: SceneStore, tmp_path: Path) -> None:
    """Whose database this is, which may be older than the files, cannot be told."""
    other = SceneStore(Settings(data=tmp_path / "other"))
    upload(other, b"the picture of another database")
    make_older(other, hours=2)
    upload(store, b"a picture")
    other.blobs = store.blobs
    assert other.collect(age=0) == Collected(foreign=1)
    other.close()
    assert files(store) == {b"a picture"}


def test_what_others_keep_beside_the_scenes_is_left_alone(store: SceneStore) -> None:
    make_older(store, hours=2)
    upload(store, b"a picture")
    for key in ("snapshots/rubbish", "photos/mine"):
        leave(store, key)
    assert store.collect(age=0).files == 1
    assert {blob.key.partition("/")[0] for blob in store.blobs.listing()} == {"originals", "photos"}


def test_room_is_refused_by_the_name_of_its_limit(store: SceneStore) -> None:
    upload(store, b"x" * 600)
    store.require_room(400)
    with pytest.raises(InsufficientStorage) as refused:
        store.require_room(401)
    assert (refused.value.limit, refused.value.value) == ("store_quota_bytes", 1000)
    with pytest.raises(InsufficientStorage, match="take all the room"):
        upload(store, b"y" * 500)
    assert store.bytes_used() == 600
