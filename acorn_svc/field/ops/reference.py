"""Plain PyTorch for every operation: the specification that the kernels are held to.

Every tensor is contiguous, of the dtype stated, and on one device; anything else is refused (see
:mod:`acorn_svc.field.ops.checks`). Counts may be zero.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from acorn_svc.field.geometry import DIRECT_SLOTS, PATCH_SIDE, SLOTS, Geometry, kronecker
from acorn_svc.field.ops import checks, points
from acorn_svc.field.ops.cells import (
    blocks_under,
    cell,
    clamped,
    leaves,
    offsets,
    vertex_index,
)
from acorn_svc.field.ops.learning import (
    FEATURES,
    Layer,
    Learned,
    Learner,
    Loss,
    PointSampling,
    Sampling,
    Schedule,
)
from acorn_svc.field.ops.shuffle import turns
from acorn_svc.field.ops.steps import update
from acorn_svc.field.state import ALPHA_CHANNELS

if TYPE_CHECKING:
    from acorn_svc.field.ops import Operations

BLOCKS_AT_ONCE = 64
LEAST_ALPHA = 1e-4


# --- where a point lies ---


def locate(geometry: Geometry, positions: Tensor) -> Tensor:
    """Rows of the leaves under positions.

    Args:
        geometry: the blocks.
        positions: ``float64 [n, dimension]`` in full-size pixels; clamped to the extent.

    Returns:
        ``int32 [n]``.
    """
    checks.positions(geometry, positions)
    return leaves(geometry, blocks_under(geometry, clamped(geometry, positions))).int()


# --- reading features ---


def encode_points(
    geometry: Geometry, features: Tensor, positions: Tensor, scale: int, folded: Tensor | None = None
) -> Tensor:
    """Reads features anywhere.

    Args:
        geometry: the blocks.
        features: ``float32 [vertices + 1, channels]``, row 0 zero.
        positions: ``float64 [n, dimension]`` in full-size pixels; clamped to the extent.
        scale: 0 to ``depth``.
        folded: ``float32``, from :func:`acorn_svc.field.geometry.fold`; without it the coarser levels are
            summed one by one.

    Returns:
        ``float32 [n, SLOTS * channels]``.
    """
    checks.reading(geometry, features, scale, folded)
    checks.positions(geometry, positions)
    return _points(geometry, features, positions, scale, folded)


def encode_points_backward(geometry: Geometry, gradient: Tensor, positions: Tensor, scale: int) -> Tensor:
    """The gradient of the features ``[vertices + 1, channels]``, row 0 zero, for that of the result
    ``[n, SLOTS * channels]`` of :func:`encode_points`.
    """
    checks.positions(geometry, positions)
    checks.reading_gradient(geometry, gradient, (len(positions),), scale)
    features = gradient.new_zeros(geometry.vertices + 1, gradient.shape[1] // SLOTS).requires_grad_()
    with torch.enable_grad():
        read = _points(geometry, features, positions, scale, None)
    return _features_gradient(features, read, gradient)


def encode_patches(
    geometry: Geometry, features: Tensor, corners: Tensor, scale: int, folded: Tensor | None = None
) -> Tensor:
    """Reads features at the centres of the pixels of patches, each vertex once for a whole patch.

    Args:
        geometry: the blocks.
        features: ``float32 [vertices + 1, channels]``, row 0 zero.
        corners: ``int64 [n, dimension]``, lowest pixel of each patch in pixels of ``scale``; multiples of
            ``PATCH_SIDE``, not negative; pixels outside the extent read what their patch's blocks hold.
        scale: 0 to ``depth``.
        folded: as for :func:`encode_points`.

    Returns:
        ``float32 [n, PATCH_SIDE**dimension, SLOTS * channels]``, pixels in ``(z,) y, x`` order.
    """
    checks.reading(geometry, features, scale, folded)
    checks.corners(geometry, corners)
    return _patches(geometry, features, corners, scale, PATCH_SIDE, folded).transpose(0, 1).contiguous()


def encode_patches_backward(geometry: Geometry, gradient: Tensor, corners: Tensor, scale: int) -> Tensor:
    """The gradient of the features ``[vertices + 1, channels]``, row 0 zero, for that of the result of
    :func:`encode_patches`.
    """
    checks.corners(geometry, corners)
    samples = (len(corners), PATCH_SIDE**geometry.dimension)
    checks.reading_gradient(geometry, gradient, samples, scale)
    features = gradient.new_zeros(geometry.vertices + 1, gradient.shape[2] // SLOTS).requires_grad_()
    with torch.enable_grad():
        read = _patches(geometry, features, corners, scale, PATCH_SIDE, None).transpose(0, 1)
    return _features_gradient(features, read, gradient)


def _features_gradient(features: Tensor, read: Tensor, gradient: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(read, features, gradient)
    result[0] = 0  # the zero row does not learn
    return result


def _points(
    geometry: Geometry, features: Tensor, positions: Tensor, scale: int, folded: Tensor | None
) -> Tensor:
    positions = clamped(geometry, positions)
    ancestors = geometry.ancestors[leaves(geometry, blocks_under(geometry, positions))].long()
    level = geometry.depth - scale
    slots = [
        _point_slot(geometry, features, ancestors[:, level - up], positions, up + scale)
        for up in range(min(DIRECT_SLOTS, level + 1))
    ]
    if level >= DIRECT_SLOTS:
        if folded is None:
            rest = [
                _point_slot(geometry, features, ancestors[:, level - up], positions, up + scale)
                for up in range(DIRECT_SLOTS, level + 1)
            ]
            slots.append(torch.stack(rest).sum(dim=0))
        else:
            rows, shift = _deepest(geometry, ancestors, level - DIRECT_SLOTS)
            index, weights = cell(geometry, rows, positions / (1 << shift)[:, None])
            slots.append(_weighted(_gather(folded, index), weights))
    slots += [features.new_zeros(len(positions), features.shape[1])] * (SLOTS - len(slots))
    return torch.cat(slots, dim=1)


def _point_slot(geometry: Geometry, features: Tensor, rows: Tensor, positions: Tensor, shift: int) -> Tensor:
    index, weights = cell(geometry, rows, positions / (1 << shift))
    return _weighted(_gather(features, geometry.table.reshape(-1)[index]), weights)


def _deepest(geometry: Geometry, ancestors: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """The deepest present blocks not below ``level`` and the exponent of their cells' side."""
    present = ancestors[:, : level + 1] != geometry.nodes
    levels = present.sum(dim=1) - 1
    return ancestors.gather(1, levels[:, None])[:, 0], geometry.depth - levels


