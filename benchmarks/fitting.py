"""Quality, seams, time and size of a fit, with both encoders; then the cost of looking at the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage import data

from acorn_svc.field.metrics import seam_ratio
from acorn_svc.field.model import Field
from acorn_svc.formats.container import field_to_bytes
from acorn_svc.formats.images import encode_image, read_image
from acorn_svc.training.evaluation import scale_psnr
from acorn_svc.training.loop import Progress, fit
from acorn_svc.training.presets import configure
from acorn_svc.training.targets import ImageTarget
from benchmarks.measurement import Measurement, best_seconds

ENCODERS = ("grid", "coordinate")
VIEW = 512
TILE = 256
SCALES = range(1, 5)


def measure(seconds: float, images: Sequence[Path] = (), blocks: int | None = None) -> Iterator[Measurement]:
    """Fits `astronaut`, or the given images, for `seconds` each and encoder."""
    pictures = {path.name: read_image(path) for path in images} or {"astronaut": data.astronaut()}
    for name, pixels in pictures.items():
        target = ImageTarget(np.asarray(pixels))
        for encoder in ENCODERS:
            case = f"{name}, {encoder}, {seconds:g} s"
            *_, last = fit(target, configure(target, seconds=seconds, encoder=encoder, blocks=blocks))
            yield from _fit_results(case, last)
            yield from _quality(case, last.field(), target)
            yield from _render_times(case, last.field())


def _fit_results(case: str, last: Progress) -> Iterator[Measurement]:
    yield Measurement(case, "psnr", last.psnr or float("nan"), "dB")
    yield Measurement(case, "fit time", last.seconds, "s")
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
