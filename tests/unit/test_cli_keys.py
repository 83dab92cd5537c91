"""`acorn keys` and `acorn audit`: the same keys that the service asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from acorn_svc import cli
from acorn_svc.store.database import open_database
from acorn_svc.store.keys import KeyStore, Scope, digest_of

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the program on one data folder: exit code, output, errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in [*arguments, "--data", tmp_path]])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


def listed(run: Run, *command: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(run(*command, "--json")[1])
    return rows


def test_a_key_is_printed_once_and_can_be_revoked(run: Run, tmp_path: Path) -> None:
    code, out, err = run("keys", "create", "--name", "camera", "--scope", "write", "--expires-in", "90d")
    text = out.strip()
    assert code == 0
    assert text not in err
    database = open_database("", tmp_path / "acorn.sqlite")
    key = KeyStore(database, 1).find(digest_of(text))
    database.close()
    assert key is not None
    assert (key.name, key.scope, key.counts) == ("camera", Scope.WRITE, True)
    assert key.expires_at is not None
    assert abs(key.expires_at - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=10)
    assert text not in run("keys", "list")[1]
    assert [(row["id"], row["revoked_at"]) for row in listed(run, "keys", "list")] == [(key.id, None)]
    assert run("keys", "revoke", key.id)[0] == 0
    assert listed(run, "keys", "list")[0]["revoked_at"]
    for unknown in (key.id, "nothing"):
        code, _, err = run("keys", "revoke", unknown)
        assert (code, "Error:" in err) == (1, True)


def test_what_is_done_with_keys_is_written_down(run: Run) -> None:
    run("keys", "create", "--name", "x")
    run("keys", "end-links")
    entries = listed(run, "audit")
    assert [(entry["caller"], entry["action"]) for entry in entries] == [
        ("command line", "keys end-links"),
        ("command line", "keys create"),
    ]
    assert "keys create" in run("audit", "--limit", "5")[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--name", ""],
        ["--name", "x" * 101],
        ["--name", "x", "--scope", "root"],
        ["--name", "x", "--expires-in", "soon"],
        ["--name", "x", "--expires-in", "0d"],
        ["--name", "x", "--expires-in", "9999999d"],
    ],
)
def test_a_key_without_meaning_is_refused(run: Run, arguments: list[str]) -> None:
    assert run("keys", "create", *arguments)[0] == 2
    assert listed(run, "keys", "list") == []
