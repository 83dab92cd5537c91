"""The MLPs on tiny-cuda-nn: the same weights, in its layout and precision.

A stand-in that is as strict as tiny-cuda-nn about shapes, and rounds to half precision where it does, runs
everywhere; with a GPU and `tinycudann` the same tests run the real one.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from acorn_svc.field.conventions import depth_for, extent_for
from acorn_svc.field.encoders import block_inputs, initial_encoder
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.ops import reference, tcnn
from acorn_svc.field.ops.learning import Layer
from acorn_svc.field.state import Architecture
from acorn_svc.field.tree import Tree

REPOSITORY = Path(__file__).parents[3]
HALF_ROUNDING = 2.0**-11
GATES = 0.05  # units within rounding of zero open or close: few, but each of them changes a gradient wholly
LOSS_SCALE = 128
SHAPES = [
    (20, 64, 3),
    (5, 16, 1),
    (16, 32, 2),
    (20, 63, 63, 3),
    (20, 64, 64, 3),
    (40, 16, 24, 8, 4),
    (20, 3),
    (10, 129, 4),
    (31, 100, 17),
    (63, 256, 256, 1156),
]


# --- the stand-in ---


def _next_multiple(number: int, of: int) -> int:
    return -(-number // of) * of


def _half(values: Tensor) -> Tensor:
    return values.half().float()


class _Layers(torch.autograd.Function):
    """Bias-free layers; parameters, activations and gradients are half precision, sums are longer."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, parameters: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        ones = torch.ones(len(inputs), shapes[0][1] - inputs.shape[1])
        hidden = [_half(torch.cat([inputs, ones], dim=1))]
        matrices = _matrices(parameters.float(), shapes)
        for matrix in matrices[:-1]:
            hidden.append(_half((hidden[-1] @ matrix.t()).relu()))
        ctx.hidden, ctx.matrices, ctx.columns = hidden, matrices, inputs.shape[1]
        return (hidden[-1] @ matrices[-1].t()).half()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        assert gradients[0].dtype == torch.float16
        gradient = (gradients[0] * LOSS_SCALE).float()
        found: list[Tensor] = []
        for number in reversed(range(len(ctx.matrices))):
            found.insert(0, (gradient.t() @ ctx.hidden[number]).half())
            gradient = _half(gradient @ ctx.matrices[number])
            if number:
                gradient = gradient * (ctx.hidden[number] > 0)
        parameters = torch.cat([matrix.flatten() for matrix in found]) / LOSS_SCALE
        return gradient[:, : ctx.columns] / LOSS_SCALE, parameters, None


