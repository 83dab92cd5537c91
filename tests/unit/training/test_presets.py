from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from acorn_svc.errors import BadRequest
from acorn_svc.training.presets import MAX_BLOCKS, MAX_STEPS, PRESETS, FitConfig, configure
from acorn_svc.training.schedule import MEASUREMENTS, measures_at, rate_factor, reallocates_at
from acorn_svc.training.targets import ImageTarget

TARGET = ImageTarget(np.zeros((300, 400, 3), np.uint8))


def test_better_presets_hold_more_and_take_longer():
    draft, standard, fine = (configure(TARGET, preset) for preset in ("draft", "standard", "fine"))
    assert draft.blocks < standard.blocks < fine.blocks
    assert draft.steps < standard.steps < fine.steps
    assert standard == configure(TARGET)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("encoder", ["grid", "coordinate"])
@pytest.mark.parametrize("size", [(1, 1), (3000, 4000)])
def test_every_image_gets_a_sensible_configuration(preset, encoder, size):
    config = configure(ImageTarget(np.zeros((*size, 1), np.uint8)), preset, encoder=encoder)
    assert 1 <= config.blocks <= MAX_BLOCKS
    assert 1 <= config.steps <= MAX_STEPS
    assert config.architecture.encoder == encoder
    assert config.threads >= 1
    assert (config.preset, config.seconds, config.psnr) == (preset, None, None)


def test_what_is_asked_for_is_kept():
    config = configure(TARGET, "fine", steps=17, psnr=33.5, blocks=5, seed=2**63 - 1, threads=3)
    assert (config.steps, config.psnr, config.blocks, config.seed, config.threads) == (
        17,
        33.5,
        5,
        2**63 - 1,
        3,
    )
    assert configure(TARGET, seconds=2.5).seconds == 2.5


@pytest.mark.parametrize("encoder", ["grid", "coordinate"])
def test_a_configuration_survives_json(encoder):
    config = configure(TARGET, "draft", seconds=3.3, psnr=31.7, encoder=encoder)
    assert FitConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "finest"}, {"encoder": "hash"}, {"seconds": 1.0, "steps": 1}, {"seconds": 0.0},
        {"seconds": math.nan}, {"seconds": math.inf}, {"seconds": -1.0}, {"steps": 0},
        {"steps": MAX_STEPS + 1}, {"psnr": 0.0}, {"psnr": 101.0}, {"psnr": math.nan}, {"blocks": 0},
        {"blocks": MAX_BLOCKS + 1}, {"seed": -1}, {"seed": 2**63}, {"threads": 0}, {"threads": 10_000},
    ],
)  # fmt: skip
def test_nonsense_is_refused(options):
    with pytest.raises(BadRequest):
        configure(TARGET, **options)


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_rates_fall_from_one_to_their_last(steps):
    config = configure(TARGET)
    factors = [rate_factor(config, step, steps) for step in range(steps + 1)]
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(config.final_rate)
    assert all(before > after for before, after in itertools.pairwise(factors))


@pytest.mark.parametrize("steps", [1, 3, 100, 12_345])
def test_the_tree_is_redecided_now_and_then_but_not_late(steps):
    config = configure(TARGET)
    moments = [step for step in range(1, steps + 1) if reallocates_at(config, step, steps)]
    assert len(moments) == config.reallocations if steps >= 100 else len(moments) <= config.reallocations
    assert all(step <= math.ceil(steps * config.reallocation_end) for step in moments)


@pytest.mark.parametrize("steps", [1, 29, 30, 41, 1000, 12_345])
def test_the_quality_is_measured_as_often_as_said(steps):
    moments = [step for step in range(1, steps + 1) if measures_at(step, steps)]
    assert min(steps, MEASUREMENTS) <= len(moments) <= 2 * MEASUREMENTS
