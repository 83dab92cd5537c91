"""Adam on plain arrays."""

from __future__ import annotations

import torch

from acorn_svc.field.ops.learning import BETAS, EPSILON
from acorn_svc.training.optimisers import adam_step


def test_a_step_is_that_of_adam():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(6, 3, generator=generator)
    reference = values.clone().requires_grad_()
    optimiser = torch.optim.Adam([reference], 0.1, BETAS, EPSILON)
    first, second, count = torch.zeros(6, 3), torch.zeros(6, 3), torch.zeros(())
    for number in range(1, 6):
        gradient = torch.randn(6, 3, generator=generator)
        reference.grad = gradient.clone()
        optimiser.step()
        adam_step([(values, first, second)], [gradient], 0.1, count)
        assert count == number
    torch.testing.assert_close(values, reference.detach(), rtol=1e-4, atol=1e-5)
