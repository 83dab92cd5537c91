"""What the package never does, so that no file and no client can make it do so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "acorn_svc"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# Code that data can hold, archives, markup, and everything that fetches.
MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "ruamel", "zipfile",
    "tarfile", "lzma", "bz2", "xml", "lxml", "defusedxml", "html", "requests", "httpx", "httpx2", "aiohttp",
    "urllib3", "ftplib", "smtplib", "telnetlib", "imaplib", "paramiko",
}  # fmt: skip
FETCHING = {"urllib.request", "http.client", "socket"}
MAY_FETCH = {"demo.py", "client.py"}  # they talk to the service that is named to them, and aren't part of it
MAY_IMPORT = {"backup.py": {"tarfile"}}  # reads what its operator wrote
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    ("torch", "load"), ("np", "load"), ("numpy", "load"), ("os", "system"), ("os", "popen"),
    ("pyvips.Image", "new_from_file"), ("pyvips.Image", "new_from_buffer"),
}  # fmt: skip


def _trees() -> Iterator[tuple[Path, ast.AST]]:
    for path in SOURCES:
        yield path, ast.parse(path.read_text())


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def _is_forbidden(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Name):
        return call.func.id in CALLS
    if not isinstance(call.func, ast.Attribute):
        return False
    return (ast.unparse(call.func.value), call.func.attr) in METHODS


def test_no_code_is_read_from_data_and_nothing_is_fetched() -> None:
    assert len(SOURCES) > 50
    for path, tree in _trees():
        imported = set(_imports(tree))
        assert {name.split(".")[0] for name in imported} & MODULES <= MAY_IMPORT.get(path.name, set()), path
        assert not imported & FETCHING or path.name in MAY_FETCH, path
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                assert not _is_forbidden(node), (path, ast.unparse(node))
                names = {keyword.arg: keyword.value for keyword in node.keywords}
                for switch in ("shell", "allow_pickle", "unsafe", "trust_remote_code"):
                    assert switch not in names or ast.unparse(names[switch]) == "False", path


@pytest.mark.parametrize(
    "code", ["eval('1')", "np.load(x)", "torch.load(x, weights_only=True)", "os.system('ls')"]
)
def test_the_search_finds(code: str) -> None:
    assert any(_is_forbidden(node) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
