"""Quality, time and size of a fit, with both encoders; then the cost of looking at the result."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from skimage import data

from acorn_svc.field.model import Field
from acorn_svc.formats.container import field_to_bytes
from acorn_svc.formats.images import encode_image
from acorn_svc.training.loop import Progress, fit
from acorn_svc.training.presets import configure
from acorn_svc.training.targets import ImageTarget
from benchmarks.measurement import Measurement, best_seconds

ENCODERS = ("grid", "coordinate")
TILE = 256


def measure(seconds: float) -> Iterator[Measurement]:
    for encoder in ENCODERS:
        case = f"astronaut, {encoder}, {seconds:g} s"
        last = _fitted(np.asarray(data.astronaut()), encoder, seconds)
        yield from _fit_results(case, last)
        yield from _render_times(case, last.field())


def _fitted(pixels: NDArray[np.uint8], encoder: str, seconds: float) -> Progress:
    target = ImageTarget(pixels)
    *_, last = fit(target, configure(target, seconds=seconds, encoder=encoder))
    return last


def _fit_results(case: str, last: Progress) -> Iterator[Measurement]:
    yield Measurement(case, "psnr", last.psnr or float("nan"), "dB")
    yield Measurement(case, "fit time", last.seconds, "s")
    yield Measurement(case, "steps", last.steps, "")
    yield Measurement(case, "blocks", last.blocks, "")
    yield Measurement(case, "parameters", last.parameters, "")
    yield Measurement(case, "file", len(field_to_bytes(last.field())), "bytes")


def _render_times(case: str, field: Field) -> Iterator[Measurement]:
    """A tile of the whole picture against one of the same size at full resolution."""
    whole = (0.0, 0.0, float(field.width), float(field.height))
    corner = (0.0, 0.0, float(TILE), float(TILE))
    size = (TILE, TILE)
    overview = best_seconds(lambda: field.render(whole, size))
    crop = best_seconds(lambda: field.render(corner, size))
    tile = field.render(corner, size)
    encoding = best_seconds(lambda: encode_image(tile, "jpg"))
    yield Measurement(case, "overview tile", 1e3 * overview, "ms")
    yield Measurement(case, "full-size tile", 1e3 * crop, "ms")
    yield Measurement(case, "tile as JPEG", 1e3 * encoding, "ms")
