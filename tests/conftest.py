"""Rules for the whole test suite.

A test that lacks a system tool, a GPU or a data set skips and names what it lacks. Where everything
is meant to be there (`ACORN_REQUIRE_ALL_TESTS=1`, as `.ci/run` sets it) such a skip is a failure;
only tests marked `gpu` may skip then.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

REQUIRE_ALL_TESTS = os.environ.get("ACORN_REQUIRE_ALL_TESTS", "") not in ("", "0")


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
