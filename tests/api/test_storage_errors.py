"""What goes wrong beneath the service is told by its kind, without details."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import psycopg
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError
from test_scenes import image_bytes

from acorn_svc.api import errors
from acorn_svc.api.app import create_app
from acorn_svc.settings import Settings


def _in_database(error: Exception) -> OperationalError:
    return OperationalError("SELECT secret", {}, error)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 507, "insufficient_storage"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 507, "insufficient_storage"),
        (OSError(errno.EIO, "Input/output error"), 500, "internal"),
        (_in_database(sqlite3.OperationalError("database or disk is full")), 507, "insufficient_storage"),
        (_in_database(sqlite3.OperationalError("database is locked")), 503, "unavailable"),
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
    assert "secret" not in answer.text


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
