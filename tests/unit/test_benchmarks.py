"""What the benchmarks of the operations count and divide."""

from __future__ import annotations

import csv
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from acorn_svc.field.ops import reference
from benchmarks import __main__ as program
from benchmarks import operations, serving
from benchmarks.clients import Reply
from benchmarks.measurement import LEAST_ROUNDS, Measurement, Times, interleaved, ratio
from benchmarks.operations import Case, Effort, least_seconds
from benchmarks.peaks import COPY, Peak, peaks

TINY = Effort(seconds=0, patches=4, sides=(16,), rendering=16, batch=4, steps=1)


class Clock:
    """Time that passes only when something is done."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


def test_actions_take_turns_and_their_own_time() -> None:
    clock, order = Clock(), ""

    def action(name: str, seconds: float) -> None:
        nonlocal order
        order += name
        clock.spend(seconds)

    slow, fast = interleaved([lambda: action("s", 0.5), lambda: action("f", 0.25)], 0, clock)
    assert len(slow) == len(fast) == LEAST_ROUNDS
    assert slow == pytest.approx(0.5)
    assert fast == pytest.approx(0.25)
    assert order == "sfsf" + "sf" * LEAST_ROUNDS


def test_short_actions_are_called_often_enough_to_be_timed() -> None:
    clock = Clock()
    (times,) = interleaved([lambda: clock.spend(1e-3)], 0, clock)
    assert times == pytest.approx(1e-3)
    assert clock.now == pytest.approx((2 + 20 * LEAST_ROUNDS) * 1e-3)


def test_ratios_compare_the_shortest_and_each_round() -> None:
    found = ratio(np.array([4.0, 9.0, 6.0]), np.array([2.0, 3.0, 1.0]))
    assert found == (4.0, 3.0)


@pytest.mark.parametrize(
    ("lanes", "multiply_adds", "least"),
    [("narrow", 100, 10.0), ("wide", 100, 5.0), ("", 100, 5.0), ("wide", 1, 0.8)],
    ids=["its own", "another", "the first", "memory"],
)
def test_a_limit_is_the_longer_of_computing_and_moving(lanes: str, multiply_adds: int, least: float) -> None:
    limits = [Peak(COPY, 100, lambda: None), Peak("wide", 20, lambda: None), Peak("narrow", 10, lambda: None)]
    times: dict[str, Times] = {name: np.ones(2) for name in (COPY, "wide", "narrow")}
    case = Case("case", samples=1, multiply_adds=multiply_adds, moved=80, call=lambda _: None)
    assert least_seconds(case, limits, times, lanes) == pytest.approx([least, least])


def test_the_default_preset_is_counted() -> None:
    assert (operations.INTERPOLATION, operations.DECODER) == (80, 1472)
    assert operations.LEARNING == 3 * 1472 + 2 * 80


def test_every_case_runs() -> None:
    cases = list(operations._cases(TINY, "cpu"))
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        case.call(reference)


def test_the_limits_do_their_work() -> None:
    found = peaks("cpu", 1)
    assert found[0].name == COPY
    assert len(found) > 1
    for peak in found:
        peak.action()
        assert peak.work > 0


@pytest.mark.parametrize("threads", [1, 3])
def test_the_copy_copies(threads: int) -> None:
    native = pytest.importorskip("acorn_svc._native", reason="the native module was not built")
    values, out = np.arange(1001, dtype=np.float32), np.zeros(1001, np.float32)
    native.copy(values, out, threads)
    np.testing.assert_array_equal(out, values)


def test_more_rounds_are_more_multiply_adds() -> None:
    native = pytest.importorskip("acorn_svc._native", reason="the native module was not built")
    for lanes in native.lanes():
        once = native.multiply_adds(lanes, 1, 1)
        assert once > 0
        assert native.multiply_adds(lanes, 7, 1) == 7 * once


def test_no_tile_is_asked_for_twice_but_the_one_that_is_cached() -> None:
    clock, asked = Clock(), Counter[str]()

    def get(path: str) -> bytes:
        clock.spend(1.0 if path == "/healthz" else 0.25 if asked[path] else 4.0)
        asked[path] += 1
        return b""

    found = {(row.case, row.metric): row.value for row in serving.requests(get, "scene", 20, clock)}
    for metric in ("median", "min", "p90"):
        assert found["cold tile", metric] == 4000.0
        assert found["cached tile", metric] == 250.0
        assert found["/healthz", metric] == 1000.0
    assert sorted(asked.values()) == [1] * 20 + [20, 21]


def test_an_overload_is_told_by_what_was_accepted_and_what_refused() -> None:
    def replies(status: int, seconds: float, count: int) -> list[Reply]:
        return [Reply("/", status, seconds, b"", 0)] * count

    flood = replies(200, 0.2, 30) + replies(503, 0.01, 70)
    rows = serving.overload(replies(200, 0.05, 9), capacity=32, flood=flood, seconds=2)
    found = {row.metric: row.value for row in rows}
    assert found == pytest.approx(
        {"capacity": 32, "offered": 50, "accepted": 15, "p99 unloaded": 50, "p99 accepted": 200,
         "bound of p99 accepted": 2 * 50 + 1000 * 64 / 32, "p50 refused": 10, "p99 refused": 10}
    )  # fmt: skip
    with pytest.raises(OSError, match="neither"):
        list(serving.overload(flood, 1, replies(500, 1, 1), 1))


def test_tiles_are_whole_and_differ() -> None:
    paths = list(islice(serving.tiles("scene"), 1000))
    assert len(set(paths)) == len(paths)
    assert paths[0] == "/iiif/scene/0,0,256,256/256,/0/default.jpg"


@pytest.mark.slow
def test_a_real_server_is_measured() -> None:
    units = {row.case: row.unit for row in serving.measure(quick=True)}
    assert {"cold tile", "cached tile", "/healthz", "256 x 256 render, threads 1"} <= units.keys()


def test_a_part_replaces_its_own_rows_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    value = 1.0
    parts = {name: lambda _, name=name: iter([Measurement(name, "time", value, "s")]) for name in "ab"}
    monkeypatch.setattr(program, "BENCHMARKS", parts)
    output = tmp_path / "found.tsv"
    program.main(["--output", str(output)])
    value = 2.0
    program.main(["b", "--output", str(output)])
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    assert {row["benchmark"]: float(row["value"]) for row in rows} == {"a": 1.0, "b": 2.0}
    assert len(rows) == len(parts)
