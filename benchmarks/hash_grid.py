"""What a field has to beat: a multi-resolution hash grid, in plain PyTorch.

Müller et al., Instant Neural Graphics Primitives with a Multiresolution Hash Encoding, SIGGRAPH 2022: tables
of features for grids from coarse to fine, dense where a grid fits into a table, else addressed by a hash
without regard to collisions; a small network reads the interpolated features of all levels. Adam as there
(rate 1e-2, betas 0.9 and 0.99, epsilon 1e-15); on top of it the rate falls as that of our fits does, which
helps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from acorn_svc.field.ops.learning import RUN, Loss, Samples
from acorn_svc.field.ops.points import errors_of
from acorn_svc.field.ops.shuffle import turns

FEATURES = 2
COARSEST = 16
PRIMES = (1, 2_654_435_761, 805_459_861)
RATE = 1e-2
BETAS = (0.9, 0.99)
EPSILON = 1e-15
START = 1e-4
MOST_ROWS = 1 << 28

Clock = Callable[[], float]


def resolutions(levels: int, finest: int) -> list[int]:
    """Cells along the longest side of each level: a geometric series."""
    growth = (finest / COARSEST) ** (1 / (levels - 1))
    return [math.floor(COARSEST * growth**level + 1e-9) for level in range(levels)]


def table_sizes(cells: Sequence[int], rows: int) -> list[int]:
    """Rows of each level's table, of which none has more than ``rows``."""
    return [min(rows, (side + 1) ** 3) for side in cells]


def network_sizes(levels: int, width: int, hidden: int, channels: int) -> list[int]:
    """Inputs of each layer, and the outputs of the last."""
    return [levels * FEATURES, *[width] * hidden, channels]


def parameter_count(tables: Sequence[int], network: Sequence[int]) -> int:
    """Learned numbers."""
    pairs = pairwise(network)
    return FEATURES * sum(tables) + sum(inputs * outputs + outputs for inputs, outputs in pairs)


def rows_for(parameters: int, cells: Sequence[int], network: Sequence[int]) -> int:
    """The most rows of a table with which there are no more than ``parameters`` learned numbers."""
    low, high = 1, MOST_ROWS
    while high - low > 1:
        middle = (low + high) // 2
        few = parameter_count(table_sizes(cells, middle), network) <= parameters
        low, high = (middle, high) if few else (low, middle)
    return low


class _Interpolation(torch.autograd.Function):
    """Weighted sums ``[n, FEATURES]`` of eight rows of a table.

    What PyTorch itself would do backwards sorts all rows, and takes three times as long as the whole step.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.shape = table.shape
        return nn.functional.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        rows, weights = ctx.saved_tensors
        columns = [
            torch.zeros(ctx.shape[0]).scatter_add_(
                0, rows.reshape(-1), (weights * column[:, None]).reshape(-1)
            )
            for column in gradients[0].unbind(1)
        ]
        return torch.stack(columns, dim=1), None, None


class HashGrid(nn.Module):
    """The grid and its network.

    Args:
        cells: of each level, along the longest side of the box.
        rows: of a table at most.
        network: see :func:`network_sizes`.
        generator: of the parameters to start from.
    """

    def __init__(
        self, cells: Sequence[int], rows: int, network: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self._cells = list(cells)
        self._sizes = table_sizes(cells, rows)
        start = (2 * torch.rand(sum(self._sizes), FEATURES, generator=generator) - 1) * START
        self.table = nn.Parameter(start)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(network):
            layer = nn.Linear(inputs, outputs)
            with torch.no_grad():
                reach = math.sqrt(6 / inputs)
                layer.weight.copy_((2 * torch.rand(layer.weight.shape, generator=generator) - 1) * reach)
                layer.bias.zero_()
            layers += [layer, nn.ReLU()]
        self.network = nn.Sequential(*layers[:-1])

    @property
    def parameter_count(self) -> int:
        """Learned numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, positions: Tensor) -> Tensor:
        """Values ``[n, channels]`` at ``[n, 3]``, 0 to 1."""
        levels = [self._level(positions, level) for level in range(len(self._cells))]
        rows, weights = (torch.stack(part, dim=1).reshape(-1, 8) for part in zip(*levels, strict=True))
        features: Tensor = _Interpolation.apply(self.table, rows, weights)  # type: ignore[no-untyped-call]
        output: Tensor = self.network(features.reshape(len(positions), -1))
        return output

    def _level(self, positions: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Rows of the table and weights ``[n, 8]`` of the eight corners around each point."""
        cells, size = self._cells[level], self._sizes[level]
        scaled = positions * cells
        lower = scaled.floor().clamp(0, cells - 1)
        upwards = scaled - lower
        corner = lower.long()[:, :, None] + torch.arange(2)  # [n, 3, 2]
        weight = torch.stack([1 - upwards, upwards], dim=2)
        if size == (cells + 1) ** 3:
            strides = torch.tensor([1, cells + 1, (cells + 1) ** 2])
            x, y, z = (corner * strides[:, None]).unbind(1)
            rows = x[:, :, None, None] + y[:, None, :, None] + z[:, None, None, :]
        else:
            x, y, z = (corner * torch.tensor(PRIMES)[:, None]).unbind(1)
            rows = (x[:, :, None, None] ^ y[:, None, :, None] ^ z[:, None, None, :]) % size
        a, b, c = weight.unbind(1)
        weights = a[:, :, None, None] * b[:, None, :, None] * c[:, None, None, :]
        return rows.reshape(-1, 8) + sum(self._sizes[:level]), weights.reshape(-1, 8)


def learn(
    model: HashGrid,
    samples: Samples,
    scale: float,
    runs: int,
    loss: Loss,
    final_rate: float,
    *,
    seconds: float = math.inf,
    points: float = math.inf,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> tuple[int, float]:
    """Trains until the time or the number of points is reached.

    Args:
        model: what learns.
        samples: what it learns from, drawn as our fits draw them.
        scale: what positions are divided by to lie in 0 to 1.
        runs: drawn for one step.
        loss: that of our fits.
        final_rate: factor on the rate at the end (cosine schedule).
        seconds: when no new step begins.
        points: likewise.
        seed: of the order.
        clock: seconds, from any start.

    Returns:
        points drawn and seconds taken.

    Raises:
        ValueError: neither limit is finite, or one is not above 0.
    """
    if not (min(seconds, points) > 0 and math.isfinite(min(seconds, points))):
        raise ValueError("a limit above 0 is needed")
    adam = torch.optim.Adam(model.parameters(), lr=RATE, betas=BETAS, eps=EPSILON, fused=True)
    available = len(samples.positions) // RUN
    begin, drawn, done = clock(), 0, 0.0
    while done < 1:
        for group in adam.param_groups:
            group["lr"] = RATE * (final_rate + (1 - final_rate) * (1 + math.cos(math.pi * done)) / 2)
        chosen = turns(drawn // RUN, min(runs, 2 * available), available, seed, 0)
        rows = (chosen[:, None] * RUN + torch.arange(RUN)).reshape(-1)
        output = model(samples.positions[rows] / scale)
        _, gradient = errors_of(output.detach(), samples.truth[rows], loss)
        adam.zero_grad()
        output.backward(gradient)
        adam.step()
        drawn += len(rows)
        done = max((clock() - begin) / seconds, drawn / points)
    return drawn, clock() - begin
