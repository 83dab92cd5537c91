"""What the CUDA compiler says of every kernel, without a GPU: registers, shared memory, occupancy.

python -m benchmarks.cuda_kernels    writes the table into docs/cuda.md
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from acorn_svc.field.ops.cuda_programs import ARCHITECTURES, Network, compile_kernels, nvrtc_version

PAGE = Path(__file__).parents[1] / "docs" / "cuda.md"
START, END = "<!-- table -->\n", "<!-- end of table -->\n"
THREADS = 128
SIZES = (20, 64, 3)  # of a decoder as every preset has it, for pictures of three channels
PROGRAMS = (Network(2), Network(2, 4), Network(sizes=SIZES), Network(2, 4, SIZES))

REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


class Usage(NamedTuple):
    """What one kernel takes.

    Attributes:
        name: of the kernel.
        registers: of a thread.
        shared: bytes of a block.
        local: bytes of a thread's stack and of registers spilled, which should be none.
    """

    name: str
    registers: int
    shared: int
    local: int


class Multiprocessor(NamedTuple):
    """Limits of one multiprocessor (CUDA C++ Programming Guide, compute capabilities).

    Attributes:
        threads: resident at once.
        blocks: resident at once.
        shared: bytes.
        reserved: bytes of shared memory that the system takes for each block.
        registers: of 32 bits.
    """

    threads: int
    blocks: int
    shared: int
    reserved: int = 1024
    registers: int = 65536

    def resident(self, usage: Usage) -> int:
        """Blocks of a kernel that it holds at once; registers are given to warps in eights per thread."""
        by_registers = self.registers // (-(-usage.registers // 8) * 8 * THREADS)
        by_shared = self.shared // max(usage.shared + self.reserved, 1)
        return min(self.threads // THREADS, self.blocks, by_registers, by_shared)

    def occupancy(self, usage: Usage) -> float:
        """Threads that it holds of those it could."""
        return self.resident(usage) * THREADS / self.threads


KIBIBYTE = 1024
MULTIPROCESSORS = {
    "sm_75": Multiprocessor(1024, 16, 64 * KIBIBYTE, reserved=0),
    "sm_80": Multiprocessor(2048, 32, 164 * KIBIBYTE),
    "sm_86": Multiprocessor(1536, 16, 100 * KIBIBYTE),
    "sm_89": Multiprocessor(1536, 24, 100 * KIBIBYTE),
    "sm_90": Multiprocessor(2048, 32, 228 * KIBIBYTE),
    "sm_100": Multiprocessor(2048, 32, 228 * KIBIBYTE),
    "sm_120": Multiprocessor(1536, 24, 100 * KIBIBYTE),
}


def usages(log: str) -> list[Usage]:
    """Reads the report of ``ptxas --verbose``."""
    found = []
    for match in REPORT.finditer(log):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        local = sum(int(match[part]) for part in ("stack", "stores", "loads"))
        found.append(Usage(match["name"], int(match["registers"]), int(shared[1]) if shared else 0, local))
    return found


def compiled(network: Network, architecture: str) -> tuple[bytes, list[Usage]]:
    """A cubin, and what its kernels take."""
    log = io.StringIO()
    return compile_kernels(network, architecture, log), usages(log.getvalue())


def table() -> str:
    """The table of ``docs/cuda.md``, in Markdown."""
    major, minor = nvrtc_version()
    of = {architecture: _all_usages(architecture) for architecture in ARCHITECTURES}
    rows = [
        f"NVRTC {major}.{minor}, decoder {'-'.join(map(str, SIZES))}, 4 channels, pictures:\n",
        f"| kernel | shared memory | {' | '.join(ARCHITECTURES)} |",
        f"|---|---:|{'---:|' * len(ARCHITECTURES)}",
    ]
    rows += (f"| {' | '.join(_cells(name, of))} |" for name in of[ARCHITECTURES[0]])
    return "\n".join(rows) + "\n"


def _all_usages(architecture: str) -> dict[str, Usage]:
    return {usage.name: usage for network in PROGRAMS for usage in sorted(compiled(network, architecture)[1])}


def _cells(name: str, of: dict[str, dict[str, Usage]]) -> Iterator[str]:
    yield f"`{name}`"
    yield f"{of[ARCHITECTURES[0]][name].shared / KIBIBYTE:.1f} KiB"
    for architecture, found in of.items():
        occupancy = MULTIPROCESSORS[architecture].occupancy(found[name])
        yield f"{found[name].registers}, {occupancy:.0%}"


def documented() -> str:
    """The table as ``docs/cuda.md`` has it."""
    return PAGE.read_text().split(START)[1].split(END)[0]


def main() -> None:
    """Writes the table."""
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(before + START + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
