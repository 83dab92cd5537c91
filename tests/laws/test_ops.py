"""One law for every operation over all back ends: equal to the plain reference, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor

from acorn_svc.field import ops

REFERENCE = ops.TABLE[-1]


def _absent(row: ops.BackEnd, device: str) -> str:
    no_device = device == "cuda" and not torch.cuda.is_available()
    return "PyTorch sees no CUDA device" if no_device else row.missing()


def _case(row: ops.BackEnd, device: str) -> ParameterSet:
    absent = _absent(row, device)
    skip = pytest.mark.skipif(bool(absent), reason=f"{row.name}: {absent}")
    marks = [skip, pytest.mark.gpu] if device == "cuda" else [skip]
    return pytest.param(row, device, id=f"{row.name}-{device}", marks=marks)


CASES = [_case(row, device) for row in ops.TABLE for device in sorted(row.devices)]
each_back_end = pytest.mark.parametrize(("row", "device"), CASES)

# Empty, single, odd, prime, around the thread-block size, several dimensions, an empty inner axis.
SHAPES = [(0,), (1,), (7,), (255,), (256,), (257,), (4099,), (3, 5, 7), (2, 0, 3), ()]


def _values(shape: tuple[int, ...], device: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator).to(device)


def _operation(row: ops.BackEnd) -> Callable[[Tensor], Tensor]:
    return row.operations().identity


@each_back_end
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_equals_reference(row: ops.BackEnd, device: str, shape: tuple[int, ...]) -> None:
    values = _values(shape, device)
    result = _operation(row)(values)
    assert result.device == values.device
    assert result.shape == values.shape
    assert torch.equal(result, _operation(REFERENCE)(values))


@each_back_end
def test_special_values_survive_bit_for_bit(row: ops.BackEnd, device: str) -> None:
    values = torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-45], device=device)
    result = _operation(row)(values)
    assert torch.equal(result.view(torch.int32), values.view(torch.int32))


@each_back_end
def test_result_is_a_new_tensor(row: ops.BackEnd, device: str) -> None:
    values = _values((5,), device)
    result = _operation(row)(values)
    result.zero_()
    assert values.abs().min() > 0


@each_back_end
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32, torch.bool])
def test_wrong_dtype_is_refused(row: ops.BackEnd, device: str, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="float32"):
        _operation(row)(torch.ones(4, dtype=dtype, device=device))


@each_back_end
def test_strided_is_refused(row: ops.BackEnd, device: str) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        _operation(row)(_values((4, 6), device).T)


@each_back_end
def test_chosen_operation_runs_on_device(row: ops.BackEnd, device: str) -> None:
    values = _values((9,), device)
    assert torch.equal(ops.identity(values), values)


def test_every_back_end_has_the_signatures_of_the_reference() -> None:
    names = [name for name in vars(ops.Operations) if not name.startswith("_")]
    assert names == ["identity"]
    for row in ops.TABLE:
        if not row.missing():
            assert all(callable(getattr(row.operations(), name)) for name in names)
    assert set(names) <= set(ops.__all__)


def test_availability_gives_a_reason_for_everything_absent() -> None:
    records = ops.available()
    assert [record.name for record in records] == ["cuda", "cpu", "reference"]
    assert records[-1].available
    assert all(record.available == (record.reason == "") for record in records)


def test_a_missing_back_end_falls_back_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ops.BackEnd("cpu", frozenset({"cpu"}), lambda: "not built")
    monkeypatch.setattr(ops, "TABLE", (absent, REFERENCE))
    assert ops.choose.__wrapped__("cpu") is REFERENCE.operations()
    assert ops.choose.__wrapped__("mps") is REFERENCE.operations()
