"""The notebook in `examples/` does what it says, against a real service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from live_server import Server

NOTEBOOK = Path(__file__).parents[2] / "examples" / "session.ipynb"


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "session").mkdir()
    monkeypatch.chdir(tmp_path / "session")
    with Server(tmp_path / "data") as server:
        monkeypatch.setenv("ACORN", str(server.client.base_url))
        names: dict[str, Any] = {}
        for number, source in enumerate(_code()):
            exec(compile(source, f"cell {number}", "exec"), names)
        assert server.client.get("/scenes").json()["total"] == 0
    assert names["scene"].progress.psnr > 20
    assert names["detail"].shape == (512, 512, 3)
    assert names["field"].info().psnr == names["scene"].progress.psnr


def test_no_output_is_kept_in_it() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def _code() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
