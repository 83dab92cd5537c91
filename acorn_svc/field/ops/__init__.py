"""Operations with native kernels: one table of back ends, chosen by device and what is installed.

``reference`` is plain PyTorch, runs on every device and is the specification. ``cpu`` and ``cuda``
have the same functions with the same signatures. Callers use the functions of this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from acorn_svc.field.geometry import Geometry
from acorn_svc.field.ops.learning import Layer, Learned, Learner, Loss, PointSampling, Sampling, Schedule

__all__ = [
    "TABLE",
    "Availability",
    "BackEnd",
    "Operations",
    "available",
    "choose",
    "decode",
    "decode_backward",
    "encode_patches",
    "encode_patches_backward",
    "encode_points",
    "encode_points_backward",
    "learn",
    "learn_points",
    "locate",
    "render_image",
    "render_points",
    "train",
    "train_points",
]


class Operations(Protocol):
    """What every back end offers; :mod:`acorn_svc.field.ops.reference` says what each does."""

    def locate(self, geometry: Geometry, positions: Tensor) -> Tensor:
        """Points to leaves."""

    def encode_points(
        self,
        geometry: Geometry,
        features: Tensor,
        positions: Tensor,
        scale: int,
        folded: Tensor | None = None,
    ) -> Tensor:
        """Features at points."""

    def encode_points_backward(
        self, geometry: Geometry, gradient: Tensor, positions: Tensor, scale: int
    ) -> Tensor:
        """Its adjoint."""

    def encode_patches(
        self, geometry: Geometry, features: Tensor, corners: Tensor, scale: int, folded: Tensor | None = None
    ) -> Tensor:
        """Features at the pixels of patches."""

    def encode_patches_backward(
        self, geometry: Geometry, gradient: Tensor, corners: Tensor, scale: int
    ) -> Tensor:
        """Its adjoint."""

    def decode(self, inputs: Tensor, layers: list[Layer]) -> Tensor:
        """The decoder."""

    def decode_backward(
        self, inputs: Tensor, layers: list[Layer], gradient: Tensor
    ) -> tuple[Tensor, list[Layer]]:
        """Gradients of its inputs and layers."""

    def render_points(
        self,
        geometry: Geometry,
        features: Tensor,
        folded: Tensor | None,
        layers: list[Layer],
        positions: Tensor,
        scale: int,
    ) -> Tensor:
        """Values at points."""

    def render_image(
        self,
        geometry: Geometry,
        features: Tensor,
        folded: Tensor | None,
        layers: list[Layer],
        scale: int,
        region: tuple[int, int, int, int],
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Pixels of one scale."""

    def learn(
        self,
        geometry: Geometry,
        features: Tensor,
        layers: list[Layer],
        corners: Tensor,
        scale: int,
        truth: Tensor,
        weights: Tensor,
    ) -> Learned:
        """Loss and gradients."""

    def train(self, geometry: Geometry, learner: Learner, sampling: Sampling, schedule: Schedule) -> None:
        """Steps of training, in place."""

    def learn_points(
        self,
        geometry: Geometry,
        features: Tensor,
        layers: list[Layer],
        positions: Tensor,
        scale: int,
        truth: Tensor,
        loss: Loss,
    ) -> Learned:
        """Loss and gradients of points."""

    def train_points(
        self, geometry: Geometry, learner: Learner, sampling: PointSampling, schedule: Schedule
    ) -> None:
        """Steps of training from points, in place."""


class Availability(NamedTuple):
    """Whether a back end works here, and why not."""

    name: str
    available: bool
    reason: str


@dataclass(frozen=True)
class BackEnd:
    """A row of the table.

    Attributes:
        name: also the name of the module in this package.
        devices: device types whose tensors it takes.
        missing: says what is missing here, or nothing.
    """

    name: str
    devices: frozenset[str]
    missing: Callable[[], str]

    def operations(self) -> Operations:
        """The module of this back end; only where nothing is missing."""
        return cast(Operations, import_module(f"{__name__}.{self.name}"))


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _cuda_missing() -> str:
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    absent = [name for name in ("cuda.core", "cuda.bindings") if not _installed(name)]
    return f"not installed: {', '.join(absent)} (extra 'cuda')" if absent else ""


