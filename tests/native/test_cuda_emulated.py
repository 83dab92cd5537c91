"""The CUDA kernels obey the law of all operations, as far as a machine without a GPU can tell.

The very source that NVRTC compiles is compiled for the host (``cuda_ext/emulation``) and run by the same
launches of ``ops/cuda.py``. What only a GPU can show, such as memory that is read before others see it, stays
untested.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet

pytest.importorskip("cuda.core", reason="cuda-core is not installed (extra 'cuda')")
pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed (extra 'cuda')")

from acorn_svc.field import ops
from acorn_svc.field.ops import cuda
from acorn_svc.field.ops.cuda_programs import Network, source_directory

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "laws"))
import test_ops as law  # noqa: E402
import test_point_ops as law_of_points  # noqa: E402

COMPILER = shutil.which("g++") or shutil.which("clang++")
OPTIONS = [
    *("-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"),
    *("-Wno-unknown-pragmas", "-Wno-unused-function"),
    *("-fsanitize=alignment,bounds,shift,signed-integer-overflow", "-fsanitize-undefined-trap-on-error"),
]
FAILURES = {1: "there is no such kernel", 2: "some threads ended where others wait"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (g++ or clang++)"),
]


class Emulator:
    """Stands in for a GPU: compiles for the host what a launch asks for, and runs it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.backwards = False
        self.libraries: dict[Network, ctypes.CDLL] = {}
        self.launched: set[str] = set()

    def launch(
        self, network: Network, name: str, blocks: int, _device: torch.device, arguments: Sequence[Any]
    ) -> None:
        """See :func:`acorn_svc.field.ops.cuda.launch`."""
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        status = self._library(network).emulate(name.encode(), blocks, self.backwards, pointers)
        assert status == 0, f"{name}: {FAILURES[status]}"
        self.launched.add(name)

    def _library(self, network: Network) -> ctypes.CDLL:
        if network not in self.libraries:
            path = self.directory / f"{len(self.libraries)}.so"
            source = source_directory() / "emulation" / "emulation.cpp"
            macros = [f"-D{name}={value}" for name, value in network.macros()]
            command = [str(COMPILER), *OPTIONS, *macros, str(source), "-o", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            self.libraries[network] = ctypes.CDLL(str(path))
            self.libraries[network].emulate.argtypes = (
                *(ctypes.c_char_p, ctypes.c_int, ctypes.c_bool, ctypes.c_void_p),
            )
        return self.libraries[network]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    emulator = Emulator(tmp_path_factory.mktemp("emulated"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "launch", emulator.launch)
        yield emulator


@pytest.fixture
def subject(emulator: Emulator) -> Iterator[law.Subject]:
    emulator.backwards = False
    row = ops.BackEnd("cuda", frozenset({"cpu"}), lambda: "")
    return law.Subject(row, "cpu", "")


def _parameters(test: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """All that a test of the law is parametrised by, but for its subject."""
    axes: list[list[dict[str, Any]]] = []
    for mark in getattr(test, "pytestmark", []):
        if mark.name != "parametrize" or mark.args[0] == "subject":
            continue
        names = [mark.args[0]] if isinstance(mark.args[0], str) else list(mark.args[0])
        rows = [_values(row, len(names)) for row in mark.args[1]]
        axes.append([dict(zip(names, row, strict=True)) for row in rows])
    for choice in itertools.product(*axes):
        yield {name: value for part in choice for name, value in part.items()}


def _values(row: Any, names: int) -> Sequence[Any]:
    if isinstance(row, ParameterSet):
        return row.values
    return row if names > 1 else [row]


def _law() -> Iterator[ParameterSet]:
    for name, test in (*vars(law).items(), *vars(law_of_points).items()):
        marks = getattr(test, "pytestmark", []) if name.startswith("test_") else []
        if any(mark.args[:1] == ("subject",) and mark.args[1] is not law.KERNELS_ON_CPU for mark in marks):
            for number, arguments in enumerate(_parameters(test)):
                where = "points-" * (test.__module__ == law_of_points.__name__)
                yield pytest.param(test, arguments, id=f"{where}{name.removeprefix('test_')}-{number}")


@pytest.mark.parametrize(("test", "arguments"), [*_law()])
def test_law(subject: law.Subject, test: Callable[..., None], arguments: dict[str, Any]) -> None:
    test(subject, **arguments)


# --- what is of these kernels alone ---


def everything(subject: law.Subject, hidden: list[int]) -> list[torch.Tensor]:
    """Results of all operations."""
    of = law.flat_scene()
    layers, corners = law.decoder(4, hidden, 3), law.random_corners(of, 40, 0)
    positions, truth = law.random_positions(of, 300), law.random((40, 16, 3))
    encoded = subject.call("encode_points", of.geometry, of.features, positions, 0)
    learned = subject.call("learn", of.geometry, of.features, layers, corners, 0, truth, law.random((40, 16)))
    inputs_gradient, layer_gradients = subject.call("decode_backward", encoded, layers, law.random((300, 3)))
    trained = subject.train(of.geometry, law.new_learner(of, hidden, 3), law.sampling(of, 3), law.SEVERAL)
    gradient = law.random((300, 20))
    patch_gradient = law.random((40, 16, 20))
    view = (of.geometry, of.features, of.folded)
    return [
        subject.call("locate", of.geometry, positions),
        encoded,
        subject.call("encode_points_backward", of.geometry, gradient, positions, 0),
        subject.call("encode_patches", of.geometry, of.features, corners, 0),
        subject.call("encode_patches_backward", of.geometry, patch_gradient, corners, 0),
        subject.call("decode", encoded, layers),
        inputs_gradient,
        *(tensor for layer in layer_gradients for tensor in layer),
        subject.call("render_points", *view, layers, positions, 0),
        subject.call("render_image", *view, layers, 0, (1, 1, 50, 33)),
        learned.errors,
        learned.features,
        *(tensor for layer in learned.layers for tensor in layer),
        *law.flat_tensors(trained),
    ]


DEEP = [20, 21, 22, 23]  # its tape does not fit into shared memory


@pytest.fixture(params=[cuda.MOST_BLOCKS, 2])
def most_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile for each block, or several."""
    monkeypatch.setattr(cuda, "MOST_BLOCKS", request.param)
    monkeypatch.setattr(cuda, "MOST_BLOCKS_WITH_SCRATCH", request.param)


@pytest.mark.usefixtures("most_blocks")
@pytest.mark.parametrize("hidden", [[13], DEEP], ids=str)
def test_the_order_of_blocks_and_threads_changes_no_bit(
    subject: law.Subject, emulator: Emulator, hidden: list[int]
) -> None:
    forwards = everything(subject, hidden)
    emulator.backwards = True
    for mine, other in zip(everything(subject, hidden), forwards, strict=True):
        assert torch.equal(mine, other)


def test_every_kernel_is_emulated(subject: law.Subject, emulator: Emulator) -> None:
    emulator.launched.clear()
    everything(subject, [13])
    source = (source_directory() / "cuda.cu").read_text().splitlines()
    declared = {line.split()[1].split("(")[0] for line in source if line.startswith(("ACORN_L", "ACORN_H"))}
    assert emulator.launched == declared


@pytest.mark.usefixtures("most_blocks")
@pytest.mark.parametrize("hidden", [[64], DEEP, [128, 128]], ids=str)
def test_layers_that_users_have(subject: law.Subject, hidden: list[int]) -> None:
    of = law.flat_scene()
    layers = law.decoder(4, hidden, 3)
    law.check_learning(subject, of, layers, law.random_corners(of, 33, 0), 0)
    values = torch.randn(300, 20, generator=law.source())
    law.check_decoder_gradient(subject, values, layers)
    law.agree(
        subject.call("decode", values, layers),
        law.reference.decode(values, layers),
        law.reference.decode(values.abs(), law.absolute(layers)),
        law.decoding_roundings(layers),
    )


def test_tensors_that_are_not_aligned_are_taken(subject: law.Subject) -> None:
    layers = law.decoder(4, [12], 4)
    values = torch.randn(9, 20, generator=law.source())
    shifted = [
        tuple(torch.cat([part.new_zeros(1), part.flatten()])[1:].reshape(part.shape) for part in layer)
        for layer in layers
    ]
    assert shifted[0][0].data_ptr() % cuda.ALIGNMENT
    actual = subject.function("decode")(values, shifted)
    assert torch.equal(actual, subject.function("decode")(values, layers))


def test_more_outputs_than_a_thread_holds_are_refused(subject: law.Subject) -> None:
    layers = law.random_layers([5, cuda.MOST_OUTPUTS + 1])
    with pytest.raises(ValueError, match="at most 16 outputs"):
        subject.call("decode", torch.zeros(3, 5), layers)


def test_learning_is_refused_where_parameters_are_not_aligned(subject: law.Subject) -> None:
    of = law.flat_scene()
    learner = law.new_learner(of, [13], 3)
    features = torch.zeros(of.features.numel() + 1)[1:].reshape(of.features.shape)
    learner.parameters["encoder.features"] = features
    with pytest.raises(ValueError, match="multiples of 16 bytes"):
        subject.function("train")(of.geometry, learner, law.sampling(of, 3), law.schedule(0))
