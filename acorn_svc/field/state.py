"""A field as plain data: what a file holds, and what crosses process borders."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from acorn_svc.field.tree import IntArray

EncoderName = Literal["grid", "coordinate"]
ALPHA_CHANNELS = (2, 4)
CELLS = (4, 8, 16, 32, 64)
FEATURE_CHANNELS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Signal:
    """What is represented.

    Attributes:
        width: pixels.
        height: pixels.
        channels: 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha).
        bit_depth: 8 or 16, of the integers that went in and come out.
        kind: always ``"image"`` for now.
    """

    width: int
    height: int
    channels: int
    bit_depth: int
    kind: str = "image"

    @property
    def size(self) -> tuple[int, int]:
        """Full-size pixels per axis, x first."""
        return self.width, self.height

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is opacity."""
        return self.channels in ALPHA_CHANNELS

    @property
    def initial_value(self) -> tuple[float, ...]:
        """What a decoder answers before it has learned anything, for each channel."""
        return (0.5,) * self.channels


@dataclass(frozen=True)
class ShapeSignal:
    """A surface in a box of cubic voxels, by its distance.

    Values are distances in units of what they saturate at, negative inside, -1 to 1, and then red, green and
    blue of the nearest surface, 0 to 1, when there is colour.

    Attributes:
        size: full-size voxels per axis, x first.
        channels: 1 (distance) or 4 (distance, RGB).
        truncation: voxels at which distance saturates at scale 0; twice as many at each coarser scale.
        origin: where the box's lowest corner lies, in the units of the mesh.
        voxel: side of a full-size voxel, likewise.
        kind: always ``"shape"``.
    """

    size: tuple[int, int, int]
    channels: int
    truncation: float
    origin: tuple[float, float, float]
    voxel: float
    kind: str = "shape"

    @property
    def has_colour(self) -> bool:
        """Whether the surface has a colour."""
        return self.channels > 1

    @property
    def initial_value(self) -> tuple[float, ...]:
        """What a decoder answers before it has learned anything, for each channel."""
        return (0.0, 0.5, 0.5, 0.5)[: self.channels]


@dataclass(frozen=True)
class Architecture:
    """The shape of the networks.

    Attributes:
        encoder: where block features come from; ``"grid"`` learns them directly, ``"coordinate"`` computes
            them from the block's position with an MLP (ACORN, section 3.2).
        cells: cells per side of a block; one of ``CELLS``.
        features: channels of a feature vertex; one of ``FEATURE_CHANNELS``.
        decoder_width: units of a hidden layer of the decoder.
        decoder_layers: hidden layers of the decoder (ACORN: 2 of 64).
        encoder_width: units of a hidden layer of the coordinate encoder.
        encoder_layers: hidden layers of the coordinate encoder after the first.
        frequencies: octaves of the positional encoding.
    """

    encoder: EncoderName = "grid"
    cells: int = 16
    features: int = 4
    decoder_width: int = 64
    decoder_layers: int = 1
    encoder_width: int = 256
    encoder_layers: int = 4
    frequencies: int = 10


@dataclass(frozen=True)
class FitRecord:
    """How a field came to be; part of its file.

    Attributes:
        preset: what was asked for.
        steps: of the optimiser.
        seed: of all randomness.
        psnr: of a picture, decibels against the original at full size, 8-bit; None when it was not measured.
        iou: of a shape, intersection over union of the insides, in the box around both; likewise.
    """

    preset: str = "custom"
    steps: int = 0
    seed: int = 0
    psnr: float | None = None
    iou: float | None = None


@dataclass(frozen=True, eq=False)
class FieldState:
    """A field in plain arrays.

    Attributes:
        header: JSON document: the entries of ``Signal`` or ``ShapeSignal``, ``architecture``, ``tree``
            (``dimension, depth, extent``) and ``fit``.
        levels: ``uint8 [nodes]``; see :class:`acorn_svc.field.tree.Tree`.
        indices: ``uint64 [nodes]``.
        features: ``float32 [vertices, features]`` in the order of the lattice; no rows for ``coordinate``.
        offsets: ``int64 [nodes + 1]``: block ``i`` owns ``features[offsets[i]:offsets[i + 1]]``.
        weights: ``float32`` arrays of the decoders and, for ``coordinate``, the encoder.
        signs: ``int8 [nodes]`` of a shape: +1 for leaves wholly outside, -1 for those inside, else 0; None
            for a picture.
    """

    header: dict[str, Any]
    levels: NDArray[np.uint8]
    indices: NDArray[np.uint64]
    features: NDArray[np.float32]
    offsets: IntArray
    weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    signs: NDArray[np.int8] | None = None


@dataclass(frozen=True)
class FieldInfo:
    """A summary for people and scripts.

    Attributes:
        blocks: leaves of the tree.
        levels: levels of the tree that are in use.
        parameters: learned numbers in the file, of the encoder and all decoders together.
        psnr: decibels against the original at full size, 8-bit; None when it was not measured.
    """

    kind: str
    width: int
    height: int
    channels: int
    bit_depth: int
    encoder: str
    blocks: int
    levels: int
    parameters: int
    preset: str
    steps: int
    seed: int
    psnr: float | None

    def to_json(self) -> dict[str, Any]:
        """The summary as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class ShapeInfo:
    """A summary for people and scripts.

    Attributes:
        size: voxels per axis.
        channels: 1 (distance) or 4 (distance, RGB).
        blocks: leaves of the tree; of them
        surface_blocks: hold surface.
        levels: levels of the tree that are in use.
        parameters: learned numbers in the file, of the encoder and all decoders together.
        iou: intersection over union against the original; None when it was not measured.
    """

    kind: str
    size: tuple[int, int, int]
    channels: int
    encoder: str
    blocks: int
    surface_blocks: int
    levels: int
    parameters: int
    preset: str
    steps: int
    seed: int
    iou: float | None

    def to_json(self) -> dict[str, Any]:
        """The summary as a JSON object."""
        return asdict(self)
