"""What a person chooses, turned into the numbers that the loop needs."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast, get_args

from acorn_svc.errors import BadRequest
from acorn_svc.field import ops
from acorn_svc.field.geometry import PATCH_SIDE
from acorn_svc.field.ops import tcnn
from acorn_svc.field.ops.learning import Loss
from acorn_svc.field.ops.tcnn import MlpName
from acorn_svc.field.state import Architecture, EncoderName
from acorn_svc.training.targets import ImageTarget, ShapeTarget

PresetName = Literal["draft", "standard", "fine"]
DeviceName = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Preset:
    """How much a field may hold and how long it is trained.

    Attributes:
        pixels_per_block: full-size pixels for each leaf of the budget, until
        max_blocks: is reached.
        samples_per_block: pixels visited during the fit, for each leaf of the budget.
    """

    pixels_per_block: int
    max_blocks: int
    samples_per_block: int


PRESETS: dict[str, Preset] = {
    "draft": Preset(pixels_per_block=1600, max_blocks=2048, samples_per_block=15_000),
    "standard": Preset(pixels_per_block=820, max_blocks=8192, samples_per_block=45_000),
    "fine": Preset(pixels_per_block=500, max_blocks=32_768, samples_per_block=150_000),
}


@dataclass(frozen=True)
class ShapePreset:
    """The same for shapes.

    Attributes:
        resolution: voxels along the longest side of the box, at the finest level.
        max_blocks: leaves of the tree.
        samples_per_block: points near the surface whose truth is computed, for each block that holds surface.
        steps: of the optimiser.
    """

    resolution: int
    max_blocks: int
    samples_per_block: int
    steps: int


SHAPE_PRESETS: dict[str, ShapePreset] = {
    "draft": ShapePreset(resolution=128, max_blocks=8_000, samples_per_block=100, steps=1_000),
    "standard": ShapePreset(resolution=256, max_blocks=48_000, samples_per_block=100, steps=2_500),
    "fine": ShapePreset(resolution=512, max_blocks=192_000, samples_per_block=60, steps=8_000),
}
MIN_BLOCKS = 16
COORDINATE_BLOCK = 4  # a block costs time and no parameters: fewer, larger ones than features of their own
COORDINATE_MAX_BLOCKS = 1024
MAX_BLOCKS = 1 << 18
MAX_STEPS = 10_000_000
MAX_SECONDS = 7 * 24 * 3600.0
PATCHES = 256
MAX_PATCHES = 1024
BLOCKS_PER_PATCH = 2
COARSE_PART = 4
FULL_SIZE_SHARE = 0.5
SHAPE_RUNS = 256
SHAPE_FULL_SIZE_SHARE = 0.75


@dataclass(frozen=True)
class FitConfig:
    """Everything that determines a fit.

    Attributes:
        preset: name it was made from.
        architecture: shape of the networks.
        blocks: most leaves of the tree.
        steps: optimiser steps; a time limit replaces them.
        seconds: time to fit in; the speed is measured once and the steps fixed by it.
        psnr: decibels at which to stop early, for pictures.
        iou: intersection over union at which to stop early, for shapes.
        resolution: voxels along the longest side of the box of a shape; 0 for pictures.
        samples_per_block: points with truth for each block of a shape that holds surface; 0 for pictures.
        loss: what shapes are learned by: ``"distance"``, or ACORN's ``"occupancy"``.
        seed: of all randomness.
        threads: of the computation; with the coordinate encoder the result depends on them to the last bit.
        device: ``"cpu"`` or ``"cuda"``.
        mlp: ``"own"`` or ``"tiny-cuda-nn"``, which runs the coordinate encoder on a GPU.
        patches: squares of ``PATCH_SIDE`` pixels, or runs of points, drawn for one step at full size.
        coarse_patches: the same for one step of a coarser scale, whose decoder needs steps more than samples.
        encoder_rate: learning rate of features or encoder.
        decoder_rate: learning rate of the decoders.
        final_rate: factor on both at the last step (cosine schedule).
        full_size_share: share of the steps that train scale 0 alone; the others train a coarser one, with the
            coordinate encoder both.
        reallocations: how often the tree is re-decided,
        reallocation_end: within this share of the steps,
        reallocation_interval: if there are this many steps for each time.
        alpha: what a merge is predicted to cost; see :func:`acorn_svc.field.allocation.allocate`.
        beta: what a split is predicted to gain; likewise.
    """

    preset: str
    architecture: Architecture
    blocks: int
    steps: int
    seconds: float | None = None
    psnr: float | None = None
    iou: float | None = None
    resolution: int = 0
    samples_per_block: int = 0
    loss: Loss = "distance"
    seed: int = 0
    threads: int = 1
    device: DeviceName = "cpu"
    mlp: MlpName = "own"
    patches: int = PATCHES
    coarse_patches: int = PATCHES // COARSE_PART
    encoder_rate: float = 2e-2
    decoder_rate: float = 2e-2
    final_rate: float = 0.03
    full_size_share: float = FULL_SIZE_SHARE
    reallocations: int = 4
    reallocation_end: float = 0.5
    reallocation_interval: int = 500
    alpha: float = 4.0
    beta: float = -0.1

    def to_json(self) -> dict[str, Any]:
        """A JSON object; :meth:`from_json` reads it."""
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, Any]) -> FitConfig:
        """Inverse of :meth:`to_json`."""
        return FitConfig(**{**document, "architecture": Architecture(**document["architecture"])})


def configure(
    target: ImageTarget | ShapeTarget,
    preset: str = "standard",
    *,
    seconds: float | None = None,
    steps: int | None = None,
    psnr: float | None = None,
    iou: float | None = None,
    loss: str | None = None,
    blocks: int | None = None,
    encoder: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    mlp: str = "own",
) -> FitConfig:
    """Chooses sensible numbers for an image or a shape.

    Args:
        target: what is fitted.
        preset: ``"draft"``, ``"standard"`` or ``"fine"``.
        seconds: fit for this long.
        steps: fit for so many steps; not together with ``seconds``.
        psnr: stop as soon as this many decibels are reached; pictures.
        iou: stop as soon as the insides overlap so far, 0 to 1; shapes.
        loss: ``"distance"`` (default) or ``"occupancy"``; shapes.
        blocks: most leaves of the tree.
        encoder: ``"grid"`` (default) or ``"coordinate"``.
        seed: of all randomness.
        threads: default all cores.
        device: ``"cpu"`` or ``"cuda"``, an NVIDIA GPU.
        mlp: ``"own"`` or ``"tiny-cuda-nn"``, for the coordinate encoder on ``"cuda"``.

    Raises:
        BadRequest: a value is unknown or out of range, or what it asks for is not there.
    """
    _check(preset, seconds, steps, psnr, blocks, encoder, seed, threads)
    _check_kind(target, psnr, iou, loss)
    _check_device(device, mlp)
    shared: dict[str, Any] = {
        "preset": preset,
        "seconds": seconds,
        "seed": seed,
        "threads": threads or len(os.sched_getaffinity(0)),
        "device": device,
        "mlp": mlp,
    }
    if isinstance(target, ImageTarget):
        return _for_image(target, steps, psnr, blocks, encoder, shared)
    return _for_shape(target, steps, iou, loss, blocks, encoder, shared)


def _for_image(
    target: ImageTarget,
    steps: int | None,
    psnr: float | None,
    blocks: int | None,
    encoder: str | None,
    shared: dict[str, Any],
) -> FitConfig:
    choice = PRESETS[shared["preset"]]
    pixels = target.signal.width * target.signal.height
    per_block, most = choice.pixels_per_block, choice.max_blocks
    if encoder == "coordinate":
        per_block, most = COORDINATE_BLOCK * per_block, COORDINATE_MAX_BLOCKS
    blocks = blocks or min(max(pixels // per_block, MIN_BLOCKS), most)
    patches = min(max(blocks // BLOCKS_PER_PATCH, PATCHES), MAX_PATCHES)
    samples_per_step = patches * PATCH_SIDE**2 * (FULL_SIZE_SHARE + (1 - FULL_SIZE_SHARE) / COARSE_PART)
    config = FitConfig(
        architecture=Architecture(),
        blocks=blocks,
        steps=steps or max(200, round(choice.samples_per_block * blocks / samples_per_step)),
        psnr=psnr,
        patches=patches,
        coarse_patches=patches // COARSE_PART,
        **shared,
    )
    return _coordinate(config) if encoder == "coordinate" else config


def _for_shape(
    target: ShapeTarget,
    steps: int | None,
    iou: float | None,
    loss: str | None,
    blocks: int | None,
    encoder: str | None,
    shared: dict[str, Any],
) -> FitConfig:
    choice = SHAPE_PRESETS[shared["preset"]]
    features, width = (2, 64) if target.has_colour else (1, 32)
    config = FitConfig(
        architecture=Architecture(cells=4, features=features, decoder_width=width),
        blocks=blocks or choice.max_blocks,
        steps=steps or choice.steps,
        iou=iou,
        resolution=choice.resolution,
        samples_per_block=choice.samples_per_block,
        loss=cast(Loss, loss or "distance"),
        patches=SHAPE_RUNS,
        coarse_patches=SHAPE_RUNS // COARSE_PART,
        full_size_share=SHAPE_FULL_SIZE_SHARE,
        **shared,
    )
    return _coordinate(config) if encoder == "coordinate" else config


def _coordinate(config: FitConfig) -> FitConfig:
    """Wide and shallow: at equal parameters 2 dB ahead of ACORN's five layers of 256 after 200 steps."""
    architecture = replace(config.architecture, encoder="coordinate", encoder_width=448, encoder_layers=0)
    return replace(
        config,
        architecture=architecture,
        patches=2 * config.patches,
        coarse_patches=2 * config.coarse_patches,
        encoder_rate=5e-3,
        decoder_rate=1e-2,
    )


