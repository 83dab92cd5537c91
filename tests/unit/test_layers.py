"""Imports point one way, in the source and at run time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

REPOSITORY = Path(__file__).parents[2]


def test_contracts_of_the_layers_hold() -> None:
    assert lint_imports(config_filename=str(REPOSITORY / "pyproject.toml"), no_cache=True) == 0


def _modules_after(statement: str) -> set[str]:
    code = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import acorn_svc.field.model", {"fastapi", "dbos", "sqlalchemy", "pyvips", "obstore"}),
        ("import acorn_svc.training.loop", {"fastapi", "dbos", "sqlalchemy", "pyvips"}),
        ("import acorn_svc.formats.images", {"fastapi", "dbos", "sqlalchemy", "torch"}),
        ("import acorn_svc.cli", {"torch", "fastapi", "dbos"}),
    ],
)
def test_a_layer_loads_only_what_it_needs(statement: str, unwanted: set[str]) -> None:
    assert not unwanted & _modules_after(statement)
