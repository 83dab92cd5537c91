"""Checks of uploads: those that somebody interrupts, where the file is not to blame, and wrong answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acorn_svc.errors import BadInput, LimitExceeded, Unavailable
from acorn_svc.jobs import inspection
from acorn_svc.jobs.inspection import ABNORMAL, Inspector
from acorn_svc.jobs.process import ORPHANED, end, spawn_child
from acorn_svc.settings import Settings

KILLED = "import os; os.kill(os.getpid(), {})"
Replace = Callable[[str], threading.Semaphore]

IMAGE = {"kind": "image", "format": "png", "width": 3, "height": 2, "channels": 1, "bit_depth": 8}
FACTS = {"vertices": 3, "faces": 1, "colours": False, "bounds": [[0, 0, 0], [1, 1, 0.5]], "repairs": ["One."]}
SHAPE = {"kind": "shape", "format": "ply", "shape": FACTS}
DONE = {
    "stage": "done", "step": 1, "steps": 1, "seconds": None, "bytes": 9, "psnr": 30.5, "iou": None,
    "blocks": 1, "parameters": 4,
}  # fmt: skip
FIELD = {**IMAGE, "format": "acorn", "encoder": "grid", "preset": "draft", "progress": DONE}


@pytest.fixture
def replace_child(monkeypatch: pytest.MonkeyPatch) -> Replace:
    """Let a short program stand for the child; what is returned is released when one starts."""

    def replace(program: str) -> threading.Semaphore:
        started = threading.Semaphore(0)

        def begin(_command: str, _request: object) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-S", "-c", program]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            started.release()
            return process

        monkeypatch.setattr(inspection, "spawn_child", begin)
        return started

    return replace


@pytest.mark.parametrize(
    "program",
    [
        KILLED.format(int(signal.SIGTERM)),
        "import signal; signal.signal(2, signal.SIG_DFL); " + KILLED.format(int(signal.SIGINT)),
        KILLED.format(int(signal.SIGHUP)),
        f"import os; os._exit({ORPHANED})",
    ],
)
def test_whoever_ends_the_child_says_nothing_of_the_file(replace_child: Replace, program: str) -> None:
    replace_child(program)
    with pytest.raises(Unavailable, match="interrupted"):
        Inspector(Settings()).inspect(Path("unused"))


def test_the_system_still_ends_the_child_for_lack_of_memory(replace_child: Replace) -> None:
    replace_child(KILLED.format(int(signal.SIGKILL)))
    with pytest.raises(LimitExceeded) as caught:
        Inspector(Settings()).inspect(Path("unused"))
    assert caught.value.limit == "decode_memory_bytes"


@pytest.mark.parametrize("answer", [IMAGE, SHAPE, FIELD])
def test_a_right_answer_is_taken(replace_child: Replace, answer: dict[str, Any]) -> None:
    replace_child(f"print({json.dumps(answer)!r})")
    found = Inspector(Settings()).inspect(Path("unused"))
    assert (found.kind, found.format, found.width) == (answer["kind"], answer["format"], answer.get("width"))
    assert (found.shape and found.shape.to_json()["faces"]) == answer.get("shape", {}).get("faces")
    assert (found.progress and found.progress.to_json()) == answer.get("progress")


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"kind": "image", "format": "png"},
        {**IMAGE, "kind": "picture"},
        {**IMAGE, "format": "png\r\nX: y"},
        {**IMAGE, "format": "ply"},
        {**IMAGE, "width": 0},
        {**IMAGE, "width": "3"},
        {**IMAGE, "height": 10**30},
        {**IMAGE, "channels": 5},
        {**IMAGE, "bit_depth": 32},
        {**IMAGE, "shape": FACTS},
        {**IMAGE, "preset": "draft"},
        {"kind": "shape", "format": "ply"},
        {**SHAPE, "width": 3},
        {**SHAPE, "shape": {**FACTS, "vertices": "many"}},
        {**SHAPE, "shape": {**FACTS, "faces": -1}},
        {**SHAPE, "shape": {**FACTS, "bounds": [[0, 0], [1, 1]]}},
        {**SHAPE, "shape": {**FACTS, "bounds": [[0, 0, 0], [1, 1, float("inf")]]}},
        {**SHAPE, "shape": {**FACTS, "repairs": ["\0"]}},
        {**FIELD, "encoder": "z"},
        {**FIELD, "preset": "x" * 1001},
        {**FIELD, "progress": None},
        {**FIELD, "progress": {"stage": 1}},
        {**FIELD, "progress": {**DONE, "blocks": 10**30}},
        {"error": {"code": "bad_image", "message": "x" * 1001}},
    ],
)
def test_a_wrong_answer_is_that_of_a_bad_file(answer: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as caught:
        inspection._read_answer(json.dumps(answer).encode())
    assert (caught.value.code, caught.value.message) == ("bad_input", ABNORMAL)


def test_a_refusal_is_one_of_a_file() -> None:
    """The child has no say in who may ask, or whether the service is there."""
    told = {"message": "No.", "limit": "max_image_side", "value": 5}
    for code, expected in (("limit_exceeded", "limit_exceeded"), ("unauthenticated", "bad_input")):
        with pytest.raises(BadInput) as caught:
            inspection._read_answer(json.dumps({"error": {"code": code, **told}}).encode())
        error = caught.value.to_json()
        assert error == {"code": expected, **told}
        assert isinstance(error["value"], int)


def test_stopping_ends_checks_that_run_or_wait(replace_child: Replace) -> None:
    started = replace_child("import sys; sys.stdin.read()")
    inspector = Inspector(Settings(max_decodes=1))
    answers: list[Exception] = []

    def check() -> None:
        try:
            inspector.inspect(Path("unused"))
        except Exception as error:
            answers.append(error)

    threads = [threading.Thread(target=check) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.acquire(timeout=60)
    inspector.stop()
    for thread in threads:
        thread.join(60)
    assert [type(answer) for answer in answers] == [Unavailable] * 3
    with pytest.raises(Unavailable):
        inspector.inspect(Path("unused"))
    assert not started.acquire(blocking=False), "no other child was started"


def test_the_child_leaves_interrupts_to_the_service(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    limits = inspection.file_limits(Settings())
    request = {"path": str(path), "memory_bytes": 1 << 32, "cpu_seconds": 60, "limits": limits}
    process = spawn_child("inspect", request)
    try:
        with path.open("wb") as pipe:  # the child opens it too now, or will wait for what is in it
            process.send_signal(signal.SIGINT)
            pipe.write(bytes(16))
            pipe.flush()
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(60) in (0, ORPHANED)
    finally:
        end(process)
