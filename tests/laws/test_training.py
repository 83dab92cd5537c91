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

from acorn_svc.field.base import empty_tree
from acorn_svc.field.conventions import scaled_size
from acorn_svc.field.encoders import block_inputs
from acorn_svc.field.geometry import PATCH_SIDE, geometry_of
from acorn_svc.field.lattice import Lattice
from acorn_svc.field.model import Field
from acorn_svc.field.ops.learning import BETAS, EPSILON, FEATURES, Sampling, Schedule, scale_layers
from acorn_svc.field.ops.reference import _decode, _points
from acorn_svc.field.state import Architecture, EncoderName, FitRecord
from acorn_svc.formats.checkpoint import read_state, write_state
from acorn_svc.training import loop
from acorn_svc.training.evaluation import full_size_psnr, scale_psnr
from acorn_svc.training.images import ImageTask
from acorn_svc.training.loop import Progress, fit
from acorn_svc.training.model import TrainableField
from acorn_svc.training.presets import FitConfig, configure
from acorn_svc.training.state import FitState
from acorn_svc.training.targets import ImageTarget

TARGET = ImageTarget(np.ascontiguousarray(astronaut()[100:161, 200:264]))
STEPS = 12

both = pytest.mark.parametrize("encoder", ["grid", "coordinate"])


@pytest.fixture(autouse=True)
def every_step_reports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 0.0)
    yield
    torch.set_num_threads(threads)


def small_config(encoder: EncoderName = "grid", **options: Any) -> FitConfig:
    options = {"steps": STEPS, "blocks": 25, "threads": 1, **options}
    config = configure(TARGET, encoder=encoder, **options)
    changes = {"reallocations": 2, "reallocation_interval": 1, "alpha": 0.01}  # merges seem cheap
    return replace(config, architecture=small_architecture(encoder), patches=40, **changes)


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


def test_measuring_the_speed_is_part_of_the_fit():
    measured = fit(TARGET, small_config(steps=None, seconds=0.5))
    next(measured)
    after = next(measured)
    measured.close()
    assert 0 < after.step < after.steps
    steps = after.state().arrays["counters.decoder_steps"].sum()
    assert steps == after.step


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
    generator = torch.Generator().manual_seed(seed)
    arrays = TrainableField.start(TARGET.signal, architecture, lattice, generator)
    if encoder == "grid":
        arrays["parameters.encoder.features"][1:] *= 50  # strong enough to reach through the ReLUs
    return TrainableField(architecture, lattice, arrays)


def snapshot(model: TrainableField) -> Field:
    architecture = model.architecture
    task = ImageTask(TARGET, replace(small_config(), architecture=architecture))
    return task.field(model, FitRecord())


def all_corners(scale: int) -> torch.Tensor:
    axes = [torch.arange(0, scaled_size(side, scale), PATCH_SIDE) for side in TARGET.signal.size]
    return torch.cartesian_prod(*axes)


def steps_of(scale: int, count: int) -> tuple[Sampling, Schedule]:
    """Steps that see every patch of a scale once."""
    patches = len(all_corners(scale))
    sampling = Sampling(TARGET.pyramid(3), patches, patches, seed=3)
    rates = torch.full((count,), 0.01), torch.full((count,), 0.003)
    return sampling, Schedule(torch.full((count,), scale, dtype=torch.int32), *rates)


@both
def test_a_step_is_adam_on_the_mean_squared_error(encoder):
    model, architecture = trainable(encoder), small_architecture(encoder)
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
    truth = torch.from_numpy(TARGET.values(0)).reshape(-1, 3)
    rows, columns = np.indices((TARGET.signal.height, TARGET.signal.width)).reshape(2, -1)
    centres = torch.from_numpy(np.stack([columns, rows], axis=1) + 0.5)
    geometry = geometry_of(model.lattice)
    for _ in range(3):
        vertices = features_by_definition(architecture, model.lattice, leaves)
        vertices = torch.cat([torch.zeros_like(vertices[:1]), vertices[1:]])
        inputs = _points(geometry, vertices, centres, 0, None)
        loss = ((_decode(inputs, scale_layers(leaves, 0)) - truth) ** 2).mean()
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        model.train(*steps_of(0, 1))
    learned = model.to_arrays()
    for name, tensor in leaves.items():
        reached = torch.from_numpy(learned[f"parameters.{name}"])
        assert not torch.equal(reached, torch.from_numpy(arrays[f"parameters.{name}"]))
        torch.testing.assert_close(reached, tensor.detach(), rtol=1e-3, atol=2e-3)