def _check(
    preset: str,
    seconds: float | None,
    steps: int | None,
    psnr: float | None,
    blocks: int | None,
    encoder: str | None,
    seed: int,
    threads: int | None,
) -> None:
    if preset not in PRESETS:
        raise BadRequest(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
    if encoder is not None and encoder not in get_args(EncoderName):
        raise BadRequest(f"unknown encoder {encoder!r}; known: {', '.join(get_args(EncoderName))}")
    if seconds is not None and steps is not None:
        raise BadRequest("give seconds or steps, not both")
    _in_range("seconds", seconds, 0.1, MAX_SECONDS)
    _in_range("steps", steps, 1, MAX_STEPS)
    _in_range("psnr", psnr, 1, 100)
    _in_range("blocks", blocks, 1, MAX_BLOCKS)
    _in_range("seed", seed, 0, 2**63 - 1)
    _in_range("threads", threads, 1, 1024)


def _check_kind(
    target: ImageTarget | ShapeTarget, psnr: float | None, iou: float | None, loss: str | None
) -> None:
    if isinstance(target, ImageTarget) and (iou is not None or loss is not None):
        raise BadRequest("iou and loss are for shapes; a picture has a psnr")
    if isinstance(target, ShapeTarget) and psnr is not None:
        raise BadRequest("psnr is for pictures; a shape has an iou")
    if loss is not None and loss not in get_args(Loss):
        raise BadRequest(f"unknown loss {loss!r}; known: {', '.join(get_args(Loss))}")
    _in_range("iou", iou, 0.01, 1)


def _check_device(device: str, mlp: str) -> None:
    if device not in get_args(DeviceName):
        raise BadRequest(f"unknown device {device!r}; known: {', '.join(get_args(DeviceName))}")
    if mlp not in get_args(MlpName):
        raise BadRequest(f"unknown mlp {mlp!r}; known: {', '.join(get_args(MlpName))}")
    if mlp == "tiny-cuda-nn" and device != "cuda":
        raise BadRequest("tiny-cuda-nn runs on a GPU: choose the device cuda")
    cuda = next(row for row in ops.available() if row.name == "cuda")
    if device == "cuda" and not cuda.available:
        raise BadRequest(f"the device cuda cannot be used: {cuda.reason}")
    if mlp == "tiny-cuda-nn" and (reason := tcnn.missing()):
        raise BadRequest(f"tiny-cuda-nn cannot be used: {reason}")


def _in_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise BadRequest(f"{name} must lie between {low} and {high}, not {value}")
