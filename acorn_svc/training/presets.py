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
from acorn_svc.field.ops.tcnn import MlpName
from acorn_svc.field.state import Architecture, EncoderName
from acorn_svc.training.targets import ImageTarget

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


@dataclass(frozen=True)
class FitConfig:
    """Everything that determines a fit.

    Attributes:
        preset: name it was made from.
        architecture: shape of the networks.
        blocks: most leaves of the tree.
        steps: optimiser steps; a time limit replaces them.
        seconds: time to fit in; the speed is measured once and the steps fixed by it.
        psnr: decibels at which to stop early.
        seed: of all randomness.
        threads: of the computation; with the coordinate encoder the result depends on them to the last bit.
        device: ``"cpu"`` or ``"cuda"``.
        mlp: ``"own"`` or ``"tiny-cuda-nn"``, which runs the coordinate encoder on a GPU.
        patches: squares of ``PATCH_SIDE`` pixels drawn for one step at full size.
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
    target: ImageTarget,
    preset: str = "standard",
    *,
    seconds: float | None = None,
    steps: int | None = None,
    psnr: float | None = None,
    blocks: int | None = None,
    encoder: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    mlp: str = "own",
) -> FitConfig:
    """Chooses sensible numbers for an image.

    Args:
        target: the image.
        preset: ``"draft"``, ``"standard"`` or ``"fine"``.
        seconds: fit for this long.
        steps: fit for so many steps; not together with ``seconds``.
        psnr: stop as soon as this many decibels are reached.
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
    _check_device(device, mlp)
    choice = PRESETS[preset]
    pixels = target.signal.width * target.signal.height
    per_block, most = choice.pixels_per_block, choice.max_blocks
    if encoder == "coordinate":
        per_block, most = COORDINATE_BLOCK * per_block, COORDINATE_MAX_BLOCKS
    blocks = blocks or min(max(pixels // per_block, MIN_BLOCKS), most)
    patches = min(max(blocks // BLOCKS_PER_PATCH, PATCHES), MAX_PATCHES)
    samples_per_step = patches * PATCH_SIDE**2 * (FULL_SIZE_SHARE + (1 - FULL_SIZE_SHARE) / COARSE_PART)
    config = FitConfig(
        preset=preset,
        architecture=Architecture(),
        blocks=blocks,
        steps=steps or max(200, round(choice.samples_per_block * blocks / samples_per_step)),
        seconds=seconds,
        psnr=psnr,
        seed=seed,
        threads=threads or len(os.sched_getaffinity(0)),
        device=cast(DeviceName, device),
        mlp=cast(MlpName, mlp),
        patches=patches,
        coarse_patches=patches // COARSE_PART,
    )
    return _coordinate(config) if encoder == "coordinate" else config


def _coordinate(config: FitConfig) -> FitConfig:
    """Wide and shallow: at equal parameters 2 dB ahead of ACORN's five layers of 256 after 200 steps."""
    architecture = Architecture(encoder="coordinate", encoder_width=448, encoder_layers=0)
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
