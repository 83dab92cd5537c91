"""Acorn: images as adaptive neural fields.

import acorn_svc

field = acorn_svc.fit("photo.jpg")
field.render(region=(0, 0, 256, 256), size=(512, 512))
acorn_svc.save(field, "photo.acorn")
field = acorn_svc.load("photo.acorn")
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acorn_svc.errors import AcornError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from acorn_svc.field.model import Field
    from acorn_svc.training.loop import Progress

    Image = str | PathLike[str] | NDArray[np.uint8 | np.uint16]

__version__ = "0.1.0"
__all__ = ["AcornError", "Field", "__version__", "fit", "load", "save"]


def fit(
    image: Image,
    preset: str = "standard",
    *,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Field:
    """Fits a field to an image.

    Args:
        image: a file (JPEG, PNG, WebP, TIFF) or an array ``[height, width, channels]`` of 8 or 16 bit.
        preset: ``"draft"``, ``"standard"`` or ``"fine"``.
        on_progress: called a few times a second.
        options: ``seconds, steps, psnr, blocks, encoder, seed, threads`` as for
            :func:`acorn_svc.training.presets.configure`.

    Raises:
        BadImage: the file or array is no image.
        BadRequest: an option is unknown or out of range.
    """
    from acorn_svc.training.loop import fit as run
    from acorn_svc.training.presets import configure
    from acorn_svc.training.targets import ImageTarget

    target = ImageTarget(_pixels(image))
    for progress in run(target, configure(target, preset, **options)):
        if on_progress:
            on_progress(progress)
    return progress.field()


def load(path: str | PathLike[str]) -> Field:
    """Opens an ``.acorn`` file.

    Raises:
        BadModel: it is not one, or is damaged.
    """
    from acorn_svc.formats.container import read_field

    return read_field(Path(path))


def save(field: Field, path: str | PathLike[str]) -> None:
    """Writes an ``.acorn`` file; complete or not at all."""
    from acorn_svc.formats.container import write_field

    write_field(Path(path), field)


def _pixels(image: Image) -> NDArray[np.uint8 | np.uint16]:
    from acorn_svc.formats.images import read_image

    return read_image(Path(image)) if isinstance(image, str | PathLike) else image


def __getattr__(name: str) -> Any:
    if name == "Field":
        from acorn_svc.field.model import Field

        return Field
    raise AttributeError(name)
