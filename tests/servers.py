"""PostgreSQL and an object store, started for tests and gone after them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import httpx2
import pytest

# Debian keeps the programs out of the way of people who only want the client.
PLACES = os.pathsep.join([os.environ.get("PATH", ""), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
# Tests lose nothing with the disk that they don't wait for.
OPTIONS = "-c fsync=off -c listen_addresses='' -c unix_socket_directories={folder} -c max_connections=200"


@contextmanager
def running_postgres() -> Iterator[str]:
    """A PostgreSQL server of its own; yields the URL of its databases, with `{name}` in it."""
    initdb, pg_ctl = (shutil.which(name, path=PLACES) for name in ("initdb", "pg_ctl"))
    if initdb is None or pg_ctl is None:
        pytest.skip("PostgreSQL isn't installed")
    # Root may not run it, and nobody else may look into pytest's folders.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if user is not None:
            shutil.chown(folder, user)
        data = Path(folder, "data")

        def run(*command: str) -> None:
            subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=120)

        run(initdb, "--pgdata", str(data), "--username=acorn", "--auth=trust", "--no-sync")
        control = (pg_ctl, "--pgdata", str(data), "--wait", "--log", f"{folder}/log")
        run(*control, "--options", OPTIONS.format(folder=folder), "start")
        try:
            yield f"postgresql://acorn@/{{name}}?host={folder}"
        finally:
            run(*control, "--mode=immediate", "stop")


@contextmanager
def running_object_store() -> Iterator[str]:
    """An S3 server of its own, which the environment points to; yields the URL of a bucket."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    endpoint = f"http://127.0.0.1:{port}"
    httpx2.put(f"{endpoint}/bucket").raise_for_status()
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_REGION": "us-east-1",
    }
    with mock.patch.dict(os.environ, variables):
        yield "s3://bucket"
    server.stop()
