"""Adam on plain arrays."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adam import adam

from acorn_svc.field.ops.learning import BETAS, EPSILON

Slot = tuple[Tensor, ...]


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
