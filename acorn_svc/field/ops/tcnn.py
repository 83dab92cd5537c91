"""The MLPs on tiny-cuda-nn (Müller et al. 2021), where ``tinycudann`` is installed; never needed.

:func:`decode` and :func:`decode_backward` have the signatures of those of the reference and take the same
weights; ``docs/tiny-cuda-nn.md`` says which shapes run how, and how exact. tiny-cuda-nn computes in half
precision and knows no biases, so

- the inputs get a column of ones, whose weights are the biases of the first layer;
- further hidden layers take their biases from a hidden unit that is always one: where there are several, they
  need one unit more;
- the last biases are added here, in ``float32``.

All three are exact: a bias is rounded to half precision like a weight, the last one not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from acorn_svc.field.ops import checks, reference
from acorn_svc.field.ops.learning import Layer

MlpName = Literal["own", "tiny-cuda-nn"]
Mlp = Callable[[Tensor, list[Layer]], Tensor]

FUSED_WIDTHS = (16, 32, 64, 128)
ALIGNMENT = 16
MAX_EXPONENT = 126
GRADIENT_SUM = 64.0  # keeps sums of gradients, 128 times larger inside, below the largest half, 65504


# --- whether and what ---


def missing() -> str:
    """Says what is missing here to run on tiny-cuda-nn, or nothing."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    return "" if find_spec("tinycudann") else "not installed: tinycudann (extra 'tcnn')"


def choose(name: MlpName) -> Mlp:
    """The differentiable function ``(inputs, layers) -> outputs`` that runs an MLP.

    Args:
        name: ``"own"`` for plain PyTorch on any device, ``"tiny-cuda-nn"`` for :func:`decode`.

    Raises:
        RuntimeError: tiny-cuda-nn cannot run here.
        ValueError: there is no MLP of that name.
    """
    if name == "own":
        return reference.decode
    if name != "tiny-cuda-nn":
        raise ValueError(f"mlp: expected 'own' or 'tiny-cuda-nn', got {name!r}")
    if reason := missing():
        raise RuntimeError(f"tiny-cuda-nn cannot run here: {reason}")
    return decode


# --- the same weights in another order ---


class Packed(NamedTuple):
    """An MLP as tiny-cuda-nn holds it, or the gradient of one.

    Attributes:
        parameters: ``float32 [n]``, the matrices of :attr:`Layout.shapes` one after the other, row by row.
        bias: ``float32 [out]`` of the last layer.
    """

    parameters: Tensor
    bias: Tensor


class Layout(NamedTuple):
    """Where the weights of an MLP lie in tiny-cuda-nn's parameters.

    Attributes:
        sizes: units of each layer, input and output included; at least those two.
    """

    sizes: tuple[int, ...]

    @staticmethod
    def of(layers: list[Layer]) -> Layout:
        """The layout of an MLP."""
        return Layout((len(layers[0][0]), *(len(bias) for _, bias in layers)))

    @property
    def inputs(self) -> int:
        """Columns of the input, that of ones included."""
        return self.sizes[0] + 1

    @property
    def hidden(self) -> tuple[int, ...]:
        """Units of the hidden layers."""
        return self.sizes[1:-1]

    @property
    def width(self) -> int:
        """Units that each hidden layer has in tiny-cuda-nn, 0 if there is none."""
        if not self.hidden:
            return 0
        needed = max(self.hidden) + (len(self.hidden) > 1)
        return next((width for width in FUSED_WIDTHS if width >= needed), _padded(needed))

    @property
    def network(self) -> dict[str, Any]:
        """The network's configuration, as tiny-cuda-nn documents it."""
        return {
            "otype": "FullyFusedMLP" if self.width in FUSED_WIDTHS else "CutlassMLP",
            "activation": "ReLU",
            "output_activation": "None",
            "n_neurons": self.width or ALIGNMENT,
            "n_hidden_layers": len(self.hidden),
        }

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """``(outputs, inputs)`` of every matrix, padding included."""
        sizes = (_padded(self.inputs), *(self.width for _ in self.hidden), _padded(self.sizes[-1]))
        return [(rows, columns) for columns, rows in pairwise(sizes)]

    def pack(self, layers: list[Layer]) -> Packed:
        """Puts layers ``(weight [in, out], bias [out])`` into place; differentiable."""
        matrices = [self._matrix(number, weight, bias) for number, (weight, bias) in enumerate(layers)]
        return Packed(torch.cat([matrix.flatten() for matrix in matrices]), layers[-1][1])

    def unpack(self, packed: Packed) -> list[Layer]:
        """The inverse of :meth:`pack`; of a gradient, the gradients of the layers."""
        parts = torch.split(packed.parameters, [rows * columns for rows, columns in self.shapes])
        layers = []
        for number, (part, shape) in enumerate(zip(parts, self.shapes, strict=True)):
            fan_in, fan_out = self.sizes[number : number + 2]
            rows = part.reshape(shape)[:fan_out]
            bias = packed.bias if self._is_last(number) else rows[:, self._one(number)]
            layers.append((rows[:, :fan_in].t().contiguous(), bias.contiguous()))
        return layers

    def _matrix(self, number: int, weight: Tensor, bias: Tensor) -> Tensor:
        fan_in, fan_out = weight.shape
        matrix = weight.new_zeros(self.shapes[number])
        matrix[:fan_out, :fan_in] = weight.t()
        if not self._is_last(number):
            matrix[:fan_out, self._one(number)] = bias
        if number < len(self.hidden) - 1:
            matrix[self.width - 1, self._one(number)] = 1  # one again in the next layer
        return matrix

    def _is_last(self, number: int) -> bool:
        return number == len(self.hidden)

    def _one(self, number: int) -> int:
        """The column of a matrix whose input is always one."""
        return self.width - 1 if number else self.sizes[0]


