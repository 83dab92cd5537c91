"""CUDA back end: the kernels of ``cuda_ext/cuda.cu``, compiled for each network at first use.

Kernels run on PyTorch's current stream. The same arguments give the same bits, in whatever order blocks of
threads run: see ``docs/cuda.md``.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from ctypes import c_float, c_int, c_longlong, c_ulonglong, c_void_p
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from cuda.bindings import driver
from cuda.core import Device
from torch import Tensor

from acorn_svc.field.geometry import PATCH_SIDE, SLOTS, Geometry
from acorn_svc.field.ops import checks, points
from acorn_svc.field.ops.cuda_programs import CHANNELS, Network, kernel
from acorn_svc.field.ops.learning import (
    BETAS,
    FEATURES,
    Layer,
    Learned,
    Learner,
    Loss,
    PointSampling,
    Sampling,
    Schedule,
)

if TYPE_CHECKING:
    from acorn_svc.field.ops import Operations

MOST_OUTPUTS = 16
ALIGNMENT = 16  # bytes, of what is read in quads

# As in cuda_block.h and cuda_decoder.h, where static assertions compare the tapes.
THREADS = 128
PITCH = THREADS + 4
SHARED_FLOATS = 48 * 1024 // 4
SUMMED_TOGETHER = 32

# How many blocks work on tiles, each with sums and, if it needs one, a tape of its own. Not taken from the
# device, so that sums do not depend on it.
MOST_BLOCKS = 1024
MOST_BLOCKS_WITH_SCRATCH = 256

KINDS = {torch.uint8: 0, torch.uint16: 1, torch.float32: 2}


# --- launching ---


class _Geometry(ctypes.Structure):
    """``Geometry`` of ``kernels.h``."""

    _fields_ = (
        ("depth", c_int),
        ("cell_shift", c_int),
        ("nodes", c_int),
        ("extent", c_int * 3),
        ("leaf_map", c_void_p),
        ("ancestors", c_void_p),
        ("table", c_void_p),
        ("levels", c_void_p),
    )


class _View(ctypes.Structure):
    """``View`` of ``cuda_reading.h``."""

    _fields_ = (("geometry", _Geometry), ("scale", c_int), ("features", c_void_p), ("folded", c_void_p))


class _Canvas(ctypes.Structure):
    """``Canvas`` of ``cuda.cu``."""

    _fields_ = (
        ("pixels", c_void_p),
        ("kind", c_int),
        ("width", c_int),
        ("height", c_int),
        ("x", c_longlong),
        ("y", c_longlong),
    )


class _GivenLesson(ctypes.Structure):
    """``GivenLesson`` of ``cuda.cu``."""

    _fields_ = (("values", c_void_p), ("weights", c_void_p), ("squares", c_void_p))


class _DrawnLesson(ctypes.Structure):
    """``DrawnLesson`` of ``cuda.cu``."""

    _fields_ = (
        ("pixels", c_void_p),
        ("kind", c_int),
        ("width", c_int),
        ("height", c_int),
        ("seed", c_ulonglong),
        ("drawn", c_longlong),
        ("errors", c_void_p),
        ("geometry", _Geometry),
        ("corners", c_void_p),
    )


def launch(network: Network, name: str, blocks: int, device: torch.device, arguments: Sequence[Any]) -> None:
    """Starts a kernel on the current stream of a device.

    Args:
        network: that it is compiled for.
        name: as in ``cuda.cu``.
        blocks: of ``THREADS`` threads.
        device: of all pointers.
        arguments: as the kernel declares them, of ``ctypes``.

    Raises:
        RuntimeError: the driver refuses.
    """
    with torch.cuda.device(device):
        Device(device.index).set_current()
        major, minor = torch.cuda.get_device_capability(device)
        function = driver.CUfunction(int(kernel(network, f"sm_{major}{minor}", name).handle))
        pointers = (c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        stream = torch.cuda.current_stream(device).cuda_stream
        (status,) = driver.cuLaunchKernel(
            function,
            *(blocks, 1, 1),
            *(THREADS, 1, 1),
            0,
            driver.CUstream(stream),
            ctypes.addressof(pointers),
            0,
        )
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"CUDA kernel {name}: {status.name}")


def _pointer(values: Tensor | None) -> c_void_p:
    return c_void_p(None if values is None else values.data_ptr())


def _blocks(threads: int) -> int:
    return -(-threads // THREADS)


def _aligned(values: Tensor) -> Tensor:
    values = values.detach()
    return values if values.data_ptr() % ALIGNMENT == 0 else values.clone()


def _require_device(device: torch.device, *tensors: Tensor | None) -> None:
    for values in tensors:
        if values is not None and values.device != device:
            raise ValueError(f"expected all tensors on {device}, found one on {values.device}")


def _require_channels(channels: int) -> None:
    if channels not in CHANNELS:
        raise ValueError(f"features: expected one of {CHANNELS} channels, got {channels}")


def _geometry(geometry: Geometry, device: torch.device) -> _Geometry:
    cells, nodes, dimension = geometry.cells, geometry.nodes, geometry.dimension
    if dimension not in (2, 3) or cells < PATCH_SIDE or cells & (cells - 1):
        raise ValueError(
            f"geometry: expected 2 or 3 dimensions and cells that are a power of two, {PATCH_SIDE} or more"
        )
    arrays = (geometry.leaf_map, geometry.ancestors, geometry.table)
    for name, values in zip(("leaf_map", "ancestors", "table"), arrays, strict=True):
        checks.tensor(name, values, torch.int32)
    _require_device(device, *arrays)
    extent = (c_int * 3)(*geometry.extent)
    shift = cells.bit_length() - 1
    return _Geometry(geometry.depth, shift, nodes, extent, *map(_pointer, arrays), None)


def _view(geometry: Geometry, scale: int, features: Tensor | None, folded: Tensor | None) -> Any:
    """For as long as its tensors live."""
    device = geometry.table.device
    _require_device(device, features, folded)
    return _View(_geometry(geometry, device), scale, _pointer(features), _pointer(folded))


class _Tiles(NamedTuple):
    """Blocks that each work on one tile of samples after the other, on a tape."""

    blocks: int
    scratch: Tensor | None

    @staticmethod
    def of(samples: int, rows: int, device: torch.device) -> _Tiles:
        fits = rows * PITCH <= SHARED_FLOATS
        blocks = min(_blocks(samples), MOST_BLOCKS if fits else MOST_BLOCKS_WITH_SCRATCH)
        return _Tiles(blocks, None if fits else torch.empty(blocks * rows * PITCH, device=device))


class _Decoder(NamedTuple):
    """Layers whose quads are aligned."""

    layers: list[Layer]

    @staticmethod
    def of(layers: list[Layer], device: torch.device) -> _Decoder:
        for layer in layers:
            _require_device(device, *layer)
        if len(layers[-1][1]) > MOST_OUTPUTS:
            raise ValueError(f"layers: expected at most {MOST_OUTPUTS} outputs, got {len(layers[-1][1])}")
        return _Decoder([(_aligned(weight), _aligned(bias)) for weight, bias in layers])

    @property
    def sizes(self) -> tuple[int, ...]:
        return (len(self.layers[0][0]), *(len(bias) for _, bias in self.layers))

    def argument(self) -> Any:
        """``Decoder`` of ``cuda_decoder.h``; for as long as the layers live."""
        weights, biases = zip(*self.layers, strict=True)
        pointers = [values.data_ptr() for values in (*weights, *biases)]
        return (c_void_p * len(pointers))(*pointers)


def _sum_parts(network: Network, parts: Tensor, factor: float, layers: list[Layer]) -> list[Layer]:
    """What all blocks found, with the shapes of ``layers``."""
    out = parts.new_zeros(network.parameters)
    if len(parts):
        blocks = -(-network.parameters // SUMMED_TOGETHER)
        arguments = (_pointer(parts), c_int(len(parts)), c_float(factor), _pointer(out))
        launch(network, "sum_parts", blocks, parts.device, arguments)
    sizes = [tensor.numel() for layer in layers for tensor in layer]
    pieces = iter(torch.split(out, sizes))
    return [(next(pieces).reshape(weight.shape), next(pieces)) for weight, _ in layers]


# --- operations ---


def locate(geometry: Geometry, positions: Tensor) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.locate`."""
    checks.positions(geometry, positions)
    count, device = len(positions), positions.device
    argument = _geometry(geometry, device)
    out = torch.empty(count, dtype=torch.int32, device=device)
    if count:
        arguments = (argument, _pointer(positions), c_longlong(count), _pointer(out))
        launch(Network(geometry.dimension), "locate", _blocks(count), device, arguments)
    return out


