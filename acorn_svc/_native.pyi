"""CPU kernels of Acorn, built from cuda_ext/. Use them through acorn_svc.field.ops."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from acorn_svc.field.geometry import Geometry

Layers = list[tuple[Tensor, Tensor]]
Floats = NDArray[np.float32]
Integers = NDArray[np.int32]

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
def train_points(
    geometry: Geometry,
    parameters: dict[str, Tensor],
    first: dict[str, Tensor],
    second: dict[str, Tensor],
    last: Tensor,
    gradient: Tensor,
    encoder_steps: Tensor,
    decoder_steps: Tensor,
    drawn: Tensor,
    samples: list[tuple[Tensor, Tensor]],
    runs: int,
    coarse_runs: int,
    seed: int,
    loss: str,
    scales: Tensor,
    encoder_rates: Tensor,
    decoder_rates: Tensor,
    errors: Tensor,
    lanes: str,
    threads: int,
) -> None: ...
def multiply_adds(lanes: str, rounds: int, threads: int) -> int: ...
def copy(values: Tensor, out: Tensor, threads: int) -> None: ...
def count_crossings(
    values: Floats, neighbours: Integers, carried: int, whole: int, counts: Integers, threads: int
) -> None: ...
def cross_edges(
    values: Floats,
    neighbours: Integers,
    corners: Integers,
    spacing: float,
    closest: float,
    farthest: float,
    carried: int,
    whole: int,
    offsets: NDArray[np.int64],
    vertices: Floats,
    normals: Floats,
    edges: Integers,
    spans: Floats,
    threads: int,
) -> None: ...
def count_triangles(
    values: Floats,
    neighbours: Integers,
    whole: int,
    table: NDArray[np.int8],
    starts: Integers,
    counts: Integers,
    threads: int,
) -> None: ...
def triangles(
    values: Floats,
    neighbours: Integers,
    numbers: Integers,
    whole: int,
    table: NDArray[np.int8],
    starts: Integers,
    offsets: NDArray[np.int64],
    faces: Integers,
    threads: int,
) -> None: ...

class Triangles:
    """Use it through acorn_svc.training.distance."""

    def __init__(self, vertices: NDArray[np.float64], faces: NDArray[np.int32], threads: int) -> None: ...
    @property
    def closed(self) -> bool: ...
    def closest(
        self,
        points: NDArray[np.float64],
        most: float,
        distances: NDArray[np.float32],
        nearest: NDArray[np.int32],
        barycentric: NDArray[np.float32],
        lanes: str,
        threads: int,
    ) -> None: ...
    def winding(
        self,
        points: NDArray[np.float64],
        accuracy: float,
        windings: NDArray[np.float32],
        lanes: str,
        threads: int,
    ) -> None: ...
    def inside(
        self,
        points: NDArray[np.float64],
        accuracy: float,
        answers: NDArray[np.bool_],
        lanes: str,
        threads: int,
    ) -> None: ...
    def signed_distance(
        self,
        points: NDArray[np.float64],
        most: float,
        accuracy: float,
        distances: NDArray[np.float32],
        lanes: str,
        threads: int,
    ) -> None: ...
    def occupied(
        self, x: float, y: float, z: float, side: float, nx: int, ny: int, nz: int, threads: int
    ) -> NDArray[np.int64]: ...
