"""Every refusal names its limit, and every limit is a setting."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

from acorn_svc.formats.container import ModelLimits
from acorn_svc.formats.images import ImageLimits
from acorn_svc.formats.mesh_pieces import MeshLimits
from acorn_svc.settings import Settings, is_limit

PACKAGE = Path(__file__).parents[2] / "acorn_svc"
REFUSALS = ("LimitExceeded", "TooManyBytes", "TooManyRequests", "Unavailable", "InsufficientStorage")
# What is refused for another reason than a limit.
NO_LIMIT = {
    "The client has gone.", "This scene changes too fast; ask again.", "The disk is full.",
    "This scene has just changed; ask again.", "The database is busy or cannot be reached; try again.",
    "There is no free port on this address.", "The object store doesn't do what it should; try again.",
    "This upload is in the hands of another request.",
    "Another process has been upgrading the database for too long.",
    "The check was interrupted; try again.", "No sign of life of this job could be given.",
}  # fmt: skip
# Not ours to set: bounds of file formats, and of what this program wrote for itself.
OF_FORMATS = {
    "max_glb_bytes", "max_stl_triangles", "max_ply_vertices", "max_header_bytes", "max_state_bytes",
}  # fmt: skip
# Names of limits inside the readers, which know no settings.
OF_READERS = {field.name for kind in (ImageLimits, MeshLimits, ModelLimits) for field in fields(kind)}
LIMIT = re.compile(r"(max|min|decode|job|render|request|header)_[a-z]+_(bytes|seconds|pixels|side|\w+s)")


@cache
def _nodes() -> list[tuple[Path, ast.AST]]:
    paths = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "client.py"})  # it says what the service said
    return [(path, node) for path in paths for node in ast.walk(ast.parse(path.read_text()))]


def _refusals() -> Iterator[tuple[str, ast.Call]]:
    for path, node in _nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in REFUSALS:
            yield f"{path.name}:{node.lineno}", node


def _is_known(name: str) -> bool:
    return name in OF_FORMATS or (name in Settings.model_fields and is_limit(name))


def test_every_refusal_names_its_limit() -> None:
    seen = 0
    for place, call in _refusals():
        limit = next((keyword.value for keyword in call.keywords if keyword.arg == "limit"), None)
        message = call.args[0]
        if isinstance(message, ast.Constant) and message.value in NO_LIMIT:
            continue
        assert limit is not None, place
        if isinstance(limit, ast.Constant):
            assert isinstance(limit.value, str), place
            assert _is_known(limit.value), place
        assert any(keyword.arg == "value" for keyword in call.keywords), place
        seen += 1
    assert seen > 15


def test_every_name_of_a_limit_is_that_of_a_setting() -> None:
    names = {
        node.value
        for _, node in _nodes()
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and LIMIT.fullmatch(node.value)
    }
    assert len(names) > 20
    assert {name for name in names - OF_READERS if not _is_known(name)} == set()


def test_a_body_that_is_refused_for_its_size_says_why() -> None:
    """The web framework's own errors name no limit, so ours stands behind them."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                arguments = [
                    argument.value for argument in node.exc.args if isinstance(argument, ast.Constant)
                ]
                assert 413 not in arguments or node.cause is not None, path.name


def test_no_limit_is_missing_from_the_settings() -> None:
    """What a setting bounds says so: its name begins like a limit's."""
    for name in Settings.model_fields:
        if name.startswith(("max_", "min_")) or name.endswith(("_memory_bytes", "_wall_seconds", "_queue")):
            assert is_limit(name), name