def _patches(
    geometry: Geometry, features: Tensor, corners: Tensor, scale: int, side: int, folded: Tensor | None
) -> Tensor:
    """``[side**dimension, n, SLOTS * channels]`` for patches of any power of two up to ``cells``."""
    under = leaves(geometry, torch.div(corners << scale, geometry.cells, rounding_mode="floor"))
    ancestors = geometry.ancestors[under].long()
    level = geometry.depth - scale
    fine = range(min(side.bit_length() - 1, DIRECT_SLOTS, level + 1))
    coarse = range(len(fine), 1 + (level if folded is None else min(DIRECT_SLOTS - 1, level)))
    parts, values = _read_levels(geometry, features, ancestors, corners, level, fine, coarse, side)
    if folded is not None and level >= DIRECT_SLOTS:
        rows, shift = _deepest(geometry, ancestors, level - DIRECT_SLOTS)
        exponents = (shift - scale)[None]
        rest = _gather(folded, _coarse_index(geometry, rows[None], corners, exponents))
        values = torch.cat([values, _at_corners(rest[None], corners, exponents, side)])
    slots = [
        _spread(_interpolation_matrix(side, 1 << up, geometry.dimension), part)
        for up, part in zip(fine, parts, strict=True)
    ]
    slots += _spread_coarse(geometry, values, DIRECT_SLOTS - len(fine), side)
    zeros = features.new_zeros(side**geometry.dimension, len(corners), features.shape[1])
    slots += [zeros] * (SLOTS - len(slots))
    return torch.cat(slots, dim=2)


