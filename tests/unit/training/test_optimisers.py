"""The optimiser of tables of which a step touches few rows."""

from __future__ import annotations

import torch

from acorn_svc.training.optimisers import BETAS, EPSILON, LONGEST_GAP, TouchedRows, row_step


def test_gradients_of_the_same_row_are_added_and_the_zero_row_is_left_out():
    rows = torch.tensor([5, 0, 2, 5, 0, 2, 2], dtype=torch.int32)
    gradients = torch.arange(14.0).reshape(7, 2)
    table = TouchedRows(9)
    for _ in range(2):  # nothing of the first sum stays behind
        touched, sums = table.sum(rows, gradients)
        found = dict(zip(touched.tolist(), sums.tolist(), strict=True))
        assert found == {2: [4 + 10 + 12, 5 + 11 + 13], 5: [0 + 6, 1 + 7]}


def test_rows_that_every_step_touches_follow_adam_without_momentum():
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(6, 3, generator=generator)
    reference = table.clone().requires_grad_()
    optimiser = torch.optim.Adam([reference], 0.1, (0.0, BETAS[1]), EPSILON)
    second, last, count = torch.zeros(6, 3), torch.zeros(6), torch.zeros(())
    for _ in range(5):
        gradient = torch.randn(6, 3, generator=generator)
        reference.grad = gradient.clone()
        optimiser.step()
        row_step(table, second, last, torch.arange(6), gradient, 0.1, count)
    torch.testing.assert_close(table, reference.detach(), rtol=1e-4, atol=1e-5)


def test_a_row_touched_seldom_moves_further_and_the_others_stay():
    table, second, last = torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3)
    count = torch.zeros(())
    moves = {1: [], 2: []}
    for step in range(1, 8 * LONGEST_GAP + 1):
        rows = torch.tensor([1, 2] if step % LONGEST_GAP == 0 else [1])
        before = table.clone()
        row_step(table, second, last, rows, torch.ones(len(rows), 1), 0.1, count)
        for row in rows.tolist():
            moves[row].append(float(before[row] - table[row]))
    assert not table[0].any()
    assert not second[0].any()
    assert moves[2][-1] > 4 * moves[1][-1] > 0
    # what the second moment forgets in LONGEST_GAP steps is what one touch puts back
    forgotten = 1 - BETAS[1] ** LONGEST_GAP
    assert abs(moves[2][-1] - 0.1 / ((1 - BETAS[1]) / forgotten) ** 0.5) < 0.03
