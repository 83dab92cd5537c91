"""What only a GPU can show: streams, devices and what is kept between calls.

The law of all operations (``tests/laws/test_ops.py``) runs on GPUs too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("cuda.core", reason="cuda-core is not installed (extra 'cuda')")
pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed (extra 'cuda')")

from acorn_svc.field.ops import cuda, cuda_programs, reference

sys.path.append(str(Path(__file__).parents[1] / "laws"))
import test_ops as law

DEVICES = torch.cuda.device_count() if torch.cuda.is_available() else 0

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICES == 0, reason="PyTorch sees no CUDA device"),
]


def decoded(device: str, values: Tensor, hidden: int = 64) -> Tensor:
    layers = law.moved(law.random_layers([20, hidden, 3]), device)
    return cuda.decode(values.to(device), layers)


@pytest.fixture
def values() -> Tensor:
    return torch.randn(1000, 20, generator=law.source())


def test_kernels_run_on_the_current_stream(values: Tensor) -> None:
    stream = torch.cuda.Stream()
    inputs = torch.zeros_like(values, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the copy comes late: a kernel elsewhere would read zeros
        inputs.copy_(values)
        result = cuda.decode(inputs, law.moved(law.random_layers([20, 64, 3]), "cuda"))
    stream.synchronize()
    expected = reference.decode(values, law.random_layers([20, 64, 3]))
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(DEVICES < 2, reason="PyTorch sees fewer than two CUDA devices")
def test_kernels_run_on_the_device_of_their_tensors(values: Tensor) -> None:
    results = [decoded(f"cuda:{index}", values) for index in range(DEVICES)]
    assert [result.device.index for result in results] == list(range(DEVICES))
    assert torch.cuda.current_device() == 0
    expected = reference.decode(values, law.random_layers([20, 64, 3]))
    for result in results:
        torch.testing.assert_close(result.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_tensors_on_several_devices_are_refused(values: Tensor) -> None:
    layers = law.random_layers([20, 64, 3])
    with pytest.raises(ValueError, match="expected all tensors on cuda:0, found one on cpu"):
        cuda.decode(values.to("cuda:0"), layers)


def test_compiled_kernels_are_loaded_from_the_cache(
    values: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_programs, "prebuilt_directory", lambda: tmp_path / "none")
    monkeypatch.setattr(cuda_programs, "cache_directory", lambda: tmp_path)
    compiled = decoded("cuda", values, hidden=17)
    assert len(list(tmp_path.iterdir())) == 1
    cuda_programs.forget()
    monkeypatch.setattr(cuda_programs, "compile_kernels", None)
    assert torch.equal(decoded("cuda", values, hidden=17), compiled)


def test_training_twice_gives_the_same_bits() -> None:
    of = law.flat_scene()
    subject = law.Subject(law.ops.BackEnd("cuda", frozenset({"cuda"}), lambda: ""), "cuda", "")
    learner, sampled = law.new_learner(of, [64], 3), law.sampling(of, 3)
    learners = [subject.train(of.geometry, learner, sampled, law.SEVERAL) for _ in range(2)]
    law.same_learners(*learners)


def test_a_large_picture_is_rendered_in_one_go() -> None:
    of, layers = law.flat_scene(), law.decoder(4, [64], 3)
    region = (0, 0, 2000, 1500)
    here = law.moved((of.geometry, of.features, of.folded, layers), "cuda")
    actual = cuda.render_image(*here, 0, region).cpu()
    expected = reference.render_image(*here, 0, region).cpu()
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
