"""Fuzzing: what was found once stays found, a short random run, and under torture a guided one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import TARGETS

FUZZ = Path(__file__).parent
CORPUS = FUZZ / "corpus"
TORTURE = os.environ.get("ACORN_TORTURE", "") not in ("", "0")
MEMORY_MIB = 2560  # of the process, of which PyTorch takes most
SECONDS_PER_INPUT = 20

Amount = Callable[[int, int], int]
Tell = Callable[[str, object], None]
SHORT = settings(
    max_examples=40, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

# How a good input is spoiled: where (a share of its length), how many bytes go, and what comes instead.
edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=4
)  # fmt: skip


@pytest.fixture(params=TARGETS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_what_was_found_stays_found(name: str) -> None:
    """Nothing but a value or one of our errors comes out."""
    target = TARGETS[name]
    kept = CORPUS / name.replace(" ", "-")
    for data in (*target.good, *(path.read_bytes() for path in sorted(kept.glob("*")))):
        target.survive(data)
    for data in target.good[:1]:
        target.run(data)


@SHORT
@given(number=st.integers(0, 99), edits=edits, noise=st.binary(max_size=200))
def test_a_short_random_run(
    name: str, number: int, edits: list[tuple[float, int, bytes]], noise: bytes
) -> None:
    target = TARGETS[name]
    target.survive(noise)
    spoiled = target.good[number % len(target.good)]
    for place, gone, put in edits:
        at = int(place * len(spoiled))
        spoiled = spoiled[:at] + put + spoiled[at + gone :]
    target.survive(spoiled)


@pytest.mark.torture
@pytest.mark.parametrize("guided", TARGETS if TORTURE else ["range"])
def test_a_guided_run_finds_nothing(guided: str, amount: Amount, tell: Tell, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed")
    (tmp_path / "corpus").mkdir()
    effort = f"-max_total_time={amount(1, 240)}" if TORTURE else "-runs=3000"
    command = [
        sys.executable, str(FUZZ / "fuzzing.py"), guided, str(tmp_path / "corpus"), effort, "-seed=1",
        f"-rss_limit_mb={MEMORY_MIB}", f"-timeout={SECONDS_PER_INPUT}", f"-artifact_prefix={tmp_path}/",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    done = [line for line in ran.stderr.splitlines() if line.startswith("Done ")]
    assert done
    tell("runs", done[-1].split()[1])
