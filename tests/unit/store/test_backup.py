"""Backups are whole, of one moment, and come back anywhere."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from test_scene_store import ELSEWHERE, HERE, files, show, store, upload  # noqa: F401  `store` is a fixture

from acorn_svc.errors import BadInput, Conflict
from acorn_svc.jobs.queue import JobQueue
from acorn_svc.jobs.reaper import Reaper
from acorn_svc.settings import Settings
from acorn_svc.store.audit import AuditEntry, AuditLog
from acorn_svc.store.backup import restore_backup, write_backup
from acorn_svc.store.database import Upload
from acorn_svc.store.keys import KeyStore, Scope, digest_of
from acorn_svc.store.scenes import Collected, Scene, SceneStore, Status, open_blobs
from acorn_svc.store.uploads import UploadStore


@pytest.fixture
def filled(store: SceneStore) -> SceneStore:  # noqa: F811
    """A store with two scenes, one of them being fitted."""
    upload(store, b"a field", "acorn")
    show(store, upload(store, b"a picture"), b"a snapshot", b"a state")
    return store


@pytest.fixture(params=["backup", "backup.tar"])
def backup(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where the backup goes: a folder, or a tar file."""
    return tmp_path / str(request.param)


@pytest.fixture
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Where nothing is yet."""
    urls = {}
    if request.param == ELSEWHERE:
        urls = {name: request.getfixturevalue(name) for name in ("database_url", "blob_url")}
    return Settings(data=tmp_path / "restored", **urls)


@pytest.fixture
def restored(tmp_path: Path) -> Settings:
    """An empty data folder."""
    return Settings(data=tmp_path / "restored")


def test_keys_come_back_and_unfinished_uploads_do_not(
    filled: SceneStore, backup: Path, restored: Settings
) -> None:
    keys = KeyStore(filled.database, 10)
    key, text = keys.create("me", Scope.ADMIN, None)
    secret = keys.signing_secret()
    AuditLog(filled.database, 10).add(AuditEntry(caller="key:1", name="me", action="POST /keys", status=201))
    UploadStore(filled).create(100, "", {}, None)
    write_backup(filled, backup)
    restore_backup(backup, restored)
    back = SceneStore(restored)
    known = KeyStore(back.database, 10)
    assert known.signing_secret() == secret
    found = known.find(digest_of(text))
    assert found is not None
    assert found.id == key.id
    with back.database.read() as session:
        assert session.scalar(select(func.count()).select_from(AuditEntry)) == 1
        assert session.scalar(select(func.count()).select_from(Upload)) == 0


def described(store: SceneStore) -> list[dict[str, object]]:  # noqa: F811
    """Everything that the rows of the scenes say, and what their files hold."""
    scenes = store.page(100).items
    columns = [column.key for column in Scene.__table__.columns]
    return [
        {
            **{name: getattr(scene, name) for name in columns},
            "original": store.original(scene.id).read_bytes(),
            "snapshot": store.local(store.snapshot(scene.id)).read_bytes(),
            "checkpoints": [path.read_bytes() for path in store.checkpoints(scene.id)],
            "events": [(event.id, event.data) for event in store.progress_after(scene.id, 0)],
        }
        for scene in scenes
    ]


@pytest.mark.parametrize(("store", "empty"), [(HERE, ELSEWHERE), (ELSEWHERE, HERE)], indirect=True)
def test_what_is_restored_is_what_was_there(filled: SceneStore, backup: Path, empty: Settings) -> None:
    made = write_backup(filled, backup)
    assert (made.scenes, made.files, made.missing) == (2, 4, ())
    assert restore_backup(backup, empty) == made
    again = SceneStore(empty)
    assert described(again) == described(filled)
    assert files(again) == files(filled)
    show(again, again.page(1).items[0].id, b"the next", b"the next state")  # rows get new numbers
    again.close()
    with pytest.raises(Conflict, match="empty data folder"):
        restore_backup(backup, empty)
    with pytest.raises(Conflict, match="exists already"):
        write_backup(filled, backup)


def test_a_fit_and_uploads_go_on_meanwhile(tmp_path: Path, backup: Path, restored: Settings) -> None:
    busy = SceneStore(Settings(data=tmp_path / "data"))
    fitting = upload(busy, b"a picture")
    stop, begun = threading.Event(), threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            show(busy, fitting, b"snapshot %d" % number, b"state %d" % number)
            busy.delete(upload(busy, b"picture %d" % number))
            upload(busy, b"kept picture %d" % number)
            begun.set()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    made = write_backup(busy, backup)
    stop.set()
    thread.join()
    busy.close()
    assert restore_backup(backup, restored) == made
    store = SceneStore(restored)  # noqa: F811
    version = store.get(fitting).version
    assert version >= 1
    assert store.local(store.snapshot(fitting)).read_bytes() == b"snapshot %d" % version
    newest, *_older = store.checkpoints(fitting)
    assert newest.read_bytes() == b"state %d" % version
    originals = {store.original(scene.id).read_bytes() for scene in store.page(1000).items}
    assert b"kept picture %d" % (version - 1) in originals or version == 1
    assert store.collect(age=0) == Collected(), "nothing is in it that no scene needs"
    store.close()


def test_jobs_that_waited_are_queued_anew(tmp_path: Path, restored: Settings) -> None:
    here = SceneStore(Settings(data=tmp_path / "data"))
    scene_id = upload(here, b"a picture")
    with here.edit(scene_id) as scene:
        scene.status = Status.QUEUED
    write_backup(here, tmp_path / "backup")
    here.close()
    restore_backup(tmp_path / "backup", restored)
    store = SceneStore(restored)  # noqa: F811
    jobs = JobQueue(store, 10)
    Reaper(jobs, lease_seconds=0).look()
    assert jobs.signs() == set(), "it waits where a worker finds it"
    assert (store.get(scene_id).status, store.get(scene_id).run) == (Status.QUEUED, 1)
    jobs.close()
    store.close()


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Path]:
    """A backup, to be damaged; it is refused afterwards, and nothing is left of the attempt."""
    here = SceneStore(Settings(data=tmp_path / "data"))
    upload(here, b"a picture")
    write_backup(here, tmp_path / "backup")
    here.close()
    yield tmp_path / "backup"
    target = tmp_path / "restored"
    with pytest.raises(BadInput, match=r"damaged|neither|later version"):
        restore_backup(tmp_path / "backup", Settings(data=target))
    assert not list(target.glob("*"))


def test_a_changed_file_is_refused(damaged: Path) -> None:
    (path,) = (damaged / "blobs" / "originals").iterdir()
    path.write_bytes(b"A picture")


def test_a_cut_file_is_refused(damaged: Path) -> None:
    (path,) = (damaged / "blobs" / "originals").iterdir()
    path.write_bytes(b"a pic")


def test_a_missing_file_is_refused(damaged: Path) -> None:
    (path,) = (damaged / "blobs" / "originals").iterdir()
    path.unlink()


def test_changed_rows_are_refused(damaged: Path) -> None:
    content = bytearray((damaged / "acorn.sqlite").read_bytes())
    content[-1] ^= 1
    (damaged / "acorn.sqlite").write_bytes(content)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "files": {}}', '{"format": 1, "files": 3}'])
def test_a_manifest_that_makes_no_sense_is_refused(damaged: Path, text: str) -> None:
    (damaged / "manifest.json").write_text(text)


@pytest.mark.parametrize("name", ["blobs/../../outside", "blobs//etc/passwd", "outside", "blobs/a/.b"])
def test_a_manifest_that_leads_elsewhere_is_refused(damaged: Path, name: str) -> None:
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["files"][name] = manifest["files"]["acorn.sqlite"]
    (damaged / "manifest.json").write_text(json.dumps(manifest))


def test_the_format_of_a_later_version_is_refused(damaged: Path) -> None:
    manifest = json.loads((damaged / "manifest.json").read_text())
    (damaged / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))


def test_a_restore_that_fails_says_why_and_can_be_repeated(
    filled: SceneStore, tmp_path: Path, blob_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into a volume, which cannot be removed itself; first the database is away, then a file is damaged."""
    write_backup(filled, tmp_path / "backup")
    settings = Settings(data=tmp_path / "volume", blob_url=blob_url)
    away = settings.model_copy(update={"database_url": "postgresql://acorn@127.0.0.1:1/acorn"})
    settings.data.mkdir()
    rmdir = os.rmdir

    def refuse(path: str, **options: int) -> None:
        if Path(path) == settings.data:
            raise OSError(errno.EBUSY, "Device or resource busy")
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(OperationalError):
        restore_backup(tmp_path / "backup", away)
    last = max((tmp_path / "backup" / "blobs").rglob("*-*"))
    whole = last.read_bytes()
    last.write_bytes(b"other")
    kept = _keys(blob_url, tmp_path)
    with pytest.raises(BadInput, match="has changed"):
        restore_backup(tmp_path / "backup", settings)
    assert _keys(blob_url, tmp_path) == kept, "what was there before stays, and nothing else"
    last.write_bytes(whole)
    assert restore_backup(tmp_path / "backup", settings).scenes == 2


def _keys(blob_url: str, folder: Path) -> set[str]:
    return {blob.key for blob in open_blobs(Settings(data=folder / "onlooker", blob_url=blob_url)).listing()}


def test_a_backup_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = SceneStore(Settings(data=tmp_path / "data"))
    upload(here, b"a picture")

    def fail(_key: str) -> Path:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(here.blobs, "local", fail)
    for name in ("backup", "backup.tar"):
        with pytest.raises(OSError, match="Input/output"):
            write_backup(here, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    here.close()


def test_a_file_that_was_lost_is_told(tmp_path: Path) -> None:
    here = SceneStore(Settings(data=tmp_path / "data"))
    here.original(upload(here, b"a picture")).unlink()
    upload(here, b"another picture")
    made = write_backup(here, tmp_path / "backup")
    here.close()
    assert (made.scenes, made.files) == (2, 1)
    assert len(made.missing) == 1
    assert made.missing[0].startswith("originals/")
