from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch

from acorn_svc.errors import BadRequest
from acorn_svc.training.presets import MAX_BLOCKS, MAX_STEPS, PRESETS, FitConfig, configure
from acorn_svc.training.schedule import (
    LEAST_INTERVAL,
    MEASUREMENTS,
    measurement_interval,
    reallocation_steps,
    scale_at,
    schedule,
)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "unknown device 'tpu'; known: cpu, cuda"),
        ({"mlp": "other"}, "unknown mlp 'other'"),
        ({"mlp": "tiny-cuda-nn"}, "choose the device cuda"),
    ],
)
def test_an_unknown_device_is_refused(options, message):
    with pytest.raises(BadRequest, match=message):
        configure(TARGET, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused_with_the_reason():
    with pytest.raises(BadRequest, match="PyTorch sees no CUDA device"):
        configure(TARGET, device="cuda")


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_rates_fall_from_one_to_their_last(steps):
    config = configure(TARGET)
    rates = schedule(config, 0, steps + 1, steps, 5).encoder_rates.double() / config.encoder_rate
    factors = rates.tolist()
    assert factors[0] == pytest.approx(1)
    assert factors[-1] == pytest.approx(config.final_rate)
    assert all(before > after for before, after in itertools.pairwise(factors))


def test_a_schedule_may_be_made_in_parts():
    config = configure(TARGET)
    parts = [schedule(config, start, start + 10, 40, 5) for start in range(0, 40, 10)]
    for joined, whole in zip(zip(*parts, strict=True), schedule(config, 0, 40, 40, 5), strict=True):
        assert torch.equal(torch.cat(joined), whole)


@pytest.mark.parametrize("depth", [0, 1, 2, 9])
def test_scales_are_drawn_as_often_as_said(depth):
    config = configure(TARGET)
    scales = np.array([scale_at(config, step, depth) for step in range(20_000)])
    counts = np.bincount(scales, minlength=depth + 1) / len(scales)
    assert counts[0] == pytest.approx(config.full_size_share if depth else 1, abs=0.02)
    assert len(counts) == depth + 1
    assert (np.diff(counts[1:]) <= 0.01).all()
    assert (counts > 0).all()


@pytest.mark.parametrize("steps", [1, 3, 100, 12_345])
def test_the_tree_is_redecided_now_and_then_but_not_late(steps):
    config = configure(TARGET)
    moments = reallocation_steps(config, steps)
    assert len(moments) == (config.reallocations if steps > 2000 else 0)
    assert moments == sorted(set(moments))
    assert all(step <= math.ceil(steps * config.reallocation_end) for step in moments)


@pytest.mark.parametrize("steps", [1, 29, 30, 41, 1000, 12_345])
def test_the_quality_is_measured_as_often_as_said(steps):
    count = steps // measurement_interval(steps)
    assert count <= 2 * MEASUREMENTS
    assert count >= MEASUREMENTS or steps < MEASUREMENTS * LEAST_INTERVAL
