"""A real server for the tests of jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_server import Server


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that tests share; they don't stop it."""
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running
