"""Laws of the fit: what happens depends on the configuration and the step alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_fields import small_architecture
from skimage.data import astronaut

from acorn_svc.field.conventions import scaled_size
from acorn_svc.field.decoder import decode, scale_layers
from acorn_svc.field.encoders import VertexFeatures
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.model import Field, empty_tree
from acorn_svc.field.reader import Reader
from acorn_svc.field.state import EncoderName, FitRecord
from acorn_svc.formats.checkpoint import read_state, write_state
from acorn_svc.training import loop
from acorn_svc.training.evaluation import full_size_psnr, scale_psnr
from acorn_svc.training.loop import Progress, fit
from acorn_svc.training.model import Rates, TrainableField
from acorn_svc.training.optimisers import BETAS, EPSILON
from acorn_svc.training.presets import PATCH_SIDE, FitConfig, configure
from acorn_svc.training.state import FitState
from acorn_svc.training.targets import ImageTarget

TARGET = ImageTarget(np.ascontiguousarray(astronaut()[100:161, 200:264]))
STEPS = 12

both = pytest.mark.parametrize("encoder", ["grid", "coordinate"])


@pytest.fixture(autouse=True)
def every_step_reports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    yield
    torch.set_num_threads(threads)


def small_config(encoder: EncoderName = "grid", **options: Any) -> FitConfig:
    options = {"steps": STEPS, "blocks": 25, "threads": 1, **options}
    config = configure(TARGET, encoder=encoder, **options)
    lively = {"patches": 40, "reallocations": 2, "alpha": 0.01}  # merges seem cheap: the tree does change
    return replace(config, architecture=small_architecture(encoder), **lively)


def assert_same(one: FitState, other: FitState) -> None:
    """Bit for bit, but for the time that passed."""
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert array.dtype == other.arrays[name].dtype, name
        assert array.tobytes() == other.arrays[name].tobytes(), name
    assert {**one.meta, "seconds": 0} == {**other.meta, "seconds": 0}


def last(progresses: Iterator[Progress]) -> Progress:
    *_, final = progresses
    return final


@both
def test_a_fit_stopped_at_any_step_ends_as_if_it_had_not_been(encoder, tmp_path):
    states, blocks, progress = [], set(), None
    for progress in fit(TARGET, small_config(encoder)):
        states.append(progress.state())
        blocks.add(states[-1].arrays["tree.indices"].tobytes())
        assert progress.blocks <= 25
    assert progress is not None
    assert len(blocks) > 1, "the tree never changed: nothing is shown about re-allocation"
    assert [state.meta["step"] for state in states] == [*range(1, STEPS + 1), STEPS, STEPS]
    final = progress.state()
    for state in states[:-1]:
        path: Path = tmp_path / "fit.state"
        write_state(path, state)
        ended = last(fit(TARGET, small_config(seed=99), read_state(path)))
        assert_same(ended.state(), final)
        assert ended.psnr == progress.psnr


@both
def test_looking_changes_nothing(encoder):
    untouched = last(fit(TARGET, small_config(encoder))).state()
    progress = None
    for progress in fit(TARGET, small_config(encoder)):
        torch.rand(7), np.random.default_rng().random()
        assert progress.preview(20).shape == (19, 20, 3)
        assert progress.field().render().shape == (61, 64, 3)
        for array in progress.state().arrays.values():
            if array.flags.writeable and array.dtype == np.float32:
                array += 1
    assert progress is not None
    assert_same(progress.state(), untouched)


def test_a_fit_may_follow_a_render_in_one_process():
    """What a render caches in inference mode must not enter the graph of a step."""
    code = (
        "import random_fields, test_training as t; random_fields.random_field((40, 40)).render();"
        "print(t.last(t.fit(t.TARGET, t.small_config(steps=2))).stage)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert run.stdout.strip() == "done", run.stderr


def test_seeds_differ_and_repeat():
    ends = [last(fit(TARGET, small_config(seed=seed))).state() for seed in (0, 0, 1)]
    assert_same(ends[0], ends[1])
    name = "parameters.decoder.0.weight"
    assert not np.array_equal(ends[0].arrays[name], ends[2].arrays[name])


def test_a_state_is_plain_data():
    state = next(fit(TARGET, small_config())).state()
    assert json.loads(json.dumps(state.meta)) == state.meta
    assert all(type(array) is np.ndarray and array.dtype != object for array in state.arrays.values())


def test_progress_tells_the_stages_in_order():
    stages = [progress.stage for progress in fit(TARGET, small_config())]
    assert stages == ["fitting"] * STEPS + ["evaluating", "done"]


def test_closing_cancels():
    progresses = fit(TARGET, small_config(steps=10_000_000))
    next(progresses)
    progresses.close()
    assert list(progresses) == []


def test_a_time_limit_becomes_a_number_of_steps_once(monkeypatch):
    monkeypatch.setattr(loop, "SPEED_SECONDS", 0.01)
    progresses = fit(TARGET, replace(small_config(steps=None, seconds=0.5)))
    first, second = next(progresses), next(progresses)
    assert (first.stage, first.step, first.steps) == ("measuring", 0, 0)
    assert second.steps > 0
    state = second.state()
    progresses.close()
    assert state.meta["steps"] == second.steps
    resumed = fit(TARGET, small_config(), state)
    later = next(resumed)
    resumed.close()
    assert later.stage != "measuring"
    assert later.steps == second.steps


def test_measuring_the_speed_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(loop, "SPEED_SECONDS", 0.01)
    measured = fit(TARGET, small_config(steps=None, seconds=0.5))
    next(measured)
    state = next(measured).state()
    measured.close()
    plain = fit(TARGET, small_config(steps=state.meta["steps"]))
    expected = next(plain).state()
    plain.close()
    state.meta["config"] = expected.meta["config"]
    assert_same(state, expected)


def test_a_fit_stops_at_the_quality_asked_for():
    config = small_config(steps=2000, psnr=18.0)
    final = last(fit(TARGET, config))
    assert final.step < 2000
    assert final.psnr is not None
    assert final.psnr >= 18.0
    assert last(fit(TARGET, small_config(psnr=100.0))).step == STEPS


@pytest.mark.parametrize(("encoder", "steps", "decibels"), [("grid", 200, 32.0), ("coordinate", 200, 22.5)])
def test_a_fit_learns_the_picture(encoder, steps, decibels):
    config = replace(small_config(encoder, steps=steps, blocks=120), patches=256)
    if encoder == "coordinate":
        architecture = replace(config.architecture, encoder_width=64)
        config = replace(config, architecture=architecture, encoder_rate=5e-3)
    final = last(fit(TARGET, config))
    assert final.psnr is not None
    assert final.psnr >= decibels
    field = final.field()
    mean_square = np.square(field.render() / 255.0 - TARGET.values(0)).mean()
    assert final.psnr == pytest.approx(-10 * np.log10(mean_square), abs=1e-3)
    assert Field.from_state(field.to_state()).render().tobytes() == field.render().tobytes()
    assert scale_psnr(field, TARGET, 1) >= 18


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_all_kinds_of_images_can_be_fitted(channels):
    pixels = np.random.default_rng(0).integers(0, 65536, (9, 23, channels), np.uint16)
    target = ImageTarget(pixels)
    final = last(fit(target, small_config(steps=3)))
    assert final.field().render().shape == pixels.shape
    assert final.psnr == full_size_psnr(final.field(), target)


def trainable(encoder: EncoderName, seed: int = 0) -> TrainableField:
    architecture = small_architecture(encoder)
    tree = empty_tree(TARGET.signal, architecture.cells)
    tree = tree.split(tree.leaf_rows).split(np.array([1, 2]))
    lattice = Lattice.build(tree, architecture.cells)
    model = TrainableField.start(TARGET.signal, architecture, lattice, torch.Generator().manual_seed(seed))
    arrays = model.to_arrays()
    if encoder == "grid":
        arrays["parameters.encoder.features"][1:] *= 50  # strong enough to reach through the ReLUs
    return TrainableField(TARGET.signal, architecture, lattice, arrays)


def all_corners(scale: int) -> torch.Tensor:
    axes = [torch.arange(0, scaled_size(side, scale), PATCH_SIDE) for side in TARGET.signal.size]
    return torch.cartesian_prod(*axes)


@both
@pytest.mark.parametrize("scale", [0, 2])
def test_a_step_is_adam_on_the_mean_squared_error(encoder, scale):
    model, architecture = trainable(encoder), small_architecture(encoder)
    corners = all_corners(scale)
    truth, weights = TARGET.patches(corners, scale, PATCH_SIDE)
    arrays = model.to_arrays()
    start = {name.removeprefix("parameters."): torch.from_numpy(array.copy())
             for name, array in arrays.items() if name.startswith("parameters.")}  # fmt: skip
    leaves = {name: tensor.requires_grad_() for name, tensor in start.items()}
    # features have no first moment; rows that every step touches then follow Adam without momentum
    encoder_betas = (0.0, BETAS[1]) if encoder == "grid" else BETAS
    optimisers = [
        torch.optim.Adam([leaves[n] for n in leaves if n.startswith(part)], rate, betas, EPSILON)
        for part, rate, betas in (("encoder", 0.01, encoder_betas), ("decoder", 0.003, BETAS))
    ]
    places = torch.arange(PATCH_SIDE)
    offsets = torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1).reshape(-1, 1, 2)
    centres = (corners + offsets + 0.5) * 2.0**scale
    for _ in range(3):
        vertices = VertexFeatures(architecture, model.lattice)(leaves)
        vertices = torch.cat([torch.zeros_like(vertices[:1]), vertices[1:]])
        inputs = Reader(model.lattice).points(vertices, centres.reshape(-1, 2).double(), scale)
        values = decode(inputs, scale_layers(leaves, scale)).reshape(truth.shape)
        squares = ((values - truth) ** 2).sum(dim=2) * weights
        loss = squares.sum() / (weights.sum() * truth.shape[2])
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        returned = model.step(corners, truth, weights, scale, Rates(0.01, 0.003))
        torch.testing.assert_close(returned, squares.sum(dim=0).detach(), rtol=1e-3, atol=1e-4)
    learned = model.to_arrays()
    for name, tensor in leaves.items():
        reached = torch.from_numpy(learned[f"parameters.{name}"])
        assert not torch.equal(reached, torch.from_numpy(arrays[f"parameters.{name}"]))
        torch.testing.assert_close(reached, tensor.detach(), rtol=1e-3, atol=2e-3)
        second = torch.from_numpy(learned[f"second.{name}"])
        reference = optimisers[name.startswith("decoder")].state[tensor]["exp_avg_sq"]
        torch.testing.assert_close(second, reference, rtol=4e-2, atol=1e-3 * float(reference.abs().max()))


@both
def test_a_step_leaves_other_scales_and_absent_vertices_alone(encoder):
    model = trainable(encoder)
    before = model.to_arrays()
    corners = all_corners(1)
    truth, weights = TARGET.patches(corners, 1, PATCH_SIDE)
    model.step(corners, truth, weights, 1, Rates(0.01, 0.01))
    after = model.to_arrays()
    for name in before:
        if ".decoder." in name:
            assert np.array_equal(np.delete(before[name], 1, axis=0), np.delete(after[name], 1, axis=0))
            assert not np.array_equal(before[name][1], after[name][1])
    if encoder == "grid":
        for group in ("parameters", "second"):
            assert not after[f"{group}.encoder.features"][0].any()


@both
def test_another_tree_keeps_what_was_learned(encoder):
    model = trainable(encoder)
    corners = all_corners(0)
    truth, weights = TARGET.patches(corners, 0, PATCH_SIDE)
    for _ in range(3):
        model.step(corners, truth, weights, 0, Rates(0.01, 0.01))
    before, old = model.to_arrays(), model.lattice
    picture = model.to_field(FitRecord()).render_values()
    model.move_to(old.tree.split(old.tree.leaf_rows[::2]))
    after = model.to_arrays()
    if encoder == "coordinate":
        assert all(np.array_equal(before[name], after[name]) for name in before)
        return
    np.testing.assert_allclose(model.to_field(FitRecord()).render_values(), picture, atol=1e-5)
    here, there = model.lattice.carry_over(old)
    new = np.setdiff1d(np.arange(model.lattice.vertices + 1), here)
    assert len(here) == old.vertices < model.lattice.vertices
    for group in ("parameters", "second"):
        moved, kept = after[f"{group}.encoder.features"], before[f"{group}.encoder.features"]
        assert np.array_equal(moved[here], kept[there])
        assert kept[there].any()
        assert not moved[new].any()


@both
def test_patches_are_rendered_as_the_field_renders_them(encoder):
    model = trainable(encoder)
    corners = all_corners(0)
    values = model.render_patches(corners, PATCH_SIDE)
    picture = model.to_field(FitRecord()).render_values()
    for (x, y), patch in zip(corners.tolist(), values.transpose(0, 1), strict=True):
        expected = picture[y : y + PATCH_SIDE, x : x + PATCH_SIDE]
        patch = patch.reshape(PATCH_SIDE, PATCH_SIDE, 3)[: expected.shape[0], : expected.shape[1]]
        np.testing.assert_allclose(patch, expected, atol=5e-3)  # the field's features are half floats


@both
def test_progress_estimates_what_the_file_will_hold(encoder):
    progress = last(fit(TARGET, small_config(encoder)))
    info = progress.field().info()
    assert (info.steps, info.psnr, info.blocks) == (STEPS, progress.psnr, progress.blocks)
    assert abs(progress.parameters - info.parameters) <= 3