def _read_levels(
    geometry: Geometry,
    features: Tensor,
    ancestors: Tensor,
    corners: Tensor,
    level: int,
    fine: range,
    coarse: range,
    side: int,
) -> tuple[list[Tensor], Tensor]:
    """Features of the levels ``level - up`` around patches, all with one gather.

    Returns:
        the vertices ``[vertices, n, channels]`` of each ``fine`` level, whose cells are smaller than a
        patch, and the ``coarse`` ones at the patches' corners ``[levels, 2**dimension, n, channels]``.
    """
    exponents = torch.tensor(coarse, dtype=torch.int64, device=corners.device)[:, None]
    rows = ancestors[:, [level - up for up in coarse]].T
    index = [_fine_index(geometry, ancestors[:, level - up], corners, up, side) for up in fine]
    index.append(_coarse_index(geometry, rows, corners, exponents))
    gathered = _gather(features, geometry.table.reshape(-1)[torch.cat(index)])
    *parts, rest = torch.split(gathered, [len(part) for part in index])
    rest = rest.reshape(len(coarse), 1 << geometry.dimension, *rest.shape[1:])
    return parts, _at_corners(rest, corners, exponents, side)


def _fine_index(geometry: Geometry, rows: Tensor, corners: Tensor, up: int, side: int) -> Tensor:
    """Table indices ``[vertices, n]`` of all vertices of patches that are larger than a cell."""
    base = vertex_index(geometry, rows, (corners >> up) % geometry.cells)
    return offsets(geometry, range((side >> up) + 1))[:, None] + base


def _coarse_index(geometry: Geometry, rows: Tensor, corners: Tensor, up: Tensor) -> Tensor:
    """Table indices ``[levels * 2**dimension, n]`` of the cells around patches.

    ``rows [levels, n]`` are the blocks, ``up [levels, n or 1]`` the exponents of their cells' sides.
    """
    base = vertex_index(geometry, rows, (corners >> up[..., None]) % geometry.cells)
    return (offsets(geometry, (0, 1))[:, None] + base[:, None]).flatten(0, 1)


def _spread_coarse(geometry: Geometry, values: Tensor, direct: int, side: int) -> list[Tensor]:
    """From patch corners to pixels: ``direct`` slots of one level each, one for all the others."""
    if len(values) > direct:
        values = torch.cat([values[:direct], values[direct:].sum(dim=0, keepdim=True)])
    matrix = _interpolation_matrix(side, side, geometry.dimension)
    return [_spread(matrix, value) for value in values]


