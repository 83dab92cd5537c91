"""What the loop needs to know about what is fitted; one implementation for each kind."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from acorn_svc.field.kinds import AnyField
from acorn_svc.field.ops.learning import PointSampling, Sampling
from acorn_svc.field.state import FitRecord, ShapeSignal, Signal
from acorn_svc.field.tree import Tree
from acorn_svc.training.model import TrainableField
from acorn_svc.training.presets import FitConfig


class Quality(NamedTuple):
    """How good a field is.

    Attributes:
        psnr: of a picture, in decibels at full size.
        iou: of a shape, intersection over union of the insides.
    """

    psnr: float | None = None
    iou: float | None = None

    def reaches(self, config: FitConfig) -> bool:
        """Whether what was asked for is reached; never, when nothing was."""
        pairs = ((self.psnr, config.psnr), (self.iou, config.iou))
        return any(value is not None and goal is not None and value >= goal for value, goal in pairs)


class Task(Protocol):
    """A target that is fitted with a configuration."""

    @property
    def signal(self) -> Signal | ShapeSignal:
        """What is represented."""

    def initial_tree(self) -> Tree:
        """The tree to start from."""

    def sampling(self, tree: Tree) -> Sampling | PointSampling:
        """What is learned from, given the tree of the start."""

    def leaf_errors(self, tree: Tree, seen: NDArray[np.float64]) -> NDArray[np.float64]:
        """Error of every leaf, summed over it, from the errors and counts ``[2, leaves]`` that were seen."""

    def estimate(self, model: TrainableField) -> Quality:
        """The quality on a fixed sample, in little time."""

    def measure(self, field: AnyField) -> Quality:
        """The quality of the whole."""

    def field(self, model: TrainableField, record: FitRecord) -> AnyField:
        """A snapshot, rounded as a file rounds it."""
