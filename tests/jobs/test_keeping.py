"""What the child of a fit keeps, and when; it runs in this process."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from acorn_svc.formats.images import encode_image
from acorn_svc.jobs import child
from acorn_svc.jobs.inspection import file_limits
from acorn_svc.jobs.process import Message
from acorn_svc.settings import Settings
from acorn_svc.training.loop import _Run

ENDLESS = 10_000_000


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Message]]]:
    """Fits a small image, from a checkpoint or from none; returns what was said."""
    original = tmp_path / "original"
    original.write_bytes(encode_image(np.zeros((8, 8, 3), np.uint8), "png"))
    terminate = signal.getsignal(signal.SIGTERM)

    def fit(
        steps: int,
        checkpoint_seconds: float,
        checkpoint: str | None = None,
        heard: Callable[[Message], None] = lambda _message: None,
    ) -> list[Message]:
        said: list[Message] = []

        def say(message: Message) -> None:
            said.append(message)
            heard(message)

        monkeypatch.setattr(child, "say", say)
        request = {
            "original": str(original),
            "checkpoints": [checkpoint] if checkpoint else [],
            "spool": str(tmp_path),
            "limits": file_limits(Settings(data=tmp_path)),
            "options": {"preset": "draft", "steps": steps, "threads": 1},
            "checkpoint_seconds": checkpoint_seconds,
        }
        child._run(child.FitJob.from_request(request))
        return said

    yield fit
    signal.signal(signal.SIGTERM, terminate)


def _kept(said: list[Message]) -> list[Message]:
    return [message for message in said if message["say"] == "snapshot"]


def test_a_step_that_was_kept_is_not_kept_again(fit: Callable[..., list[Message]]) -> None:
    """It would pass for progress: a fit that always dies at its end would never be given up."""
    kept = _kept(fit(steps=30, checkpoint_seconds=0))
    steps = [message["progress"]["step"] for message in kept]
    assert steps == sorted(set(steps))
    assert steps[-1] == 30
    again = fit(steps=30, checkpoint_seconds=0, checkpoint=kept[-1]["checkpoint"])
    assert again[0] == {"say": "started", "step": 30}
    assert _kept(again) == []
    assert again[-1]["say"] == "done"


def test_a_long_set_up_makes_no_checkpoint_due(
    fit: Callable[..., list[Message]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or each start would keep one step more, and a fit that always dies at its end begin for ever."""
    checkpoint = _kept(fit(ENDLESS, checkpoint_seconds=0, heard=_stop_at("snapshot")))[0]["checkpoint"]
    moment, resume = [0.0], _Run.resume

    def slow_resume(*arguments: Any) -> _Run:
        moment[0] = 100.0
        return resume(*arguments)

    monkeypatch.setattr(_Run, "resume", slow_resume)
    monkeypatch.setattr(child, "time", SimpleNamespace(monotonic=lambda: moment[0]))
    said = fit(ENDLESS, checkpoint_seconds=10, checkpoint=checkpoint, heard=_stop_at("progress"))
    assert [message["say"] for message in said[:2]] == ["started", "progress"]


def test_a_fit_that_is_asked_to_end_while_it_speaks_keeps_where_it_is(
    fit: Callable[..., list[Message]],
) -> None:
    said = fit(ENDLESS, checkpoint_seconds=1000, heard=_stop_at("progress"))
    assert said[-1]["say"] == "snapshot"
    assert said[-1]["progress"]["step"] > 0


def _stop_at(words: str) -> Callable[[Message], None]:
    """Ask the fit to end while it says this."""

    def heard(message: Message) -> None:
        if message["say"] == words:
            signal.raise_signal(signal.SIGTERM)

    return heard