def _gather(features: Tensor, index: Tensor) -> Tensor:
    """Rows of ``features`` at ``index [...]``: ``[..., channels]``."""
    return features.index_select(0, index.reshape(-1)).reshape(*index.shape, features.shape[1])


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over the first axis: ``[v, n, channels], [v, n] -> [n, channels]``."""
    return (values * weights[..., None].to(values.dtype)).sum(dim=0)


def _at_corners(values: Tensor, corners: Tensor, up: Tensor, side: int) -> Tensor:
    """Interpolates at the corners of patches.

    Args:
        values: ``[levels, 2**dimension, n, channels]`` at the vertices of the cells that hold the patches.
        corners: ``int64 [n, dimension]``, lowest pixel of each patch.
        up: ``[levels, n or 1]``, exponent of the cells' side in pixels.
        side: pixels per side of a patch.

    Returns:
        ``[levels, 2**dimension, n, channels]``.
    """
    cell = 1 << up
    weights = values.new_ones(len(up), 1, 1, len(corners))
    for axis in reversed(range(corners.shape[1])):
        low = corners[:, axis] % cell
        high = torch.stack([low, low + side], dim=1).to(values.dtype) / cell[:, None]
        along = torch.stack([1 - high, high], dim=2)
        weights = (weights[:, :, None, :, None] * along[:, None, :, None]).flatten(3, 4).flatten(1, 2)
    return torch.einsum("lcvn,lvnk->lcnk", weights, values)


def _spread(matrix: Tensor, values: Tensor) -> Tensor:
    """Applies ``matrix [pixels, vertices]`` to ``values [vertices, n, channels]``."""
    matrix = matrix.to(values.device, values.dtype)
    return (matrix @ values.flatten(1)).reshape(len(matrix), *values.shape[1:])


@cache
@torch.inference_mode(False)  # may be kept for a later training step
def _interpolation_matrix(pixels: int, stride: int, dimension: int) -> Tensor:
    """``[pixels**dimension, (pixels / stride + 1)**dimension]``: vertices to pixel centres."""
    centres = (torch.arange(pixels, dtype=torch.float64) + 0.5) / stride
    low = centres.long()
    line = torch.zeros(pixels, pixels // stride + 1, dtype=torch.float64)
    line[torch.arange(pixels), low] = 1 - (centres - low)
    line[torch.arange(pixels), low + 1] = centres - low
    return kronecker([line] * dimension)


# --- the decoder ---


def decode(inputs: Tensor, layers: list[Layer]) -> Tensor:
    """Runs an MLP with ReLU between its layers and none after the last.

    Args:
        inputs: ``float32 [n, in]``.
        layers: ``(weight float32 [in, out], bias float32 [out])`` of each layer.

    Returns:
        ``float32 [n, out]``.
    """
    checks.inputs(inputs, layers)
    return _decode(inputs, layers)


def decode_backward(inputs: Tensor, layers: list[Layer], gradient: Tensor) -> tuple[Tensor, list[Layer]]:
    """Gradients of the inputs and of every layer's weight and bias, for that of :func:`decode`'s result
    ``[n, out]``.
    """
    checks.inputs(inputs, layers)
    checks.gradient(gradient, (len(inputs),), len(layers[-1][1]))
    inputs = inputs.detach().requires_grad_()
    layers = [(weight.detach().requires_grad_(), bias.detach().requires_grad_()) for weight, bias in layers]
    with torch.enable_grad():
        output = _decode(inputs, layers)
    flat = [tensor for layer in layers for tensor in layer]
    result, *gradients = torch.autograd.grad(output, [inputs, *flat], gradient)
    return result, list(zip(gradients[::2], gradients[1::2], strict=True))


def _decode(inputs: Tensor, layers: list[Layer]) -> Tensor:
    hidden = inputs
    for weight, bias in layers[:-1]:
        hidden = torch.addmm(bias, hidden, weight).relu_()
    weight, bias = layers[-1]
    return torch.addmm(bias, hidden, weight)


# --- looking ---


def render_points(
    geometry: Geometry,
    features: Tensor,
    folded: Tensor | None,
    layers: list[Layer],
    positions: Tensor,
    scale: int,
) -> Tensor:
    """:func:`encode_points`, then :func:`decode`: ``float32 [n, out]``."""
    return decode(encode_points(geometry, features, positions, scale, folded), layers)


def render_image(
    geometry: Geometry,
    features: Tensor,
    folded: Tensor | None,
    layers: list[Layer],
    scale: int,
    region: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Renders pixels of one scale.

    Args:
        geometry: the blocks, of dimension 2.
        features: ``float32 [vertices + 1, channels]``, row 0 zero.
        folded: as for :func:`encode_points`.
        layers: of the decoder of this scale.
        scale: 0 to ``depth``.
        region: ``(x, y, width, height)`` in pixels of that scale, not negative.
        dtype: ``float32`` for values as the decoder gives them; ``uint8`` or ``uint16`` for values clipped to
            0..1, with straight alpha where there are 2 or 4 channels, and rounded.

    Returns:
        ``[height, width, out]``.
    """
    checks.picture(geometry, layers, dtype)
    checks.reading(geometry, features, scale, folded)
    checks.layers(layers, SLOTS * features.shape[1])
    x, y, width, height = checks.region(region)
    side, cells = geometry.cells, torch.arange
    left, top = x // side, y // side
    across, down = -(-(x + width) // side) - left, -(-(y + height) // side) - top
    blocks = torch.cartesian_prod(cells(down), cells(across)).reshape(-1, 2).flip(1)
    corners = (blocks + torch.tensor([left, top])).to(features.device) * side
    values = [
        _decode(_patches(geometry, features, part, scale, side, folded).flatten(0, 1), layers)
        .reshape(side, side, len(part), -1)
        .permute(2, 0, 1, 3)
        for part in torch.split(corners, BLOCKS_AT_ONCE)
    ]
    canvas = (
        torch.cat(values).reshape(down, across, side, side, -1).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    )
    row, column = y - top * side, x - left * side
    image = canvas[row : row + height, column : column + width].contiguous()
    return image if dtype == torch.float32 else _quantised(image, dtype)


def _quantised(image: Tensor, dtype: torch.dtype) -> Tensor:
    image = image.clamp(0, 1)
    if image.shape[2] in ALPHA_CHANNELS:
        alpha = image[..., -1:]
        colour = torch.where(alpha > LEAST_ALPHA, image[..., :-1] / alpha, 0.0).clamp(0, 1)
        image = torch.cat([colour, alpha], dim=2)
    top = 255 if dtype == torch.uint8 else 65535
    return (image * top).round().to(dtype)


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
    """The squared error of patches and its gradients.

    The loss is the weighted squared error, summed and divided by the number of values in ``truth``.

    Args:
        geometry: the blocks.
        features: ``float32 [vertices + 1, channels]``, row 0 zero.
        layers: of the decoder of this scale.
        corners: ``int64 [n, dimension]``, as for :func:`encode_patches`.
        scale: 0 to ``depth``.
        truth: ``float32 [n, pixels, out]``.
        weights: ``float32 [n, pixels]``, 0 for pixels that do not count.
    """
    checks.reading(geometry, features, scale, None)
    checks.corners(geometry, corners)
    checks.layers(layers, SLOTS * features.shape[1])
    checks.truth(geometry, corners, layers, truth, weights)
    features = features.detach().requires_grad_()
    layers = [(weight.detach().requires_grad_(), bias.detach().requires_grad_()) for weight, bias in layers]
    with torch.enable_grad():
        inputs = _patches(geometry, features, corners, scale, PATCH_SIDE, None).transpose(0, 1)
        output = _decode(inputs.flatten(0, 1), layers).reshape(truth.shape)
        squares = ((output - truth).square().sum(dim=2) * weights).sum(dim=1)
        loss = squares.sum() / max(truth.numel(), 1)
    flat = [tensor for layer in layers for tensor in layer]
    result, *gradients = torch.autograd.grad(loss, [features, *flat])
    result[0] = 0
    pairs = list(zip(gradients[::2], gradients[1::2], strict=True))
    return Learned(squares.detach().double(), result, pairs)


def train(geometry: Geometry, learner: Learner, sampling: Sampling, schedule: Schedule) -> None:
    """Steps of training, in place: draw patches, :func:`learn`, update what they touched.

    Step ``i`` draws ``sampling.patches`` patches of scale ``schedule.scales[i]`` (``coarse_patches`` if that
    is not 0, and never more than twice as many as there are), in a random order in which every patch comes
    once before any comes again; the order depends on the seed and on ``learner.drawn`` alone.

    The decoder of that scale takes a step of Adam (Kingma and Ba 2015). The features take one of Adam without
    a first moment, only in the rows that were read: the second moment of a row decays with the steps since it
    was last touched, ``LONGEST_GAP`` at most. Rows that are touched seldom therefore move further each time,
    as they do under Adam on the whole table, where the momentum of one touch goes on through the steps that
    do not touch the row.

    Args:
        geometry: the blocks, of dimension 2.
        learner: what learns.
        sampling: from what.
        schedule: when and how fast.
    """
    checks.training(geometry, learner, sampling, schedule)
    rates = zip(schedule.scales.tolist(), schedule.encoder_rates, schedule.decoder_rates, strict=True)
    for scale, encoder_rate, decoder_rate in rates:
        _train_step(geometry, learner, sampling, scale, encoder_rate, decoder_rate)


def _train_step(
    geometry: Geometry,
    learner: Learner,
    sampling: Sampling,
    scale: int,
    encoder_rate: Tensor,
    decoder_rate: Tensor,
) -> None:
    image = sampling.pyramid[scale]
    corners = draw_patches(learner, sampling, scale)
    truth, weights = read_patches(image, corners)
    features = learner.parameters[FEATURES]
    layers = learner.layers(scale)
    learned = learn(geometry, features, layers, corners, scale, truth, weights)
    learner.drawn[scale] += len(corners)
    read = learn_rows(geometry, corners, scale)
    update(learner, scale, read, learned.features, learned.layers, encoder_rate, decoder_rate)
    if scale == 0:
        rows = leaves(geometry, torch.div(corners, geometry.cells, rounding_mode="floor"))
        learner.errors[0].index_add_(0, rows, learned.errors)
        learner.errors[1].index_add_(0, rows, weights.sum(dim=1).double())


def draw_patches(learner: Learner, sampling: Sampling, scale: int) -> Tensor:
    """Corners ``int64 [n, 2]`` of the next patches of one scale."""
    image = sampling.pyramid[scale]
    across, down = (-(-side // PATCH_SIDE) for side in (image.shape[1], image.shape[0]))
    available = across * down
    count = min(sampling.coarse_patches if scale else sampling.patches, 2 * available)
    places = turns(int(learner.drawn[scale]), count, available, sampling.seed, scale)
    corners = torch.stack([places % across, places // across], dim=1) * PATCH_SIDE
    return corners.to(image.device)


def read_patches(image: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Truth ``float32 [n, pixels, channels]`` and weights ``[n, pixels]``, 0 outside the image."""
    height, width = image.shape[:2]
    steps = torch.arange(PATCH_SIDE, device=corners.device)
    x = corners[:, :1] + steps.repeat(PATCH_SIDE)
    y = corners[:, 1:] + steps.repeat_interleave(PATCH_SIDE)
    index = y.clamp(max=height - 1) * width + x.clamp(max=width - 1)
    values = image.reshape(-1, image.shape[2])[index]
    top = {torch.uint8: 255.0, torch.uint16: 65535.0}.get(image.dtype, 1.0)
    return values.float() / top, ((x < width) & (y < height)).float()


def learn_rows(geometry: Geometry, corners: Tensor, scale: int) -> Tensor:
    """Rows of the features, without repeats and without the zero row, that patches read."""
    ones = torch.ones(len(corners), PATCH_SIDE**geometry.dimension, SLOTS, device=corners.device)
    # every vertex that is read has a positive weight somewhere in the patch
    weight = encode_patches_backward(geometry, ones, corners, scale)
    return torch.nonzero(weight[:, 0])[:, 0]


def learn_points(
    geometry: Geometry,
    features: Tensor,
    layers: list[Layer],
    positions: Tensor,
    scale: int,
    truth: Tensor,
    loss: Loss,
) -> Learned:
    """The error of points and its gradients.

    The loss is the sum of :func:`acorn_svc.field.ops.points.errors_of` divided by the number of points.

    Args:
        geometry: the blocks.
        features: ``float32 [vertices + 1, channels]``, row 0 zero.
        layers: of the decoder of this scale.
        positions: ``float32 [n, dimension]`` in full-size pixels; clamped to the extent.
        scale: 0 to ``depth``.
        truth: ``float32 [n, out]``.
        loss: ``"distance"`` or ``"occupancy"``.
    """
    checks.learning_points(geometry, features, layers, positions, scale, truth, loss)
    return points.learn(THIS, geometry, features, layers, positions, scale, truth, loss)


def train_points(geometry: Geometry, learner: Learner, sampling: PointSampling, schedule: Schedule) -> None:
    """Steps of training from points, in place: draw runs, :func:`learn_points`, update what they touched.

    Step ``i`` draws ``sampling.runs`` runs of scale ``schedule.scales[i]`` (``coarse_runs`` if that is not 0,
    and never more than twice as many as there are), in a random order as :func:`train` draws patches. The
    optimisers are those of :func:`train`.

    Args:
        geometry: the blocks.
        learner: what learns.
        sampling: from what.
        schedule: when and how fast.
    """
    checks.training_points(geometry, learner, sampling, schedule)
    points.train(THIS, geometry, learner, sampling, schedule)


THIS = cast("Operations", sys.modules[__name__])