def _padded(units: int) -> int:
    return -(-units // ALIGNMENT) * ALIGNMENT


# --- running it ---


def decode(inputs: Tensor, layers: list[Layer]) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.decode`; in half precision, and differentiable.

    Raises:
        RuntimeError: tiny-cuda-nn cannot run here.
    """
    _check(inputs, layers)
    if not len(inputs):
        return reference.decode(inputs, layers)
    tensors = (inputs, *_flat(layers))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        result: Tensor = _Differentiable.apply(*tensors)  # type: ignore[no-untyped-call]
        return result
    return _run(inputs, layers)


def decode_backward(inputs: Tensor, layers: list[Layer], gradient: Tensor) -> tuple[Tensor, list[Layer]]:
    """See :func:`acorn_svc.field.ops.reference.decode_backward`; in half precision.

    Raises:
        RuntimeError: tiny-cuda-nn cannot run here.
    """
    _check(inputs, layers)
    checks.floats("gradient", gradient)
    leaves = [tensor.detach().requires_grad_() for tensor in (inputs, *_flat(layers))]
    with torch.enable_grad():
        output = decode(leaves[0], _pairs(leaves[1:]))
    result, *gradients = torch.autograd.grad(output, leaves, gradient)
    return result, _pairs(gradients)


def _check(inputs: Tensor, layers: list[Layer]) -> None:
    checks.floats("inputs", inputs)
    checks.layers(layers, inputs.shape[1])
    if reason := missing():
        raise RuntimeError(f"tiny-cuda-nn cannot run here: {reason}")


def _flat(layers: list[Layer]) -> list[Tensor]:
    return [tensor for layer in layers for tensor in layer]


def _pairs(tensors: Sequence[Tensor]) -> list[Layer]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


@cache
def _module(layout: Layout) -> Any:
    network = import_module("tinycudann").Network
    return network(layout.inputs, layout.sizes[-1], layout.network)


def _run(inputs: Tensor, layers: list[Layer]) -> Tensor:
    layout = Layout.of(layers)
    parameters, bias = layout.pack(layers)
    with_ones = torch.nn.functional.pad(inputs, (0, 1), value=1.0)
    output: Tensor = torch.func.functional_call(_module(layout), {"params": parameters}, (with_ones,))
    return output.float() + bias


class _Differentiable(torch.autograd.Function):
    """Gradients on their way back are half precision too: they are scaled to the middle of its range."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        needed = zip(tensors, ctx.needs_input_grad, strict=True)
        leaves = [tensor.detach().requires_grad_(needs) for tensor, needs in needed]
        with torch.enable_grad():
            output = _run(leaves[0], _pairs(leaves[1:]))
        ctx.leaves, ctx.output = leaves, output
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        scale = gradient_scale(gradient)
        wanted = [leaf for leaf in ctx.leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(ctx.output, wanted, gradient * scale))
        return tuple(next(found) / scale if leaf.requires_grad else None for leaf in ctx.leaves)


def gradient_scale(gradient: Tensor) -> Tensor:
    """The power of two that brings the largest column sum of ``|gradient [n, out]|`` to ``GRADIENT_SUM``.

    No gradient of a weight of the last layer is then larger than that times the largest activation. One where
    there is nothing to scale.
    """
    largest = gradient.abs().sum(dim=0).max()
    exponent = torch.log2(GRADIENT_SUM / largest).floor().clamp(-MAX_EXPONENT, MAX_EXPONENT)
    usable = torch.isfinite(largest) & (largest > 0)
    return torch.where(usable, torch.exp2(exponent), 1.0)