def _cpu_missing() -> str:
    if not _installed("acorn_svc._native"):
        return "the native module was not built (no C++ compiler at installation)"
    try:
        import_module("acorn_svc._native")
    except ImportError as error:
        return f"the native module cannot be loaded: {error}"
    return ""


# In order of preference; the last one runs everywhere.
TABLE = (
    BackEnd("cuda", frozenset({"cuda"}), _cuda_missing),
    BackEnd("cpu", frozenset({"cpu"}), _cpu_missing),
    BackEnd("reference", frozenset({"cpu", "cuda"}), lambda: ""),
)


def available() -> list[Availability]:
    """Says of every back end whether it works on this machine, in order of preference."""
    return [Availability(row.name, not row.missing(), row.missing()) for row in TABLE]


@cache
def choose(device_type: str) -> Operations:
    """The best back end for tensors of ``device_type`` (``"cpu"``, ``"cuda"``, ...)."""
    for row in TABLE:
        if device_type in row.devices and not row.missing():
            return row.operations()
    return TABLE[-1].operations()


def locate(geometry: Geometry, positions: Tensor) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.locate`."""
    return choose(positions.device.type).locate(geometry, positions)


def encode_points(
    geometry: Geometry, features: Tensor, positions: Tensor, scale: int, folded: Tensor | None = None
) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.encode_points`."""
    return _for(features).encode_points(geometry, features, positions, scale, folded)


def encode_points_backward(geometry: Geometry, gradient: Tensor, positions: Tensor, scale: int) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.encode_points_backward`."""
    return _for(gradient).encode_points_backward(geometry, gradient, positions, scale)


def encode_patches(
    geometry: Geometry, features: Tensor, corners: Tensor, scale: int, folded: Tensor | None = None
) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.encode_patches`."""
    return _for(features).encode_patches(geometry, features, corners, scale, folded)


def encode_patches_backward(geometry: Geometry, gradient: Tensor, corners: Tensor, scale: int) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.encode_patches_backward`."""
    return _for(gradient).encode_patches_backward(geometry, gradient, corners, scale)


def decode(inputs: Tensor, layers: list[Layer]) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.decode`."""
    return _for(inputs).decode(inputs, layers)


def decode_backward(inputs: Tensor, layers: list[Layer], gradient: Tensor) -> tuple[Tensor, list[Layer]]:
    """See :func:`acorn_svc.field.ops.reference.decode_backward`."""
    return _for(inputs).decode_backward(inputs, layers, gradient)


def render_points(
    geometry: Geometry,
    features: Tensor,
    folded: Tensor | None,
    layers: list[Layer],
    positions: Tensor,
    scale: int,
) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.render_points`."""
    return _for(features).render_points(geometry, features, folded, layers, positions, scale)


def render_image(
    geometry: Geometry,
    features: Tensor,
    folded: Tensor | None,
    layers: list[Layer],
    scale: int,
    region: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.render_image`."""
    return _for(features).render_image(geometry, features, folded, layers, scale, region, dtype)


def learn(
    geometry: Geometry,
    features: Tensor,
    layers: list[Layer],
    corners: Tensor,
    scale: int,
    truth: Tensor,
    weights: Tensor,
) -> Learned:
    """See :func:`acorn_svc.field.ops.reference.learn`."""
    return _for(features).learn(geometry, features, layers, corners, scale, truth, weights)


def train(geometry: Geometry, learner: Learner, sampling: Sampling, schedule: Schedule) -> None:
    """See :func:`acorn_svc.field.ops.reference.train`."""
    _for(learner.last).train(geometry, learner, sampling, schedule)


def learn_points(
    geometry: Geometry,
    features: Tensor,
    layers: list[Layer],
    positions: Tensor,
    scale: int,
    truth: Tensor,
    loss: Loss,
) -> Learned:
    """See :func:`acorn_svc.field.ops.reference.learn_points`."""
    return _for(features).learn_points(geometry, features, layers, positions, scale, truth, loss)


def train_points(geometry: Geometry, learner: Learner, sampling: PointSampling, schedule: Schedule) -> None:
    """See :func:`acorn_svc.field.ops.reference.train_points`."""
    _for(learner.last).train_points(geometry, learner, sampling, schedule)


def _for(values: Tensor) -> Operations:
    return choose(values.device.type)