def encode_points(
    geometry: Geometry, features: Tensor, positions: Tensor, scale: int, folded: Tensor | None = None
) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.encode_points`."""
    checks.positions(geometry, positions)
    return _encode(geometry, features, positions, scale, folded, "encode_points", 1).squeeze(1)


def encode_patches(
    geometry: Geometry, features: Tensor, corners: Tensor, scale: int, folded: Tensor | None = None
) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.encode_patches`."""
    checks.corners(geometry, corners)
    pixels = PATCH_SIDE**geometry.dimension
    return _encode(geometry, features, corners, scale, folded, "encode_patches", pixels)


def _encode(
    geometry: Geometry,
    features: Tensor,
    places: Tensor,
    scale: int,
    folded: Tensor | None,
    name: str,
    pixels: int,
) -> Tensor:
    checks.reading(geometry, features, scale, folded)
    _require_channels(features.shape[1])
    features, folded = _aligned(features), None if folded is None else _aligned(folded)
    view = _view(geometry, scale, features, folded)
    _require_device(features.device, places)
    out = features.new_empty(len(places), pixels, SLOTS * features.shape[1])
    if len(places):
        arguments = (view, _pointer(places), c_longlong(len(places)), _pointer(out))
        network = Network(geometry.dimension, features.shape[1])
        launch(network, name, _blocks(len(places) * pixels), out.device, arguments)
    return out


def encode_points_backward(geometry: Geometry, gradient: Tensor, positions: Tensor, scale: int) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.encode_points_backward`."""
    checks.positions(geometry, positions)
    checks.reading_gradient(geometry, gradient, (len(positions),), scale)
    return _encode_backward(geometry, gradient, positions, scale, "encode_points_backward", 1)


