"""The wheel carries everything a machine without compiler, node or network needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
# as in cuda_programs.py, which needs CUDA packages
SOURCES = {"cuda.cu", "cuda_block.h", "cuda_decoder.h", "cuda_reading.h", "kernels.h"}
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}

pytestmark = pytest.mark.slow


def _build(directory: Path, environment: dict[str, str]) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    options = ["--config-settings", f"build-dir={directory / 'build'}", "-w", str(directory), str(REPOSITORY)]
    done = subprocess.run(
        [*command, *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = directory.glob("*.whl")
    return wheel


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("pure"), NO_COMPILER)


def test_without_a_compiler_the_wheel_is_pure(pure_wheel: Path) -> None:
    assert pure_wheel.name.endswith("py3-none-any.whl")
    assert not any("_native.c" in name for name in _names(pure_wheel))


def test_kernels_for_cuda_travel_as_sources(pure_wheel: Path) -> None:
    sources = {name for name in _names(pure_wheel) if "cuda_ext/" in name}
    assert sources == {f"acorn_svc/cuda_ext/{name}" for name in SOURCES}


def test_every_module_travels(pure_wheel: Path) -> None:
    modules = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("acorn_svc/**/*.py")}
    assert modules
    assert modules <= _names(pure_wheel)


def test_the_page_travels(pure_wheel: Path) -> None:
    bundle = REPOSITORY / "acorn_svc" / "web"
    if not (bundle / "index.html").exists():
        pytest.skip("the page is not built (make web)")
    files = {str(p.relative_to(REPOSITORY)) for p in bundle.rglob("*") if p.is_file()}
    assert files <= _names(pure_wheel)
    assert any(name.endswith(".js") for name in files)


def test_nothing_but_the_package_travels(pure_wheel: Path) -> None:
    tops = {name.split("/")[0] for name in _names(pure_wheel)}
    assert tops == {"acorn_svc", *(top for top in tops if top.endswith(".dist-info"))}


def test_with_a_compiler_the_wheel_has_the_native_module(tmp_path: Path) -> None:
    pytest.importorskip("acorn_svc._native", reason="no C++ compiler here")
    wheel = _build(tmp_path, {})
    assert any(name.startswith("acorn_svc/_native.") for name in _names(wheel) if "pyi" not in name)
