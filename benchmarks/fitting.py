"""Quality, seams, time and size of fits; then the cost of looking at the results.

The whole fit counts: choosing the tree, drawing the parameters, measuring the speed, every step and the
last measurement of the quality. On one thread the process is pinned to one core, and the time is the
processor's: what other processes take does not count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage import data

from acorn_svc.field.kinds import as_image
from acorn_svc.field.metrics import seam_ratio
from acorn_svc.field.model import Field
from acorn_svc.formats.container import field_to_bytes
from acorn_svc.formats.images import encode_image, read_image
from acorn_svc.training.evaluation import scale_psnr
from acorn_svc.training.loop import Progress, fit
from acorn_svc.training.presets import FitConfig, configure
from acorn_svc.training.targets import ImageTarget
from benchmarks.measurement import Measurement, best_seconds, pinned

VIEW = 512
TILE = 256
SCALES = range(1, 5)
COORDINATE_SECONDS = (10.0, 25.0)


def measure(
    seconds: Sequence[float], images: Sequence[Path] = (), blocks: int | None = None, threads: int = 1
) -> Iterator[Measurement]:
    """Fits `astronaut`, or the given images, for each of `seconds`: all scales, and full size alone."""
    pictures = {path.name: read_image(path) for path in images} or {"astronaut": data.astronaut()}
    with pinned() if threads == 1 else nullcontext():
        for name, pixels in pictures.items():
            target = ImageTarget(np.asarray(pixels))
            for case, config in _cases(target, seconds, blocks, threads):
                yield from _measure(f"{name}, {case}, threads {threads}", target, config)


def _cases(
    target: ImageTarget, seconds: Sequence[float], blocks: int | None, threads: int
) -> Iterator[tuple[str, FitConfig]]:
    for limit in seconds:
        config = configure(target, seconds=limit, blocks=blocks, threads=threads)
        yield f"grid, all scales, {limit:g} s", config
        yield f"grid, full size alone, {limit:g} s", replace(config, full_size_share=1.0)
    for limit in COORDINATE_SECONDS:
        config = configure(target, seconds=limit, encoder="coordinate", threads=threads)
        yield f"coordinate, all scales, {limit:g} s", config


def _measure(case: str, target: ImageTarget, config: FitConfig) -> Iterator[Measurement]:
    processor, clock = time.process_time(), time.perf_counter()
    *_, last = fit(target, config)
    processor, clock = time.process_time() - processor, time.perf_counter() - clock
    yield Measurement(case, "processor time", processor, "s")
    yield Measurement(case, "time", clock, "s")
    yield from _fit_results(case, last)
    if config.full_size_share < 1:
        field = as_image(last.field())
        yield from _quality(case, field, target)
        yield from _render_times(case, field)


def _fit_results(case: str, last: Progress) -> Iterator[Measurement]:
    yield Measurement(case, "psnr", last.psnr or float("nan"), "dB")
    yield Measurement(case, "steps", last.steps, "")
    yield Measurement(case, "blocks", last.blocks, "")
    yield Measurement(case, "parameters", last.parameters, "")
    yield Measurement(case, "file", len(field_to_bytes(last.field())), "bytes")


def _quality(case: str, field: Field, target: ImageTarget) -> Iterator[Measurement]:
    """Coarser scales against the area-filtered original, block edges against those of the original."""
    for scale in SCALES:
        yield Measurement(case, f"psnr at 1/{1 << scale}", scale_psnr(field, target, scale), "dB")
    seams = seam_ratio(field.render_scale(0), target.values(0), field.blocks())
    yield Measurement(case, "seam ratio", seams, "")


def _render_times(case: str, field: Field) -> Iterator[Measurement]:
    """The whole picture against a part of the same size at full resolution, warm."""
    whole = (0.0, 0.0, float(field.width), float(field.height))
    size = _fitting_size(field)
    middle = ((field.width - size[0]) // 2, (field.height - size[1]) // 2, *size)
    yield Measurement(
        case, f"overview of {VIEW}", 1e3 * best_seconds(lambda: field.render(whole, size)), "ms"
    )
    yield Measurement(case, f"crop of {VIEW}", 1e3 * best_seconds(lambda: field.render(middle)), "ms")
    corner = (0.0, 0.0, float(TILE), float(TILE))
    tile: NDArray[np.uint8 | np.uint16] = field.render(corner)
    yield Measurement(case, "tile", 1e3 * best_seconds(lambda: field.render(corner)), "ms")
    yield Measurement(case, "tile as JPEG", 1e3 * best_seconds(lambda: encode_image(tile, "jpg")), "ms")


def _fitting_size(field: Field) -> tuple[int, int]:
    factor = VIEW / max(field.width, field.height)
    return round(field.width * factor), round(field.height * factor)
