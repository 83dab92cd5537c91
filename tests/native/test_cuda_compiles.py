"""The CUDA kernels compile for every supported GPU on a machine that has none."""

from __future__ import annotations

import io
import re

import pytest

program = pytest.importorskip("cuda.core", reason="cuda-core is not installed (extra 'cuda')")
pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed (extra 'cuda')")

from acorn_svc.field.ops import cuda  # noqa: E402

ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
ELF_MAGIC = b"\x7fELF"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_to_a_cubin_without_spills(architecture: str) -> None:
    log = io.StringIO()
    code = bytes(cuda.compile_kernels(architecture, log).code)
    assert code.startswith(ELF_MAGIC)
    assert b".text.identity" in code
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log.getvalue())
    assert spills
    assert set(spills) == {"0"}
