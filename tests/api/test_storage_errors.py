"""What goes wrong beneath the service is told by its kind, without details."""

from __future__ import annotations

import errno
import sqlite3

import psycopg
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from acorn_svc.api import errors


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
