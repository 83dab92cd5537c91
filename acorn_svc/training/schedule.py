"""What depends on the step alone: learning rates, when to re-allocate and when to measure."""

from __future__ import annotations

import math

from acorn_svc.training.presets import FitConfig

MEASUREMENTS = 30


def rate_factor(config: FitConfig, step: int, steps: int) -> float:
    """Factor on the learning rates: a cosine from 1 to ``final_rate``."""
    cosine = (1 + math.cos(math.pi * step / steps)) / 2
    return config.final_rate + (1 - config.final_rate) * cosine


def reallocates_at(config: FitConfig, step: int, steps: int) -> bool:
    """Whether the tree is re-decided after ``step`` steps."""
    moments = (
        round(steps * config.reallocation_end * number / config.reallocations)
        for number in range(1, config.reallocations + 1)
    )
    return step in moments


def measures_at(step: int, steps: int) -> bool:
    """Whether the quality is measured after ``step`` steps."""
    return step % max(1, steps // MEASUREMENTS) == 0
