"""What depends on the step alone: scales, learning rates, when to re-allocate and when to measure."""

from __future__ import annotations

import numpy as np
import torch

from acorn_svc.field.ops.learning import Schedule
from acorn_svc.field.ops.shuffle import mixed
from acorn_svc.training.presets import FitConfig

MEASUREMENTS = 30
LEAST_INTERVAL = 64


def schedule(config: FitConfig, first: int, stop: int, steps: int, depth: int) -> Schedule:
    """What steps ``first .. stop - 1`` of ``steps`` do, for a tree of ``depth``."""
    numbers = np.arange(first, stop)
    cosine = (1 + np.cos(np.pi * numbers / steps)) / 2
    factors = config.final_rate + (1 - config.final_rate) * cosine
    scales = [scale_at(config, step, depth) for step in range(first, stop)]
    return Schedule(
        torch.tensor(scales, dtype=torch.int32),
        torch.from_numpy((config.encoder_rate * factors).astype(np.float32)),
        torch.from_numpy((config.decoder_rate * factors).astype(np.float32)),
    )


def scale_at(config: FitConfig, step: int, depth: int) -> int:
    """The scale that a step trains: mostly full size; else a coarser one, the finer ones more often."""
    word = mixed(mixed(config.seed) ^ step)
    chance, place = (word >> 32) / 2**32, (word & 0xFFFFFFFF) / 2**32
    if depth == 0 or chance < config.full_size_share:
        return 0
    return 1 + min(int(place**2 * depth), depth - 1)


def reallocation_steps(config: FitConfig, steps: int) -> list[int]:
    """After how many steps the tree is re-decided."""
    count = min(config.reallocations, steps // config.reallocation_interval)
    return [round(steps * config.reallocation_end * number / count) for number in range(1, count + 1)]


def measurement_interval(steps: int) -> int:
    """Every how many steps the quality is measured."""
    return max(LEAST_INTERVAL, steps // MEASUREMENTS)
