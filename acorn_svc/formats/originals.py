"""What people fit: a file that is an image or a mesh, told by its content.

Libraries are imported where they are needed: a picture must not wait for those of meshes, nor either for
PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from acorn_svc.errors import UnsupportedMedia

if TYPE_CHECKING:
    from acorn_svc.formats.images import ImageLimits, Pixels
    from acorn_svc.formats.mesh_pieces import MeshLimits
    from acorn_svc.formats.meshes import MeshReading
    from acorn_svc.training.loop import Target

    Original = Pixels | MeshReading

READ_KINDS = "images (JPEG, PNG, WebP, TIFF) and meshes (PLY, STL, OBJ, OFF, GLB) are read."


def read_original(
    path: Path, image_limits: ImageLimits | None = None, mesh_limits: MeshLimits | None = None
) -> Original:
    """The pixels of an image file, or what was read from a mesh file.

    Raises as `read_image` and `read_mesh` do; UnsupportedMedia when the file is neither.
    """
    from acorn_svc.formats.images import read_image

    try:
        return read_image(path, image_limits)
    except UnsupportedMedia:
        pass
    from acorn_svc.formats.meshes import read_mesh

    try:
        return read_mesh(path, mesh_limits)
    except UnsupportedMedia as error:
        what = error.message.partition(";")[0]
        raise UnsupportedMedia(f"{what}; {READ_KINDS}") from error


def target_of(original: Original) -> Target:
    """What is fitted to it; raises BadMesh for a mesh without any extent."""
    from acorn_svc.training.targets import ImageTarget, ShapeTarget

    return ImageTarget(original) if isinstance(original, np.ndarray) else ShapeTarget(original.mesh)


def arrays_of(original: Original) -> list[NDArray[np.generic]]:
    """All that makes it what it is."""
    if isinstance(original, np.ndarray):
        return [original]
    mesh = original.mesh
    arrays: list[NDArray[np.generic]] = [mesh.vertices, mesh.faces]
    if mesh.colours is not None:
        arrays.append(mesh.colours)
    if mesh.texture is not None:
        arrays += [mesh.texture.coordinates, mesh.texture.pixels]
    return arrays


def repairs_of(original: Original) -> list[str]:
    """What was mended on reading, a sentence each."""
    return [] if isinstance(original, np.ndarray) else original.repairs
