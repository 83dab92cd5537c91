"""Any bytes as an image, a mesh or a model: an answer or one of our errors, and nobody is hurt."""

from __future__ import annotations

import json
import math
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_files import SEEDS, BadFile, good_files, make_all
from bombs import BOMBS, Verdict
from fastapi.testclient import TestClient
from pydantic import TypeAdapter
from reading import Reader

from acorn_svc.api.app import create_app
from acorn_svc.errors import BadInput
from acorn_svc.jobs.inspection import ABNORMAL, Inspection, Inspector
from acorn_svc.settings import Settings

REFUSED = {
    "unsupported_media", "bad_image", "bad_mesh", "bad_model", "bad_input", "limit_exceeded", "too_large",
}  # fmt: skip
# A cut text can be a smaller whole one; of these the end is known.
ENDED = {"png", "jpeg", "webp", "tiff", "glb", "acorn"}
CHECKED = {"acorn"}  # every byte of these is covered by a digest
READER_BYTES = 1 << 30
"""What reading any of the bad files may take: they are small, and none is a large picture."""

Amount = Callable[[int, int], int]
Tell = Callable[[str, object], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def reader(folder: Path) -> Iterator[Reader]:
    reader = Reader(folder)
    yield reader
    assert reader.close() < READER_BYTES


def _sampled(count: int) -> list[BadFile]:
    files = list(make_all())
    if count >= len(files):
        return files
    chosen = np.random.default_rng(0).choice(len(files), count, replace=False)
    return [files[index] for index in sorted(chosen.tolist())]


def _told(answer: dict[str, Any]) -> str:
    """The code of an answer, `ok` for a file that was read, after checking the answer's shape."""
    error = answer.get("error")
    if error is None:
        _check_facts(TypeAdapter(Inspection).validate_json(json.dumps(answer)))
        return "ok"
    assert set(error) == {"code", "message", "limit", "value"}
    _check_refusal(error["code"], error["message"], error["limit"])
    return str(error["code"])


def _check_facts(found: Inspection) -> None:
    if found.kind == "image":
        assert found.width is not None
        assert found.height is not None
        assert 0 < found.width <= 65_536
        assert 0 < found.height <= 65_536
        return
    assert found.shape is not None
    low, high = found.shape.bounds
    assert all(math.isfinite(value) for value in (*low, *high))
    assert all(a <= b for a, b in zip(low, high, strict=True))


def _check_refusal(code: str, message: str, limit: str | None) -> None:
    assert code in REFUSED
    assert message.endswith((".", "read"))
    assert "/" not in message
    assert "Traceback" not in message
    assert (limit in Settings.model_fields) == (code in ("limit_exceeded", "too_large"))


def _check_verdict(file: BadFile, code: str) -> None:
    if not file.content or (file.how == "cut" and file.format in ENDED):
        assert code != "ok", file.name
    if file.format in CHECKED:
        assert file.content == file.whole or code != "ok", file.name


def test_good_files_are_read(reader: Reader, folder: Path) -> None:
    for kind in SEEDS:
        for number, content in enumerate(good_files(kind)):
            path = folder / f"{kind}-{number}"
            path.write_bytes(content)
            answer = reader.read(path)
            assert answer.get("format") == kind, answer


@pytest.mark.torture
def test_made_files_get_an_answer(reader: Reader, folder: Path, amount: Amount, tell: Tell) -> None:
    codes: Counter[str] = Counter()
    path = folder / "file"
    files = _sampled(amount(300, 10_000))
    for file in files:
        path.write_bytes(file.content)
        code = _told(reader.read(path))
        _check_verdict(file, code)
        codes[code] += 1
    assert codes["ok"] > 0.1 * len(files)
    assert len(codes) >= 5
    tell("files read in one process", len(files))
    tell("verdicts", dict(sorted(codes.items())))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_gets_its_verdict(reader: Reader, folder: Path, name: str) -> None:
    make, verdict = BOMBS[name]
    (folder / "bomb").write_bytes(make())
    answer = reader.read(folder / "bomb")
    assert (_told(answer), _limit(answer)) == _expected(verdict), answer


def _limit(answer: dict[str, Any]) -> str | None:
    limit = answer.get("error", {}).get("limit")
    return None if limit is None else str(limit)


def _expected(verdict: Verdict) -> tuple[str, str | None]:
    return (verdict, None) if isinstance(verdict, str) else verdict


@pytest.mark.torture
def test_children_get_through_all_of_them(folder: Path, amount: Amount, tell: Tell) -> None:
    """As an upload goes: each file in a child of its own, in the sandbox, under the limits."""
    inspector = Inspector(Settings())
    files = [file for file in _sampled(amount(8, 10_000)) if file.content]

    def inspect(number: int) -> str:
        path = folder / f"child-{number}"
        path.write_bytes(files[number].content)
        code = _verdict(inspector, path)
        path.unlink()
        return code

    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(inspect, range(len(files))))
    for file, code in zip(files, codes, strict=True):
        _check_verdict(file, code)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak <= Settings().decode_memory_bytes
    tell("children", len(files))
    tell("verdicts of children", dict(sorted(Counter(codes).items())))
    tell("most memory of a child, MiB", peak >> 20)


@pytest.mark.torture
def test_children_get_through_the_bombs(folder: Path, amount: Amount, tell: Tell) -> None:
    inspector, path = Inspector(Settings()), folder / "bomb in a child"
    names = list(BOMBS)[:: amount(20, 1)]
    for name in names:
        make, verdict = BOMBS[name]
        path.write_bytes(make())
        assert _verdict(inspector, path) == _expected(verdict)[0], name
    tell("bombs in children", len(names))


def _verdict(inspector: Inspector, path: Path) -> str:
    found = _inspected(inspector, path)
    if isinstance(found, Inspection):
        _check_facts(found)
        return "ok"
    assert found.message != ABNORMAL
    _check_refusal(found.code, found.message, found.limit)
    return found.code


def _inspected(inspector: Inspector, path: Path) -> Inspection | BadInput:
    try:
        return inspector.inspect(path)
    except BadInput as error:
        return error


@pytest.mark.torture
def test_the_service_answers_and_goes_on(tmp_path: Path, amount: Amount, tell: Tell) -> None:
    """By HTTP, under a name that says something else."""
    files = _sampled(amount(8, 200))
    settings = Settings(data=tmp_path, max_queued_jobs=1000)
    statuses: Counter[int] = Counter()
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        for number, file in enumerate(files):
            names = ("x.png", "x.svg", "../../x.acorn", "x.glb\0.zip", "x")
            upload = {"file": (names[number % len(names)], file.content)}
            answer = client.post("/scenes", files=upload)
            statuses[answer.status_code] += 1
            if answer.status_code != 201:
                assert answer.status_code in (413, 415, 422), (file.name, answer.text)
                error = answer.json()["error"]
                _check_refusal(error["code"], error["message"], error["limit"])
        assert client.get("/scenes").json()["total"] == statuses[201]
        good = client.post("/scenes", content=good_files("png")[0])
        assert (good.status_code, good.json()["width"]) == (201, 20)
        assert not list((tmp_path / "blobs" / "spool").iterdir())
    tell("files by HTTP", dict(sorted(statuses.items())))
