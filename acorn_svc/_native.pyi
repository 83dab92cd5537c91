"""CPU kernels of Acorn, built from cuda_ext/. Use them through acorn_svc.field.ops."""

from torch import Tensor

from acorn_svc.field.geometry import Geometry

Layers = list[tuple[Tensor, Tensor]]

def lanes() -> list[str]: ...
def locate(geometry: Geometry, positions: Tensor, out: Tensor) -> None: ...
def encode_points(
    geometry: Geometry,
    features: Tensor,
    positions: Tensor,
    scale: int,
    folded: Tensor | None,
    out: Tensor,
    lanes: str,
    threads: int,
) -> None: ...
def encode_points_backward(
    geometry: Geometry, features_gradient: Tensor, positions: Tensor, scale: int, gradient: Tensor, lanes: str
) -> None: ...
def encode_patches(
    geometry: Geometry,
    features: Tensor,
    corners: Tensor,
    scale: int,
    folded: Tensor | None,
    out: Tensor,
    lanes: str,
    threads: int,
) -> None: ...
def encode_patches_backward(
    geometry: Geometry, features_gradient: Tensor, corners: Tensor, scale: int, gradient: Tensor, lanes: str
) -> None: ...
def decode(inputs: Tensor, layers: Layers, out: Tensor, lanes: str, threads: int) -> None: ...
def decode_backward(
    inputs: Tensor,
    layers: Layers,
    gradient: Tensor,
    inputs_gradient: Tensor,
    parameters_gradient: Tensor,
    lanes: str,
) -> None: ...
def render_points(
    geometry: Geometry,
    features: Tensor,
    folded: Tensor | None,
    layers: Layers,
    positions: Tensor,
    scale: int,
    out: Tensor,
    lanes: str,
    threads: int,
) -> None: ...
def render_image(
    geometry: Geometry,
    features: Tensor,
    folded: Tensor | None,
    layers: Layers,
    scale: int,
    x: int,
    y: int,
    out: Tensor,
    lanes: str,
    threads: int,
) -> None: ...
def learn(
    geometry: Geometry,
    features: Tensor,
    layers: Layers,
    corners: Tensor,
    scale: int,
    truth: Tensor,
    weights: Tensor,
    factor: float,
    features_gradient: Tensor,
    parameters_gradient: Tensor,
    squares: Tensor,
    lanes: str,
    threads: int,
) -> None: ...
def train(
    geometry: Geometry,
    parameters: dict[str, Tensor],
    first: dict[str, Tensor],
    second: dict[str, Tensor],
    last: Tensor,
    gradient: Tensor,
    encoder_steps: Tensor,
    decoder_steps: Tensor,
    drawn: Tensor,
    pyramid: list[Tensor],
    patches: int,
    coarse_patches: int,
    seed: int,
    scales: Tensor,
    encoder_rates: Tensor,
    decoder_rates: Tensor,
    errors: Tensor,
    lanes: str,
    threads: int,
) -> None: ...
def multiply_adds(lanes: str, rounds: int, threads: int) -> int: ...
def copy(values: Tensor, out: Tensor, threads: int) -> None: ...