def _matrices(parameters: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    parts = torch.split(parameters, [rows * columns for rows, columns in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


class Network(torch.nn.Module):
    """`tinycudann.Network`: as strict, and in the layout of `FullyFusedMLP` and `CutlassMLP`."""

    def __init__(self, n_input_dims: int, n_output_dims: int, network_config: dict[str, Any]) -> None:
        super().__init__()
        width, layers = network_config["n_neurons"], network_config["n_hidden_layers"]
        assert network_config["activation"] == "ReLU"
        assert network_config["output_activation"] == "None"
        if network_config["otype"] == "FullyFusedMLP":
            assert width in (16, 32, 64, 128)
            assert layers >= 1
        else:
            assert network_config["otype"] == "CutlassMLP"
            assert width % 8 == 0
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims
        sizes = [_next_multiple(n_input_dims, 16), *[width] * layers, _next_multiple(n_output_dims, 16)]
        self.shapes = [(rows, columns) for columns, rows in pairwise(sizes)]
        self.params = torch.nn.Parameter(torch.zeros(sum(rows * columns for rows, columns in self.shapes)))

    def forward(self, inputs: Tensor) -> Tensor:
        assert inputs.dtype == torch.float32
        assert inputs.shape[1] == self.n_input_dims
        assert self.params.shape == (sum(rows * columns for rows, columns in self.shapes),)
        count = len(inputs)
        padded = torch.nn.functional.pad(inputs, (0, 0, 0, _next_multiple(count, 256) - count))
        output: Tensor = _Layers.apply(padded, self.params.half(), self.shapes)
        return output[:count, : self.n_output_dims]


# --- what runs it, and on what ---


@pytest.fixture(params=["stand-in", pytest.param("tiny-cuda-nn", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the MLPs run; on the CPU it is the stand-in."""
    tcnn._module.cache_clear()
    if request.param == "stand-in":
        module: Any = ModuleType("tinycudann")
        module.Network = Network
        monkeypatch.setitem(sys.modules, "tinycudann", module)
        monkeypatch.setattr(tcnn, "missing", lambda: "")
        yield "cpu"
    else:
        if reason := tcnn.missing():
            pytest.skip(reason)
        yield "cuda"
    tcnn._module.cache_clear()


def _mlp(sizes: tuple[int, ...], device: str = "cpu") -> list[Layer]:
    generator = torch.Generator().manual_seed(len(sizes))
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        weight = (torch.rand(fan_in, fan_out, generator=generator) * 2 - 1) * (3 / fan_in) ** 0.5
        layers.append((weight.to(device), (torch.rand(fan_out, generator=generator) - 0.3).to(device)))
    return layers


def _inputs(count: int, columns: int, device: str = "cpu") -> Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(count)).to(device)


def _rounding_bound(inputs: Tensor, layers: list[Layer]) -> Tensor:
    """What rounding to half precision can change: weights, inputs and sums, the latter every 16 terms."""
    magnitude = reference.decode(inputs.abs(), [(weight.abs(), bias.abs()) for weight, bias in layers])
    return magnitude * HALF_ROUNDING * sum(3 + len(weight) / 16 for weight, _ in layers)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# --- the layout ---


@pytest.mark.parametrize("sizes", SHAPES)
def test_weights_come_back_unchanged(sizes: tuple[int, ...]) -> None:
    layers = _mlp(sizes)
    layout = tcnn.Layout.of(layers)
    assert layout.sizes == sizes
    for (weight, bias), (weight_back, bias_back) in zip(
        layers, layout.unpack(layout.pack(layers)), strict=True
    ):
        assert torch.equal(weight_back, weight)
        assert torch.equal(bias_back, bias)


@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("padding", [0.0, 1.0])
def test_biases_are_carried_exactly(sizes: tuple[int, ...], padding: float) -> None:
    layers = [(weight.double(), bias.double()) for weight, bias in _mlp(sizes)]
    layout = tcnn.Layout(sizes)
    packed = layout.pack(layers)
    inputs = _inputs(7, sizes[0]).double()
    expected = reference._decode(inputs, layers)
    hidden = torch.nn.functional.pad(inputs, (0, 1), value=1.0)
    hidden = torch.nn.functional.pad(hidden, (0, layout.shapes[0][1] - hidden.shape[1]), value=padding)
    *first, last = _matrices(packed.parameters, layout.shapes)
    for matrix in first:
        hidden = (hidden @ matrix.t()).relu()
    found = (hidden @ last.t())[:, : sizes[-1]] + packed.bias
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "kind", "width"),
    [
        ((20, 64, 3), "FullyFusedMLP", 64),
        ((20, 65, 3), "FullyFusedMLP", 128),
        ((20, 63, 63, 3), "FullyFusedMLP", 64),
        ((20, 64, 64, 3), "FullyFusedMLP", 128),
        ((20, 128, 3), "FullyFusedMLP", 128),
        ((20, 128, 128, 3), "CutlassMLP", 144),
        ((63, 256, 256, 256, 256, 256, 1156), "CutlassMLP", 272),
    ],
)
def test_widths(sizes: tuple[int, ...], kind: str, width: int) -> None:
    network = tcnn.Layout(sizes).network
    assert (network["otype"], network["n_neurons"]) == (kind, width)


def test_without_hidden_layers_there_is_one_matrix() -> None:
    layout = tcnn.Layout((20, 3))
    assert layout.shapes == [(16, 32)]
    assert (layout.network["otype"], layout.network["n_hidden_layers"]) == ("CutlassMLP", 0)


# --- running it ---


@pytest.mark.parametrize("sizes", SHAPES)
def test_forward_agrees_within_half_precision(device: str, sizes: tuple[int, ...]) -> None:
    inputs, layers = _inputs(300, sizes[0], device), _mlp(sizes, device)
    found, expected = tcnn.decode(inputs, layers), reference.decode(inputs, layers)
    assert found.dtype == torch.float32
    assert ((found - expected).abs() <= _rounding_bound(inputs, layers)).all()
    assert _relative_error(found, expected) < 0.01


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257])
def test_any_number_of_samples(device: str, count: int) -> None:
    inputs, layers = _inputs(count, 20, device), _mlp((20, 64, 3), device)
    gradient = torch.ones(count, 3, device=device)
    expected = reference.decode(inputs, layers)
    assert ((tcnn.decode(inputs, layers) - expected).abs() <= _rounding_bound(inputs, layers)).all()
    found, pairs = tcnn.decode_backward(inputs, layers, gradient)
    assert found.shape == inputs.shape
    assert [(w.shape, b.shape) for w, b in pairs] == [(w.shape, b.shape) for w, b in layers]


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e6])
@pytest.mark.parametrize("sizes", SHAPES)
def test_gradients_agree_whatever_their_size(device: str, sizes: tuple[int, ...], size: float) -> None:
    inputs, layers = _inputs(512, sizes[0], device), _mlp(sizes, device)
    gradient = size * _inputs(513, sizes[-1], device)[:512].contiguous()
    found, pairs = tcnn.decode_backward(inputs, layers, gradient)
    expected, expected_pairs = reference.decode_backward(inputs, layers, gradient)
    assert _relative_error(found, expected) < GATES
    for pair, expected_pair in zip(pairs, expected_pairs, strict=True):
        for tensor, expected_tensor in zip(pair, expected_pair, strict=True):
            assert _relative_error(tensor, expected_tensor) < GATES


def test_no_gradient_is_no_gradient(device: str) -> None:
    inputs, layers = _inputs(10, 20, device), _mlp((20, 64, 3), device)
    found, pairs = tcnn.decode_backward(inputs, layers, torch.zeros(10, 3, device=device))
    assert not found.any()
    assert not any(tensor.any() for pair in pairs for tensor in pair)


def test_the_encoder_learns_through_it(device: str) -> None:
    architecture = Architecture(encoder="coordinate")
    tree = Tree.root(depth_for((64, 64), 16), extent_for((64, 64), 16))
    tree = tree.split(tree.leaf_rows)
    parameters = initial_encoder(architecture, Lattice.build(tree, 16), torch.Generator().manual_seed(0))
    names = [f"encoder.{n}" for n in range(len(parameters) // 2)]
    layers = [
        (parameters[f"{n}.weight"].to(device).requires_grad_(), parameters[f"{n}.bias"].to(device))
        for n in names
    ]
    inputs = block_inputs(tree, architecture.frequencies).to(device)
    weights = [weight for weight, _ in layers]
    found, expected = (mlp(inputs, layers) for mlp in (tcnn.choose("tiny-cuda-nn"), tcnn.choose("own")))
    assert _relative_error(found.detach(), expected.detach()) < 0.02
    gradients = [torch.autograd.grad(values.square().mean(), weights) for values in (found, expected)]
    for gradient, expected_gradient in zip(*gradients, strict=True):
        assert _relative_error(gradient, expected_gradient) < GATES


def test_nothing_is_recorded_without_need(device: str) -> None:
    inputs, layers = _inputs(4, 20, device), _mlp((20, 64, 3), device)
    assert not tcnn.decode(inputs, layers).requires_grad
    with torch.no_grad():
        assert not tcnn.decode(inputs.requires_grad_(), layers).requires_grad


def test_other_arguments_are_refused(device: str) -> None:
    layers = _mlp((20, 64, 3), device)
    with pytest.raises(TypeError, match="float32"):
        tcnn.decode(_inputs(4, 20, device).double(), layers)
    with pytest.raises(ValueError, match="layers"):
        tcnn.decode(_inputs(4, 19, device), layers)


# --- the switch ---


def test_own_is_plain_pytorch() -> None:
    assert tcnn.choose("own") is reference.decode


def test_an_unknown_mlp_is_refused() -> None:
    with pytest.raises(ValueError, match="'own' or 'tiny-cuda-nn'"):
        tcnn.choose("other")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("has_gpu", "reason"), [(False, "no CUDA device"), (True, "not installed: tinycudann")]
)
def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, has_gpu: bool, reason: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(tcnn, "find_spec", lambda _: None)
    assert reason in tcnn.missing()
    with pytest.raises(RuntimeError, match=reason):
        tcnn.choose("tiny-cuda-nn")
    with pytest.raises(RuntimeError, match=reason):
        tcnn.decode(_inputs(1, 20), _mlp((20, 64, 3)))


def test_acorn_never_imports_it_by_itself(tmp_path: Path) -> None:
    (tmp_path / "tinycudann.py").write_text("raise RuntimeError('imported')")
    code = "import acorn_svc.cli, acorn_svc.field.ops.tcnn as t; t.missing(); t.choose('own')"
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}; assert 'tinycudann' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_extra_is_pinned_and_in_no_other() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (requirement,) = extras["tcnn"]
    address, _, commit = requirement.partition("#")[0].rpartition("@")
    assert address.startswith("tinycudann @ git+https://")
    assert len(commit) == 40
    others = [line for name, lines in extras.items() if name != "tcnn" for line in lines]
    assert not any("tcnn" in line or "tinycudann" in line for line in others)
