"""Uploads in parts: what only the store knows of them, without a server."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from acorn_svc.errors import BadImage, Conflict, InsufficientStorage, NotFound, TooManyRequests, Unavailable
from acorn_svc.settings import MIB, Settings
from acorn_svc.store import database, promises, uploads
from acorn_svc.store.scenes import SceneStore
from acorn_svc.store.uploads import UploadStore

PATIENCE_SECONDS = 30
FINISH_TWICE = """
import os, tempfile
from pathlib import Path
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import SceneStore
from acorn_svc.store.uploads import UploadStore

if os.geteuid() == 0:  # who may write to every file
    os.setgid(65534), os.setuid(65534)
with tempfile.TemporaryDirectory() as folder:
    store = SceneStore(Settings(data=Path(folder)))
    uploads = UploadStore(store)
    upload = uploads.create(5, "", {}, None)
    writer = uploads.take_over(upload.id, 0)
    writer.write(b"bytes"), writer.keep(), writer.close()

    def publish(upload, file, sha256, also):
        store.blobs.publish(file, f"originals/{sha256}")
        raise ConnectionError("the database is gone")

    def look(upload, file, sha256, also):
        print(file.read_text())

    for make in (publish, look):
        try:
            uploads.finish(upload.id, None, make)
        except ConnectionError as error:
            print(error)
    store.close()
"""


@pytest.fixture
def scenes(tmp_path: Path) -> Iterator[SceneStore]:
    settings = Settings(
        data=tmp_path, max_upload_bytes=MIB, max_unfinished_bytes=8 * MIB, max_unfinished_uploads=16
    )
    scenes = SceneStore(settings)
    yield scenes
    scenes.close()


@pytest.fixture
def store(scenes: SceneStore) -> UploadStore:
    return UploadStore(scenes)


def begin(store: UploadStore, length: int, owner: str | None = None) -> str:
    return store.create(length, "", {}, None, owner).id


def test_whoever_may_not_write_to_published_files_can_finish_again() -> None:
    done = subprocess.run([sys.executable, "-c", FINISH_TWICE], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("the database is gone\nbytes\n", 0), done.stderr


def test_what_nobody_begins_to_send_is_soon_forgotten(
    store: UploadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsent = [begin(store, MIB) for _ in range(6)]
    for upload_id in unsent[3:]:
        writer = store.take_over(upload_id, 0)
        writer.close(), writer.withdraw()
    sent = begin(store, MIB)
    store.take_over(sent, 0).close()
    later = database.now() + timedelta(minutes=11)
    monkeypatch.setattr(promises, "now", lambda: later)
    for upload_id in unsent:
        with pytest.raises(NotFound):
            store.get(upload_id)
    for _ in range(7):
        begin(store, MIB)
    store.sweep()
    assert store.expires_at(store.get(sent)) > later


def test_whoever_withdraws_takes_no_turn_from_others(store: UploadStore) -> None:
    upload_id = begin(store, MIB)
    first, second = store.take_over(upload_id, 0), store.take_over(upload_id, 0)
    first.withdraw()
    assert store.get(upload_id).turn > 0, "the second is there"
    second.withdraw()
    assert store.get(upload_id).turn <= 0
    third = store.take_over(upload_id, 0)
    with pytest.raises(Conflict):
        first.write(b"x")
    third.write(b"x"), third.keep(), third.withdraw()
    assert (store.get(upload_id).received, store.get(upload_id).turn) == (1, 3)
    for writer in (first, second, third):
        writer.close()


def test_nobody_waits_for_a_check(store: UploadStore) -> None:
    upload_id = begin(store, 4)
    early, last = store.take_over(upload_id, 0), store.take_over(upload_id, 0)
    last.write(b"abcd"), last.keep()

    def check(*_: object) -> None:
        with pytest.raises(Conflict):
            others.submit(early.write, b"x").result(PATIENCE_SECONDS)
        raise BadImage("This isn't an image.")

    with ThreadPoolExecutor(1) as others, pytest.raises(BadImage):
        store.finish(upload_id, last.sha256, check)
    early.close(), last.close()


def test_who_has_the_turn_does_not_wait_for_long(
    store: UploadStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "STEP_SECONDS", 0)
    upload_id = begin(store, 4)
    writer = store.take_over(upload_id, 0)
    writer.write(b"ab")
    with ThreadPoolExecutor(1) as others, (tmp_path / "uploads" / upload_id).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Unavailable):
            others.submit(writer.write, b"cd").result(PATIENCE_SECONDS)
        store.settle(upload_id)
        fcntl.flock(file, fcntl.LOCK_UN)
    writer.write(b"cd"), writer.keep(), writer.close()
    assert store.get(upload_id).is_complete


@pytest.mark.parametrize(("seconds", "size", "counted"), [(0, 1, 1), (60, 8, 8), (60, 7, 0)])
def test_what_is_written_counts_after_a_while(
    store: UploadStore, monkeypatch: pytest.MonkeyPatch, seconds: float, size: int, counted: int
) -> None:
    monkeypatch.setattr(uploads, "KEEP_SECONDS", seconds)
    monkeypatch.setattr(uploads, "KEEP_BYTES", 8)
    upload_id = begin(store, MIB)
    writer = store.take_over(upload_id, 0)
    writer.write(bytes(size))
    assert store.get(upload_id).received == counted
    writer.close()
    whole = store.take_over(upload_id, counted, as_a_whole=True)
    whole.write(bytes(size))
    store.settle(upload_id)
    assert store.get(upload_id).received == counted
    whole.close()


def test_room_that_is_promised_is_not_there_for_others(
    store: UploadStore, scenes: SceneStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_be_free(monkeypatch, scenes.settings.min_free_disk_bytes + 1000)
    upload_id = begin(store, 600)
    scenes.require_room(400)
    for require in (scenes.require_room, scenes.require_disk):
        with pytest.raises(InsufficientStorage) as caught:
            require(401)
        assert caught.value.limit == "min_free_disk_bytes"
    store.delete(upload_id)
    scenes.require_room(1000)


def test_what_others_have_filled_is_not_written_to(
    store: UploadStore, scenes: SceneStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = scenes.settings.min_free_disk_bytes
    upload_id = begin(store, 4)
    writer = store.take_over(upload_id, 0)
    writer.write(b"a")
    let_be_free(monkeypatch, least + 2)
    with pytest.raises(InsufficientStorage):
        writer.write(b"bcd")
    store.settle(upload_id)
    assert store.get(upload_id).received == 1
    let_be_free(monkeypatch, least + 3)
    writer.write(b"bcd"), writer.keep(), writer.close()
    assert store.get(upload_id).is_complete


def let_be_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let the disk have `free` bytes left."""
    usage = type("Usage", (), {"free": free})()
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)


def test_one_owner_takes_a_quarter_of_the_bytes(store: UploadStore) -> None:
    begin(store, MIB, "key:a"), begin(store, MIB, "key:a")
    with pytest.raises(TooManyRequests) as caught:
        begin(store, 1, "key:a")
    assert (caught.value.limit, caught.value.value) == ("max_unfinished_bytes", 2 * MIB)
    begin(store, MIB, "key:b"), begin(store, MIB)


def test_one_owner_takes_a_quarter_of_the_places(store: UploadStore) -> None:
    for _ in range(4):
        begin(store, 1, "key:a")
    with pytest.raises(TooManyRequests) as caught:
        begin(store, 1, "key:a")
    assert (caught.value.limit, caught.value.value) == ("max_unfinished_uploads", 4)
    for _ in range(5):
        begin(store, 1)
