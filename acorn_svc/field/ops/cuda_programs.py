"""The programs of ``cuda_ext/cuda.cu``: compiled for each network by NVRTC, kept in a directory.

Nothing here needs ``nvcc``: users of a prebuilt PyTorch have none. Compiling needs no GPU either, so kernels
can be compiled beforehand, for a container image::

    python -m acorn_svc.field.ops.cuda_programs --architectures sm_80,sm_90
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from cuda.bindings import nvrtc
from cuda.core import ObjectCode, Program, ProgramOptions

from acorn_svc.field.geometry import SLOTS
from acorn_svc.field.ops import kernel_cache

SOURCES = ("cuda.cu", "cuda_block.h", "cuda_decoder.h", "cuda_reading.h", "kernels.h")
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
FEW = 4  # outputs that the last hidden layer goes straight to, as in cuda_decoder.h
CHANNELS = (1, 2, 4, 8)  # of a feature row, for which there are kernels
DEFAULT_CHANNELS = 4
DEFAULT_HIDDEN = (64,)


class Network(NamedTuple):
    """What kernels are compiled for; a zero stands for what they do not use.

    Attributes:
        dimension: 2 or 3.
        channels: of a feature row.
        sizes: of the decoder's layers, inputs first.
    """

    dimension: int = 0
    channels: int = 0
    sizes: tuple[int, ...] = ()

    @property
    def learning_rows(self) -> int:
        """Rows of a tape that keeps all values, the gradients of the outputs and the squared errors."""
        return sum(self.sizes) + 1

    @property
    def reading_rows(self) -> int:
        """Rows of a tape on which hidden layers take turns, but for a last one before few outputs."""
        stored = self.sizes[1:-2] if self.sizes[-1] <= FEW else self.sizes[1:-1]
        return self.sizes[0] + min(len(stored), 2) * max(stored, default=0)

    @property
    def parameters(self) -> int:
        """Numbers in the decoder."""
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(self.sizes))

    def macros(self) -> list[tuple[str, str]]:
        """Names and values that specialise the source."""
        macros = [("ACORN_DIMENSION", self.dimension), ("ACORN_CHANNELS", self.channels)]
        if self.sizes:
            macros += [
                ("ACORN_LEARNING_ROWS", self.learning_rows),
                ("ACORN_READING_ROWS", self.reading_rows),
            ]
        sizes = [("ACORN_SIZES", ",".join(map(str, self.sizes)))] if self.sizes else []
        return [(name, str(value)) for name, value in macros if value] + sizes


def source_directory() -> Path:
    """Where the kernel sources lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[2]
    installed = package / "cuda_ext"
    return installed if installed.is_dir() else package.parent / "cuda_ext"


def prebuilt_directory() -> Path:
    """Where kernels that were compiled beforehand lie, if there are any."""
    return source_directory() / "kernels"


def cache_directory() -> Path:
    """``acorn/kernels`` in ``$XDG_CACHE_HOME`` or ``~/.cache``: PyTorch's own cache is its neighbour."""
    return Path(torch.hub.get_dir()).parent.parent / "acorn" / "kernels"


def compile_kernels(network: Network, architecture: str, log: TextIO | None = None) -> bytes:
    """Compiles ``cuda.cu`` to a cubin; no GPU is needed.

    Args:
        network: what for.
        architecture: compute capability as NVRTC names it, such as ``"sm_75"``.
        log: takes the assembler's report: registers, stack and spills of every kernel.
    """
    directory = source_directory()
    options = ProgramOptions(
        arch=architecture,
        std="c++17",
        device_as_default_execution_space=True,  # NVRTC 13.0 takes a lambda for a function of the host
        include_path=str(directory),
        define_macro=network.macros(),
        ptxas_options=["--verbose"] if log else None,
    )
    program = Program((directory / "cuda.cu").read_text(), "c++", options)
    return bytes(program.compile("cubin", logs=log).code)


def cache_name(network: Network, architecture: str) -> str:
    """The SHA-256 of all that the compiled kernels depend on."""
    digest = sha256()
    for source in SOURCES:
        digest.update(sha256((source_directory() / source).read_bytes()).digest())
    digest.update(repr((architecture, network.macros(), nvrtc_version())).encode())
    return digest.hexdigest()


def nvrtc_version() -> tuple[int, int]:
    """Of the compiler that is installed."""
    _, major, minor = nvrtc.nvrtcVersion()
    return major, minor


def cached_kernels(network: Network, architecture: str, directories: Sequence[Path]) -> bytes:
    """A cubin from the first of some directories that has it, or compiled and left in the last."""
    name = cache_name(network, architecture)
    for directory in directories:
        code = kernel_cache.read(directory, name)
        if code is not None:
            return code
    code = compile_kernels(network, architecture)
    kernel_cache.write(directories[-1], name, code)
    return code


@cache
def kernel(network: Network, architecture: str, name: str) -> Any:
    """A kernel as ``cuda.core`` loads it."""
    return _library(network, architecture).get_kernel(name)


@cache
def _library(network: Network, architecture: str) -> Any:
    directories = (prebuilt_directory(), cache_directory())
    return ObjectCode.from_cubin(cached_kernels(network, architecture, directories))


def forget() -> None:
    """Loads kernels anew when they are next used."""
    kernel.cache_clear()
    _library.cache_clear()


# --- compiling beforehand ---


def networks(channels: int, hidden: Sequence[int]) -> Iterator[Network]:
    """All that the operations compile for pictures of 1 to 4 channels."""
    yield Network(2)
    yield Network(2, channels)
    for outputs in range(1, 5):
        sizes = (SLOTS * channels, *hidden, outputs)
        yield Network(sizes=sizes)
        yield Network(2, channels, sizes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles kernels beforehand, without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m acorn_svc.field.ops.cuda_programs", description=main.__doc__
    )
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES), help="separated by commas")
    parser.add_argument("--directory", type=Path, default=prebuilt_directory(), help="default: %(default)s")
    parser.add_argument("--features", type=int, default=DEFAULT_CHANNELS, choices=CHANNELS)
    parser.add_argument(
        "--hidden", type=int, nargs="+", default=list(DEFAULT_HIDDEN), help="units of each layer"
    )
    options = parser.parse_args(arguments)
    for architecture in options.architectures.split(","):
        for network in networks(options.features, options.hidden):
            code = compile_kernels(network, architecture)
            if not kernel_cache.write(options.directory, cache_name(network, architecture), code):
                parser.exit(1, f"cannot write to {options.directory}\n")
    print(f"{options.directory}: kernels for {options.architectures}")


if __name__ == "__main__":
    main()
