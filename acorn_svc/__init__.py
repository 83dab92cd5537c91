"""Acorn: images and 3D shapes as adaptive neural fields.

import acorn_svc

field = acorn_svc.fit("photo.jpg")
field.render(region=(0, 0, 256, 256), size=(512, 512))
acorn_svc.save(field, "photo.acorn")
field = acorn_svc.load("photo.acorn")

shape = acorn_svc.fit("scan.ply")
shape.query([[0.1, 0.5, -0.2]])                # distance to the surface, in the units of the mesh
mesh = acorn_svc.to_trimesh(shape.mesh_parts(resolution=256))
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acorn_svc.errors import AcornError

if TYPE_CHECKING:
    import numpy as np
    import trimesh
    from numpy.typing import NDArray

    from acorn_svc.field.kinds import AnyField
    from acorn_svc.field.mesh import Mesh
    from acorn_svc.field.model import Field
    from acorn_svc.field.shape import ShapeField
    from acorn_svc.training.loop import Progress, Target

    Original = str | PathLike[str] | NDArray[np.uint8 | np.uint16] | Mesh | trimesh.Trimesh

__version__ = "0.1.0"
__all__ = ["AcornError", "Field", "Mesh", "ShapeField", "__version__", "fit", "load", "save", "to_trimesh"]


def fit(
    original: Original,
    preset: str = "standard",
    *,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> AnyField:
    """Fits a field to an image or a mesh.

    Args:
        original: a file, told by its content: an image (JPEG, PNG, WebP, TIFF) or a mesh (PLY, STL, OBJ, OFF,
            GLB); an array ``[height, width, channels]`` of 8 or 16 bit; a :class:`Mesh`; or a
            ``trimesh.Trimesh``, with the colours of its vertices.
        preset: ``"draft"``, ``"standard"`` or ``"fine"``.
        on_progress: called a few times a second.
        options: ``seconds, steps, psnr, iou, blocks, encoder, seed, threads`` as for
            :func:`acorn_svc.training.presets.configure`.

    Returns:
        a :class:`Field` of an image, a :class:`ShapeField` of a mesh.

    Raises:
        BadImage, BadMesh: the file or array is no image, or no surface.
        UnsupportedMedia: the file is neither.
        BadRequest: an option is unknown or out of range.
    """
    from acorn_svc.training.loop import fit as run
    from acorn_svc.training.presets import configure

    target = _target(original)
    for progress in run(target, configure(target, preset, **options)):
        if on_progress:
            on_progress(progress)
    return progress.field()


def load(path: str | PathLike[str]) -> AnyField:
    """Opens an ``.acorn`` file.

    Raises:
        BadModel: it is not one, or is damaged.
    """
    from acorn_svc.formats.container import read_field

    return read_field(Path(path))


def save(field: AnyField, path: str | PathLike[str]) -> None:
    """Writes an ``.acorn`` file; complete or not at all."""
    from acorn_svc.formats.container import write_field

    write_field(Path(path), field)


def _target(original: Original) -> Target:
    import numpy as np

    from acorn_svc.field.mesh import Mesh
    from acorn_svc.formats.originals import read_original, target_of
    from acorn_svc.training.targets import ImageTarget, ShapeTarget

    if isinstance(original, str | PathLike):
        return target_of(read_original(Path(original)))
    if isinstance(original, Mesh):
        return ShapeTarget(original)
    if isinstance(original, np.ndarray):
        return ImageTarget(original)
    from acorn_svc.formats.trimeshes import from_trimesh

    return ShapeTarget(from_trimesh(original))


_ELSEWHERE = {
    "Field": "acorn_svc.field.model",
    "Mesh": "acorn_svc.field.mesh",
    "ShapeField": "acorn_svc.field.shape",
    "to_trimesh": "acorn_svc.formats.trimeshes",
}


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        return getattr(import_module(_ELSEWHERE[name]), name)
    raise AttributeError(name)