def encode_patches_backward(geometry: Geometry, gradient: Tensor, corners: Tensor, scale: int) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.encode_patches_backward`."""
    checks.corners(geometry, corners)
    samples = (len(corners), PATCH_SIDE**geometry.dimension)
    checks.reading_gradient(geometry, gradient, samples, scale)
    threads = _patch_vertices(geometry, scale)
    return _encode_backward(geometry, gradient, corners, scale, "encode_patches_backward", threads)


def _encode_backward(
    geometry: Geometry, gradient: Tensor, places: Tensor, scale: int, name: str, threads: int
) -> Tensor:
    channels = gradient.shape[-1] // SLOTS
    _require_channels(channels)
    gradient = _aligned(gradient)
    view = _view(geometry, scale, None, None)
    _require_device(geometry.table.device, gradient, places)
    total = gradient.new_zeros(geometry.vertices + 1, channels, dtype=torch.float64)
    if len(places):
        peak = gradient.abs().amax()
        arguments = (
            *(view, _pointer(places), c_longlong(len(places))),
            *(_pointer(gradient), _pointer(peak), _pointer(total)),
        )
        network = Network(geometry.dimension, channels)
        launch(network, name, _blocks(len(places) * threads), total.device, arguments)
    return total.float()


def _patch_vertices(geometry: Geometry, scale: int) -> int:
    """How many vertices a patch reads, as in ``cuda_reading.h``."""
    level, dimension = geometry.depth - scale, geometry.dimension
    middle = (PATCH_SIDE // 2 + 1) ** dimension if level >= 1 else 0
    return int((PATCH_SIDE + 1) ** dimension + middle + (max(level - 1, 0) << dimension))


def decode(inputs: Tensor, layers: list[Layer]) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.decode`."""
    checks.inputs(inputs, layers)
    count, device = len(inputs), inputs.device
    decoder = _Decoder.of(layers, device)
    network = Network(sizes=decoder.sizes)
    out = torch.empty(count, decoder.sizes[-1], device=device)
    if count:
        tiles = _Tiles.of(count, network.reading_rows, device)
        arguments = (
            *(decoder.argument(), _pointer(inputs), c_longlong(count)),
            *(_pointer(out), _pointer(tiles.scratch)),
        )
        launch(network, "decode", tiles.blocks, device, arguments)
    return out


def decode_backward(inputs: Tensor, layers: list[Layer], gradient: Tensor) -> tuple[Tensor, list[Layer]]:
    """See :func:`acorn_svc.field.ops.reference.decode_backward`."""
    checks.inputs(inputs, layers)
    checks.gradient(gradient, (len(inputs),), len(layers[-1][1]))
    count, device = len(inputs), inputs.device
    _require_device(device, gradient)
    decoder = _Decoder.of(layers, device)
    network = Network(sizes=decoder.sizes)
    tiles = _Tiles.of(count, network.learning_rows, device)
    out = torch.empty_like(inputs)
    parts = torch.empty(tiles.blocks, network.parameters, device=device)
    if count:
        arguments = (
            *(decoder.argument(), _pointer(inputs), _pointer(gradient), c_longlong(count)),
            *(_pointer(out), _pointer(parts), _pointer(tiles.scratch)),
        )
        launch(network, "decode_backward", tiles.blocks, device, arguments)
    return out, _sum_parts(network, parts, 1.0, layers)


def render_points(
    geometry: Geometry,
    features: Tensor,
    folded: Tensor | None,
    layers: list[Layer],
    positions: Tensor,
    scale: int,
) -> Tensor:
    """See :func:`acorn_svc.field.ops.reference.render_points`."""
    checks.reading(geometry, features, scale, folded)
    checks.positions(geometry, positions)
    checks.layers(layers, SLOTS * features.shape[1])
    _require_device(features.device, positions)
    out = torch.empty(len(positions), len(layers[-1][1]), device=features.device)
    where = (_pointer(positions), c_longlong(len(positions)), _pointer(out))
    _render(geometry, features, folded, layers, scale, "render_points", len(positions), where)
    return out


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
    checks.picture(geometry, layers, dtype)
    checks.reading(geometry, features, scale, folded)
    checks.layers(layers, SLOTS * features.shape[1])
    x, y, width, height = checks.region(region)
    out = torch.empty(height, width, len(layers[-1][1]), dtype=dtype, device=features.device)
    canvas = _Canvas(out.data_ptr(), KINDS[dtype], width, height, x, y)
    _render(geometry, features, folded, layers, scale, "render_image", height * width, (canvas,))
    return out


def _render(
    geometry: Geometry,
    features: Tensor,
    folded: Tensor | None,
    layers: list[Layer],
    scale: int,
    name: str,
    count: int,
    where: Sequence[Any],
) -> None:
    _require_channels(features.shape[1])
    features, folded = _aligned(features), None if folded is None else _aligned(folded)
    decoder = _Decoder.of(layers, features.device)
    network = Network(geometry.dimension, features.shape[1], decoder.sizes)
    view = _view(geometry, scale, features, folded)
    if count:
        tiles = _Tiles.of(count, network.reading_rows, features.device)
        arguments = (view, decoder.argument(), *where, _pointer(tiles.scratch))
        launch(network, name, tiles.blocks, features.device, arguments)


# --- learning ---


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
    checks.reading(geometry, features, scale, None)
    checks.corners(geometry, corners)
    checks.layers(layers, SLOTS * features.shape[1])
    checks.truth(geometry, corners, layers, truth, weights)
    _require_channels(features.shape[1])
    features, device = _aligned(features), features.device
    _require_device(device, corners, truth, weights)
    decoder = _Decoder.of(layers, device)
    network = Network(geometry.dimension, features.shape[1], decoder.sizes)
    view = _view(geometry, scale, features, None)
    tiles = _Tiles.of(weights.numel(), network.learning_rows, device)
    total = torch.zeros_like(features, dtype=torch.float64)
    squares = torch.empty(len(corners), dtype=torch.float64, device=device)
    parts = torch.empty(tiles.blocks, network.parameters, device=device)
    factor = 2 / max(truth.numel(), 1)
    if len(corners):
        lesson = _GivenLesson(truth.data_ptr(), weights.data_ptr(), squares.data_ptr())
        arguments = (
            *(view, decoder.argument(), lesson, _pointer(corners), c_longlong(len(corners))),
            *(_pointer(total), _pointer(parts), _pointer(tiles.scratch)),
        )
        launch(network, "learn", tiles.blocks, device, arguments)
    return Learned(squares, (total * factor).float(), _sum_parts(network, parts, factor, layers))


def train(geometry: Geometry, learner: Learner, sampling: Sampling, schedule: Schedule) -> None:
    """See :func:`acorn_svc.field.ops.reference.train`.

    The counts of steps and patches are read before the first step and written after the last: no step waits
    for the device. ``learner.scratch`` is not used, for gradients are summed in ``float64``.
    """
    checks.training(geometry, learner, sampling, schedule)
    _Training(geometry, learner, sampling).run(schedule)


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
    checks.learning_points(geometry, features, layers, positions, scale, truth, loss)
    return points.learn(THIS, geometry, features, layers, positions, scale, truth, loss)


def train_points(geometry: Geometry, learner: Learner, sampling: PointSampling, schedule: Schedule) -> None:
    """See :func:`acorn_svc.field.ops.reference.train_points`."""
    checks.training_points(geometry, learner, sampling, schedule)
    points.train(THIS, geometry, learner, sampling, schedule)


THIS = cast("Operations", sys.modules[__name__])


class _Training:
    """Steps of training on one device."""

    def __init__(self, geometry: Geometry, learner: Learner, sampling: Sampling) -> None:
        self.learner, self.sampling = learner, sampling
        self.features = learner.parameters[FEATURES]
        self.device = self.features.device
        self.geometry = geometry
        parameters = [values for table in learner.tables for values in table.values()]
        _require_channels(self.features.shape[1])
        _require_device(self.device, *parameters, learner.last, learner.errors, *sampling.pyramid)
        if any(values.data_ptr() % ALIGNMENT for values in parameters):
            raise ValueError(f"learner: expected parameters at multiples of {ALIGNMENT} bytes")
        sizes = (SLOTS * self.features.shape[1], *(len(bias) for _, bias in learner.layers(0)))
        _Decoder.of(learner.layers(0), self.device)  # refuses too many outputs
        self.network = Network(geometry.dimension, self.features.shape[1], sizes)
        self.gradient = torch.zeros_like(self.features, dtype=torch.float64)
        self.drawn: list[int] = learner.drawn.tolist()
        self.decoder_steps: list[float] = learner.decoder_steps.tolist()
        self.encoder_steps = float(learner.encoder_steps)

    def run(self, schedule: Schedule) -> None:
        """Takes all steps, and says so to the learner."""
        rates = (schedule.encoder_rates.tolist(), schedule.decoder_rates.tolist())
        for scale, encoder_rate, decoder_rate in zip(schedule.scales.tolist(), *rates, strict=True):
            self._step(scale, encoder_rate, decoder_rate)
        self.learner.drawn.copy_(torch.tensor(self.drawn))
        self.learner.decoder_steps.copy_(torch.tensor(self.decoder_steps))
        self.learner.encoder_steps.fill_(self.encoder_steps)

    def _step(self, scale: int, encoder_rate: float, decoder_rate: float) -> None:
        patches = self._patches(scale)
        pixels = patches * PATCH_SIDE**2
        view = _view(self.geometry, scale, self.features, None)
        tiles = _Tiles.of(pixels, self.network.learning_rows, self.device)
        parts = torch.empty(tiles.blocks, self.network.parameters, device=self.device)
        corners = torch.empty(patches, 2, dtype=torch.int64, device=self.device)
        places = (_pointer(corners), c_longlong(patches))
        factor = c_float(2 / (pixels * self.network.sizes[-1]))
        learning = (
            *(view, self._decoder(scale), self._lesson(scale, view.geometry, corners), *places),
            *(_pointer(self.gradient), _pointer(parts), _pointer(tiles.scratch)),
        )
        self._launch("train", tiles.blocks, learning)
        self.drawn[scale] += patches
        self.encoder_steps += 1
        self.decoder_steps[scale] += 1
        second, last = self.learner.second[FEATURES], self.learner.last
        rows = (
            *(view, *places, _pointer(self.features), _pointer(second), _pointer(last)),
            *(_pointer(self.gradient), factor, c_float(self.encoder_steps)),
            *(c_float(1 / (1 - BETAS[1] ** self.encoder_steps)), c_float(encoder_rate)),
        )
        self._launch("update_rows", _blocks(patches * _patch_vertices(self.geometry, scale)), rows)
        count = self.decoder_steps[scale]
        decoder = (
            *(self._moments(scale), _pointer(parts), c_int(tiles.blocks), factor),
            *(c_float(decoder_rate / (1 - BETAS[0] ** count)), c_float((1 - BETAS[1] ** count) ** -0.5)),
        )
        self._launch("update_decoder", -(-self.network.parameters // SUMMED_TOGETHER), decoder)

    def _launch(self, name: str, blocks: int, arguments: Sequence[Any]) -> None:
        launch(self.network, name, blocks, self.device, arguments)

    def _patches(self, scale: int) -> int:
        height, width = self.sampling.pyramid[scale].shape[:2]
        available = -(-width // PATCH_SIDE) * -(-height // PATCH_SIDE)
        wanted = self.sampling.coarse_patches if scale else self.sampling.patches
        return int(min(wanted, 2 * available))

    def _lesson(self, scale: int, geometry: Any, corners: Tensor) -> Any:
        image = self.sampling.pyramid[scale]
        return _DrawnLesson(
            *(image.data_ptr(), KINDS[image.dtype], image.shape[1], image.shape[0], self.sampling.seed),
            *(self.drawn[scale], None if scale else self.learner.errors.data_ptr()),
            *(geometry, corners.data_ptr()),
        )

    def _decoder(self, scale: int) -> Any:
        """``Decoder`` of ``cuda_decoder.h``."""
        return (c_void_p * (2 * self.learner.layer_count))(*_addresses(self.learner.parameters, scale))

    def _moments(self, scale: int) -> Any:
        """``Moments`` of ``cuda.cu``, each weight before its bias."""
        count = self.learner.layer_count
        addresses = []
        for table in self.learner.tables:
            ordered = list(_addresses(table, scale))
            addresses += [ordered[half * count + layer] for layer in range(count) for half in (0, 1)]
        return (c_void_p * len(addresses))(*addresses)


def _addresses(table: dict[str, Tensor], scale: int) -> Iterator[int]:
    """Of the weights of all layers of one scale's decoder, then of their biases."""
    count = sum(name.startswith("decoder.") for name in table) // 2
    for kind in ("weight", "bias"):
        for layer in range(count):
            yield table[f"decoder.{layer}.{kind}"][scale].data_ptr()
