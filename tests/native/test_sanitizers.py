"""The CPU kernels touch no memory but their own, compute nothing undefined, and their threads do not race."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

native = pytest.importorskip("acorn_svc._native", reason="the native module was not built (no C++ compiler)")

REPOSITORY = Path(__file__).parents[2]
KERNELS = REPOSITORY / "cuda_ext"
DRIVER = Path(__file__).parent / "sanitized" / "driver.cpp"
COMPILERS = [name for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if shutil.which(name)]

FLAGS = ["-std=c++17", "-O1", "-g1", "-w", "-ffp-contract=fast", "-fno-sanitize-recover=all"]
WIDTH_FLAGS = {
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "portable": [],
}
WIDTHS_OF_TRIANGLES = ("avx2", "portable")
MEMORY = "address,undefined"
# all of `undefined` doubles the time that the templates take to compile
MEMORY_OF_TEMPLATES = "address,bounds,signed-integer-overflow,shift,float-cast-overflow,alignment"
THREADS = "thread"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COMPILERS, reason="no C++ compiler"),
]


def compiled(sanitizers: str, target: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    options = [*FLAGS, f"-fsanitize={sanitizers}", f"-I{KERNELS}", "-o", target]
    command = [COMPILERS[0], *options, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300)


def require_runtime(sanitizers: str, directory: Path) -> None:
    """Skips where programs under these sanitizers cannot be linked or do not start."""
    source, program = directory / "empty.cpp", directory / "empty"
    source.write_text("int main() {}\n")
    done = compiled(sanitizers, program, source)
    if done.returncode:
        pytest.skip(f"{COMPILERS[0]} cannot link -fsanitize={sanitizers}: {done.stderr.strip()[:200]}")
    done = run(program)
    if done.returncode:
        pytest.skip(f"no program runs under -fsanitize={sanitizers} here: {done.stderr.strip()[:200]}")


def build(directory: Path, sanitizers: str, of_templates: str, widths: list[str]) -> Path:
    require_runtime(sanitizers, directory)
    objects = [directory / f"{width}.o" for width in widths]
    for width, target in zip(widths, objects, strict=True):
        done = compiled(of_templates, target, "-c", *WIDTH_FLAGS[width], KERNELS / f"cpu_{width}.cpp")
        assert done.returncode == 0, done.stderr
    for width in set(widths) & set(WIDTHS_OF_TRIANGLES):
        objects.append(directory / f"triangles_{width}.o")
        source = KERNELS / f"triangles_{width}.cpp"
        done = compiled(sanitizers, objects[-1], "-c", *WIDTH_FLAGS[width], source)
        assert done.returncode == 0, done.stderr
    names = ("cpu.cpp", "isosurface.cpp", "threads.cpp", "triangles.cpp")
    sources = [*(KERNELS / name for name in names), DRIVER]
    program = directory / "driver"
    done = compiled(sanitizers, program, "-pthread", *sources, *objects)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def memory_checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("memory"), MEMORY, MEMORY_OF_TEMPLATES, native.lanes())


@pytest.fixture(scope="module")
def threads_checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("threads"), THREADS, THREADS, ["portable"])


def test_every_kernel_keeps_to_its_memory(memory_checked: Path) -> None:
    done = run(memory_checked)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == native.lanes()


def test_threads_do_not_race(threads_checked: Path) -> None:
    done = run(threads_checked, "threads")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["portable"]


@pytest.mark.parametrize(
    ("mistake", "report"), [("overrun", "heap-buffer-overflow"), ("shift", "shift exponent")]
)
def test_a_mistake_would_be_seen(memory_checked: Path, mistake: str, report: str) -> None:
    done = run(memory_checked, mistake)
    assert done.returncode != 0
    assert report in done.stderr


def test_a_race_would_be_seen(threads_checked: Path) -> None:
    done = run(threads_checked, "race")
    assert done.returncode != 0
    assert "data race" in done.stderr
