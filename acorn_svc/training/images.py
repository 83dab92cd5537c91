"""The fit of a picture."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from acorn_svc.field.kinds import AnyField, as_image
from acorn_svc.field.metrics import decibels, rounded_squares
from acorn_svc.field.model import Field
from acorn_svc.field.ops.learning import FEATURES, Sampling
from acorn_svc.field.state import FitRecord
from acorn_svc.field.tree import Tree
from acorn_svc.training.evaluation import full_size_psnr
from acorn_svc.training.model import TrainableField
from acorn_svc.training.presets import FitConfig
from acorn_svc.training.start import initial_tree
from acorn_svc.training.targets import ImageTarget
from acorn_svc.training.tasks import Quality

SAMPLE_PIXELS = 8192


class ImageTask:
    """A picture that is fitted with a configuration; see :class:`acorn_svc.training.tasks.Task`."""

    def __init__(self, target: ImageTarget, config: FitConfig) -> None:
        self.signal = target.signal
        self._target = target
        self._config = config

    def initial_tree(self) -> Tree:
        """The blocks that leave the least of the signal's detail unresolved."""
        return initial_tree(self._target, self._config.architecture.cells, self._config.blocks)

    def sampling(self, tree: Tree) -> Sampling:
        """Patches of the area-filtered pictures of all scales."""
        config = self._config
        pyramid = [picture.to(config.device) for picture in self._target.pyramid(tree.depth)]
        return Sampling(pyramid, config.patches, config.coarse_patches, config.seed)

    def leaf_errors(self, tree: Tree, seen: NDArray[np.float64]) -> NDArray[np.float64]:
        """Squared error of every leaf, summed over its area; unseen leaves count as average ones."""
        squares, counts = seen
        average = squares.sum() / max(counts.sum(), 1.0)
        mean = np.divide(squares, counts, out=np.full(len(counts), average), where=counts > 0)
        area = _areas_inside(tree, self._config.architecture.cells, self.signal.size)
        errors: NDArray[np.float64] = mean * area
        return errors

    def estimate(self, model: TrainableField) -> Quality:
        """PSNR over a fixed sample of pixels."""
        width, height = self.signal.size
        chosen = np.random.default_rng(0).integers(0, width * height, SAMPLE_PIXELS)
        pixels = np.stack([chosen % width, chosen // width], axis=1)
        truth = self._target.at(pixels)
        values = model.render_points(torch.from_numpy(pixels + 0.5))
        return Quality(psnr=decibels(rounded_squares(values.numpy(), truth) / truth.size))

    def measure(self, field: AnyField) -> Quality:
        """PSNR over every pixel."""
        return Quality(psnr=full_size_psnr(as_image(field), self._target))

    def field(self, model: TrainableField, record: FitRecord) -> Field:
        """A snapshot, with features rounded to the half precision that a file holds."""
        parameters = model.copy_parameters()
        if FEATURES in parameters:
            parameters[FEATURES] = parameters[FEATURES].half().float()
        return Field(self.signal, self._config.architecture, model.lattice, parameters, record)


def _areas_inside(tree: Tree, cells: int, size: tuple[int, ...]) -> NDArray[np.float64]:
    """Full-size pixels of each leaf that lie inside the image."""
    rows = tree.leaf_rows
    side = cells << (tree.depth - tree.levels[rows].astype(np.int64))
    low = tree.coordinates[rows] * side[:, None]
    high = np.minimum(low + side[:, None], np.array(size))
    area: NDArray[np.float64] = np.prod(high - low, axis=1, dtype=np.float64)
    return area
