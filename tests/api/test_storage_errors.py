"""What goes wrong beneath the service is told by its kind, without details."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import psycopg
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from test_scenes import image_bytes

from acorn_svc.api import errors
from acorn_svc.api.app import create_app
from acorn_svc.settings import Settings


def _in_database(error: Exception) -> OperationalError:
    return OperationalError("SELECT secret", {}, error)


def _of_sqlite(code: int) -> OperationalError:
    error = sqlite3.OperationalError("in words that depend on the version")
    error.sqlite_errorcode = code
    return _in_database(error)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 507, "insufficient_storage"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 507, "insufficient_storage"),
        (OSError(errno.EIO, "Input/output error"), 500, "internal"),
        (_of_sqlite(sqlite3.SQLITE_FULL), 507, "insufficient_storage"),
        (_of_sqlite(sqlite3.SQLITE_BUSY), 503, "unavailable"),
        (_of_sqlite(sqlite3.SQLITE_LOCKED_SHAREDCACHE), 503, "unavailable"),
        (_of_sqlite(sqlite3.SQLITE_IOERR), 503, "unavailable"),
        (_of_sqlite(sqlite3.SQLITE_IOERR_FSYNC), 503, "unavailable"),
        (_of_sqlite(sqlite3.SQLITE_CANTOPEN), 503, "unavailable"),
        (_of_sqlite(sqlite3.SQLITE_ERROR), 500, "internal"),
        (_in_database(sqlite3.OperationalError("no such table: secret")), 500, "internal"),
        (_in_database(psycopg.errors.DiskFull("could not extend file")), 507, "insufficient_storage"),
        (_in_database(psycopg.errors.LockNotAvailable("lock timeout")), 503, "unavailable"),
        (_in_database(psycopg.OperationalError("connection refused")), 503, "unavailable"),
    ],
)
def test_each_kind_has_its_status(error: Exception, status: int, code: str) -> None:
    app = FastAPI()
    errors.install(app)

    @app.get("/")
    def fail() -> None:
        raise error

    answer = TestClient(app, raise_server_exceptions=False).get("/")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert ("retry-after" in answer.headers) == (status == 503)
    assert "secret" not in answer.text


def test_a_database_that_may_not_grow_is_a_full_disk(tmp_path: Path) -> None:
    key = "an-admin-key-of-32-characters-or-more"
    with TestClient(create_app(Settings(data=tmp_path, admin_key=SecretStr(key)))) as client:
        engine = client.app.state.store.database.engine  # type: ignore[attr-defined]
        event.listen(engine, "checkout", _allow_no_more_pages)
        wanted = {"name": "x" * 100, "scope": "read"}
        answers = (
            client.post("/keys", json=wanted, headers={"Authorization": f"Bearer {key}"}) for _ in range(1000)
        )
        refused = next(answer for answer in answers if answer.status_code != 201)
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "insufficient_storage")
        assert client.get("/scenes").status_code == 200, "reading goes on"


def _allow_no_more_pages(connection: sqlite3.Connection, *_: object) -> None:
    connection.execute("PRAGMA max_page_count = 1")


def test_a_database_whose_file_cannot_be_read_is_one_to_ask_again(tmp_path: Path) -> None:
    with TestClient(create_app(Settings(data=tmp_path))) as client:
        engine = client.app.state.store.database.engine  # type: ignore[attr-defined]
        engine.dispose()
        for file in tmp_path.glob("acorn.sqlite*"):
            file.unlink()
        (tmp_path / "acorn.sqlite").mkdir()
        answer = client.get("/scenes")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_uploads_beyond_the_quota_are_refused_by_its_name(tmp_path: Path) -> None:
    content = image_bytes()
    settings = Settings(data=tmp_path, store_quota_bytes=2 * len(content))
    with TestClient(create_app(settings)) as client:
        assert client.post("/scenes", content=content).status_code == 201
        assert client.post("/scenes", content=content).status_code == 201, "it is kept once"
        refused = client.post("/scenes", content=image_bytes(size=(40, 40)))
        assert refused.status_code == 507
        error = refused.json()["error"]
        assert (error["limit"], error["value"]) == ("store_quota_bytes", 2 * len(content))
        assert client.get("/scenes").json()["total"] == 2
        scene_id = client.get("/scenes").json()["items"][0]["id"]
        assert client.get(f"/scenes/{scene_id}/original").content == content
    assert len(list((tmp_path / "blobs" / "originals").iterdir())) == 1
    assert not list((tmp_path / "blobs" / "spool").iterdir())
