"""Quality of a finished field against its target."""

from __future__ import annotations

from acorn_svc.errors import BadRequest
from acorn_svc.field.metrics import decibels, rounded_squares
from acorn_svc.field.model import STRIP_ROWS, Field
from acorn_svc.training.targets import ImageTarget


def full_size_psnr(field: Field, target: ImageTarget) -> float:
    """PSNR in decibels over every pixel at full size, 8-bit, alpha premultiplied."""
    return scale_psnr(field, target, 0)


def psnr_of_scales(field: Field, target: ImageTarget) -> list[float]:
    """PSNR in decibels of every scale, from full size to the coarsest that was learned.

    Raises:
        BadRequest: the field is one of a picture of another size or other channels.
    """
    ours, theirs = field.signal, target.signal
    if (ours.size, ours.channels) != (theirs.size, theirs.channels):
        raise BadRequest("the field and the image differ in size or channels")
    return [scale_psnr(field, target, scale) for scale in range(field.depth + 1)]


def scale_psnr(field: Field, target: ImageTarget, scale: int) -> float:
    """PSNR in decibels of one scale against the area-filtered original."""
    height = -(-field.height >> scale)
    total, count = 0.0, 0
    for start in range(0, height, STRIP_ROWS):
        rows = range(start, min(start + STRIP_ROWS, height))
        truth = target.values(scale, slice(rows.start, rows.stop))
        total += rounded_squares(field.render_scale(scale, rows), truth)
        count += truth.size
    return decibels(total / count)
