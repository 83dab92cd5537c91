"""Optimisers on plain arrays: Adam for networks, and one for tables of which a step touches few rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adam import adam

from acorn_svc.field.lattice import ZERO_ROW

BETAS = (0.9, 0.99)
EPSILON = 1e-12
LONGEST_GAP = 32


Slot = tuple[Tensor, Tensor, Tensor]


def adam_step(slots: list[Slot], gradients: list[Tensor], rate: float, count: Tensor) -> None:
    """One step of Adam, in place.

    Args:
        slots: parameters with their first and second moments.
        gradients: of each parameter.
        rate: learning rate.
        count: ``[]``, how many steps there were; one more afterwards.
    """
    parameters, first, second = (list(part) for part in zip(*slots, strict=True))
    with torch.no_grad():
        adam(
            parameters,
            gradients,
            first,
            second,
            [],
            [count.clone() for _ in slots],
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=rate,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )
        count += 1


class TouchedRows:
    """Adds up what several samples say about the same rows, at a cost of the rows touched, not of the table.

    Args:
        count: rows of the table, the zero row among them.
    """

    def __init__(self, count: int) -> None:
        self._place = torch.zeros(count, dtype=torch.int64)

    def sum(self, rows: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Sums gradients of the same row; the zero row does not learn.

        Args:
            rows: ``[n]``, with repeats.
            gradients: ``[n, channels]``.

        Returns:
            ``int64 [touched]`` rows without repeats, and ``[touched, channels]``.
        """
        rows, order = rows.long(), torch.arange(len(rows))
        self._place[rows] = order  # of each row one mention stays, which then stands for all
        touched = rows[(self._place[rows] == order) & (rows != ZERO_ROW)]
        self._place[touched] = order[: len(touched)]
        self._place[ZERO_ROW] = len(touched)
        total = gradients.new_zeros(len(touched) + 1, gradients.shape[1])
        return touched, total.index_add_(0, self._place[rows], gradients)[:-1]


def row_step(
    table: Tensor, second: Tensor, last: Tensor, rows: Tensor, gradient: Tensor, rate: float, count: Tensor
) -> None:
    """One step on some rows of a table, in place: Adam without a first moment, at the cost of these rows.

    The second moment of a row decays with the steps since the row was last touched, ``LONGEST_GAP`` at most.
    Rows that are touched seldom therefore move further each time, as they do under Adam on the whole table,
    where the momentum of one touch goes on through the steps that do not touch the row.

    Args:
        table: ``[all, channels]``.
        second: ``[all, channels]``, mean squared gradients.
        last: ``float32 [all]``, the step that touched each row last.
        rows: ``int64 [n]``, without repeats.
        gradient: ``[n, channels]``.
        rate: learning rate.
        count: ``[]``, how many steps there were; one more afterwards.
    """
    count += 1
    gap = (count - last[rows]).clamp(max=LONGEST_GAP)
    moment = second[rows] * (BETAS[1] ** gap)[:, None] + (1 - BETAS[1]) * gradient.square()
    scale = (moment / (1 - BETAS[1] ** count)).sqrt_().add_(EPSILON)
    table.index_add_(0, rows, gradient / scale, alpha=-rate)
    second[rows] = moment
    last[rows] = count