def features_by_definition(
    architecture: Architecture, lattice: Lattice, parameters: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Vertex features by plain PyTorch, differentiable: the mean of what the blocks around a vertex say."""
    if FEATURES in parameters:
        return parameters[FEATURES]
    hidden = block_inputs(lattice.tree, architecture.frequencies)
    count = sum(name.startswith("encoder.") for name in parameters) // 2
    for number in range(count):
        hidden = hidden @ parameters[f"encoder.{number}.weight"] + parameters[f"encoder.{number}.bias"]
        hidden = hidden.relu() if number < count - 1 else hidden
    table = torch.from_numpy(lattice.table[:-1]).reshape(-1).long()
    total = hidden.new_zeros(lattice.vertices + 1, architecture.features)
    total = total.index_add(0, table, hidden.reshape(-1, architecture.features))
    return total / torch.bincount(table, minlength=lattice.vertices + 1).clamp(min=1)[:, None]


@both
def test_a_step_leaves_other_scales_and_absent_vertices_alone(encoder):
    model = trainable(encoder)
    before = model.to_arrays()
    model.train(*steps_of(1, 1))
    after = model.to_arrays()
    trained = [1] if encoder == "grid" else [0, 1]  # the coordinate encoder learns full size with every step
    for name in before:
        if ".decoder." in name:
            assert np.array_equal(
                np.delete(before[name], trained, axis=0), np.delete(after[name], trained, axis=0)
            )
            assert not np.array_equal(before[name][1], after[name][1])
    if encoder == "grid":
        for group in ("parameters", "second"):
            assert not after[f"{group}.encoder.features"][0].any()


@both
def test_another_tree_keeps_what_was_learned(encoder):
    model = trainable(encoder)
    model.train(*steps_of(0, 3))
    before, old = model.to_arrays(), model.lattice
    assert before["errors"].any()
    picture = snapshot(model).render_values()
    model.move_to(old.tree.split(old.tree.leaf_rows[::2]))
    after = model.to_arrays()
    assert not after.pop("errors").any()
    if encoder == "coordinate":
        assert all(np.array_equal(before[name], after[name]) for name in after)
        return
    np.testing.assert_allclose(snapshot(model).render_values(), picture, atol=1e-5)
    here, there = model.lattice.carry_over(old)
    new = np.setdiff1d(np.arange(model.lattice.vertices + 1), here)
    assert len(np.unique(here)) == old.vertices < model.lattice.vertices
    for name in ("parameters.encoder.features", "second.encoder.features", "counters.last"):
        moved, kept = after[name], before[name]
        assert np.array_equal(moved[here], kept[there])
        assert kept[there].any()
        assert not moved[new].any()


@both
def test_points_are_rendered_as_the_field_renders_them(encoder):
    model = trainable(encoder)
    picture = snapshot(model).render_values()
    rows, columns = np.indices(picture.shape[:2]).reshape(2, -1)
    values = model.render_points(torch.from_numpy(np.stack([columns, rows], axis=1) + 0.5))
    np.testing.assert_allclose(values, picture[rows, columns], atol=5e-3)  # the field's are half floats


def test_the_result_does_not_depend_on_the_number_of_threads():
    ends = [last(fit(TARGET, small_config(threads=threads))).state() for threads in (1, 2, 3)]
    for state in ends:
        state.meta["config"]["threads"] = 1
    assert_same(ends[0], ends[1])
    assert_same(ends[0], ends[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
@both
def test_a_gpu_learns_what_the_processor_learns(encoder):
    ends = [last(fit(TARGET, small_config(encoder, steps=200, device=device))) for device in ("cpu", "cuda")]
    assert ends[1].psnr == pytest.approx(ends[0].psnr, abs=0.5)
    resumed = fit(TARGET, small_config(), ends[1].state())
    assert last(resumed).psnr == pytest.approx(ends[1].psnr, abs=1e-3)


def test_steps_taken_together_or_one_by_one_are_the_same(monkeypatch):
    one_by_one = [progress.step for progress in fit(TARGET, small_config(steps=200))]
    alone = last(fit(TARGET, small_config(steps=200))).state()
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 10.0)
    together = list(fit(TARGET, small_config(steps=200)))
    assert len(together) < len(one_by_one)
    assert_same(together[-1].state(), alone)


@both
def test_progress_estimates_what_the_file_will_hold(encoder):
    progress = last(fit(TARGET, small_config(encoder)))
    info = progress.field().info()
    assert (info.steps, info.psnr, info.blocks) == (STEPS, progress.psnr, progress.blocks)
    assert abs(progress.parameters - info.parameters) <= 3
