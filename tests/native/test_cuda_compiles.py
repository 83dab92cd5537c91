"""The CUDA kernels compile for every supported GPU on a machine that has none, and are kept once compiled."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("cuda.core", reason="cuda-core is not installed (extra 'cuda')")
pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed (extra 'cuda')")

from acorn_svc.field.ops import cuda_programs as programs
from acorn_svc.field.ops import kernel_cache
from acorn_svc.field.ops.cuda_programs import Network
from benchmarks import cuda_kernels

ELF_MAGIC = b"\x7fELF"
NETWORKS = [
    *cuda_kernels.PROGRAMS,
    Network(3, 8),
    Network(2, 1, (5, 7, 1)),
    Network(2, 2, (10, 2)),
    Network(2, 8, (40, 128, 128, 128, 4)),
    Network(3, 8, (40, 64, 4)),
]
READING = {"encode_points", "encode_patches", "encode_points_backward", "encode_patches_backward"}
FUSED = {"render_points", "learn", "sum_parts"}
PICTURES = {"render_image", "train", "update_rows", "update_decoder"}


def expected_kernels(network: Network) -> set[str]:
    if network.sizes and network.channels:
        return FUSED | (PICTURES if network.dimension == 2 else set())
    if network.sizes:
        return {"decode", "decode_backward", "sum_parts"}
    return READING if network.channels else {"locate"}


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("architecture", programs.ARCHITECTURES)
def test_compiles_to_a_cubin_without_local_memory(architecture: str, network: Network) -> None:
    code, usages = cuda_kernels.compiled(network, architecture)
    assert code.startswith(ELF_MAGIC)
    assert {usage.name for usage in usages} == expected_kernels(network)
    assert [usage for usage in usages if usage.local] == []


def test_every_kernel_is_expected_of_some_network() -> None:
    source = (programs.source_directory() / "cuda.cu").read_text()
    declared = set(re.findall(r"^ACORN_(?:LIGHT|HEAVY|LEARNING) (\w+)\(", source, re.MULTILINE))
    assert declared == set().union(*map(expected_kernels, NETWORKS))


@pytest.mark.slow
def test_the_documented_table_is_what_the_compiler_says() -> None:
    documented, now = cuda_kernels.documented(), cuda_kernels.table()
    if documented.splitlines()[0] == now.splitlines()[0]:
        assert documented == now, "python -m benchmarks.cuda_kernels writes it anew"
    else:  # another version of the compiler
        assert [line.split("|")[1:3] for line in documented.splitlines()[2:]] == [
            line.split("|")[1:3] for line in now.splitlines()[2:]
        ]


def test_the_report_of_spills_is_read() -> None:
    log = """ptxas info    : Compiling entry function 'learn' for 'sm_86'
ptxas info    : Function properties for learn
ptxas         .     24 bytes stack frame, 20 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 24 bytes cumulative stack size, 7392 bytes smem
"""
    assert cuda_kernels.usages(log) == [cuda_kernels.Usage("learn", 40, 7392, 60)]


def test_what_does_not_compile_says_why() -> None:
    with pytest.raises(Exception, match="layers that the decoder is not made for"):
        programs.compile_kernels(Network(sizes=(5, 17)), "sm_80")


# --- the cache ---

SMALL = Network(2)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(network: Network, architecture: str) -> bytes:
        raise AssertionError(f"compiles {network} for {architecture}")

    monkeypatch.setattr(programs, "compile_kernels", fail)


def only_file(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


def test_what_was_compiled_is_kept(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    first, second = tmp_path / "first", tmp_path / "deep" / "second"
    code = programs.cached_kernels(SMALL, "sm_80", (first, second))
    assert not first.exists()
    assert only_file(second).name == programs.cache_name(SMALL, "sm_80")
    assert re.fullmatch("[0-9a-f]{64}", only_file(second).name)
    request.getfixturevalue("no_compiler")
    assert programs.cached_kernels(SMALL, "sm_80", (first, second)) == code
    assert programs.cached_kernels(SMALL, "sm_80", (second, first)) == code


def test_names_tell_apart_all_that_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        programs.cache_name(network, architecture)
        for network in NETWORKS
        for architecture in programs.ARCHITECTURES
    ]
    sources = tmp_path / "sources"
    shutil.copytree(programs.source_directory(), sources)
    monkeypatch.setattr(programs, "source_directory", lambda: sources)
    assert programs.cache_name(SMALL, "sm_80") in names
    for source in programs.SOURCES:
        (sources / source).write_text((sources / source).read_text() + "// another\n")
        names.append(programs.cache_name(SMALL, "sm_80"))
    monkeypatch.setattr(programs, "nvrtc_version", lambda: (1, 2))
    names.append(programs.cache_name(SMALL, "sm_80"))
    assert len(set(names)) == len(names)


def test_names_cover_every_source_that_is_included() -> None:
    included: set[str] = set()
    for source in programs.SOURCES:
        text = (programs.source_directory() / source).read_text()
        included.update(re.findall(r'#include "(.*)"', text))
    assert included | {"cuda.cu"} == set(programs.SOURCES)


@pytest.mark.parametrize("damage", [b"", b"short", None], ids=["empty", "short", "one bit"])
def test_a_damaged_file_is_compiled_again(tmp_path: Path, damage: bytes | None) -> None:
    code = programs.cached_kernels(SMALL, "sm_80", (tmp_path,))
    path = only_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:] if damage is None else damage)
    assert programs.cached_kernels(SMALL, "sm_80", (tmp_path,)) == code
    assert only_file(tmp_path).read_bytes() == whole


def test_a_place_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    assert not kernel_cache.write(blocked / "below", "name", b"code")
    assert kernel_cache.read(blocked / "below", "name") is None
    assert programs.cached_kernels(SMALL, "sm_80", (blocked / "below",)).startswith(ELF_MAGIC)
    occupied = tmp_path / "occupied"
    (occupied / "name").mkdir(parents=True)
    assert not kernel_cache.write(occupied, "name", b"code")
    assert [path.name for path in occupied.iterdir()] == ["name"]


def test_the_cache_lies_where_the_platform_keeps_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert programs.cache_directory() == tmp_path / "caches" / "acorn" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert programs.cache_directory() == tmp_path / ".cache" / "acorn" / "kernels"


@pytest.mark.slow
def test_the_command_compiles_all_that_pictures_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    programs.main(
        ["--architectures", "sm_80", "--directory", str(tmp_path), "--features", "1", "--hidden", "6", "7"]
    )
    assert str(tmp_path) in capsys.readouterr().out
    request.getfixturevalue("no_compiler")
    for outputs in range(1, 5):
        network = Network(2, 1, (5, 6, 7, outputs))
        for part in (network, network._replace(sizes=()), Network(2), Network(sizes=network.sizes)):
            assert programs.cached_kernels(part, "sm_80", (tmp_path,)).startswith(ELF_MAGIC)


def test_the_command_says_where_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(SystemExit):
        programs.main(["--architectures", "sm_80", "--directory", str(tmp_path / "file")])
    assert "cannot write" in capsys.readouterr().err
