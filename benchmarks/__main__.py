"""Runs the benchmarks and writes `benchmarks/results/<version>.tsv`.

The rows of parts that are not run stay as they are.

python -m benchmarks [NAME ...] [--seconds 0.3 2 4 6] [--threads 1] [--image FILE] [--mesh FILE] [--blocks N]
    [--highs-seconds 0] [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from acorn_svc import __version__
from benchmarks.measurement import Measurement

FOLDER = Path(__file__).parent
FITTING_SECONDS = (0.3, 2.0, 4.0, 6.0)
COLUMNS = ("version", "commit", "machine", "command", "benchmark", *Measurement._fields)


def _allocation(arguments: argparse.Namespace) -> Iterator[Measurement]:
    from benchmarks import allocation

    for extent, kind in allocation.INSTANCES:
        yield from allocation.measure(extent, kind, highs_seconds=arguments.highs_seconds)


def _fitting(arguments: argparse.Namespace) -> Iterator[Measurement]:
    from benchmarks import fitting

    return fitting.measure(
        arguments.seconds or FITTING_SECONDS, arguments.image, arguments.blocks, arguments.threads
    )


def _shapes(arguments: argparse.Namespace) -> Iterator[Measurement]:
    from benchmarks import shapes

    effort = shapes.QUICK if arguments.quick else None
    return shapes.measure(arguments.seconds, arguments.mesh, arguments.blocks, arguments.threads, effort)


def _operations(arguments: argparse.Namespace) -> Iterator[Measurement]:
    from benchmarks import operations

    return operations.measure(arguments.quick)


def _serving(arguments: argparse.Namespace) -> Iterator[Measurement]:
    from benchmarks import serving

    return serving.measure(arguments.quick)


BENCHMARKS: dict[str, Callable[[argparse.Namespace], Iterator[Measurement]]] = {
    "allocation": _allocation,
    "operations": _operations,
    "fitting": _fitting,
    "shapes": _shapes,
    "serving": _serving,
}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", FOLDER.parent, *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _commit() -> str:
    commit = _git("rev-parse", "--short=12", "HEAD") or "unknown"
    changed = _git("status", "--porcelain", "--", "acorn_svc", "cuda_ext", "benchmarks/*.py")
    return f"{commit}+changes" if changed else commit


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _machine() -> str:
    return f"{_processor()}, {os.cpu_count()} cores"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures Acorn.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument(
        "--seconds",
        type=float,
        nargs="+",
        default=[],
        help="times to fit in, one fit each; by default some for images, the presets for shapes",
    )
    parser.add_argument("--threads", type=int, default=1, help="of a fit")
    parser.add_argument("--image", type=Path, action="append", default=[], help="fit this image instead")
    parser.add_argument("--mesh", type=Path, action="append", default=[], help="fit this mesh instead")
    parser.add_argument("--blocks", type=int, help="most blocks of one fit")
    parser.add_argument(
        "--highs-seconds",
        type=float,
        default=0,
        help="also solve every allocation with HiGHS, each for at most this long",
    )
    parser.add_argument(
        "--quick", action="store_true", help="operations, serving, shapes: only see that it runs"
    )
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / f"{__version__}.tsv")
    parsed = parser.parse_args(arguments)
    if unknown := set(parsed.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    return parsed


def _kept(path: Path, names: Collection[str]) -> list[list[str]]:
    """The rows of an earlier run's file, but for those of the named benchmarks."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        _, *rows = csv.reader(file, dialect="excel-tab")
    return [row for row in rows if row[COLUMNS.index("benchmark")] not in names]


def main(arguments: Sequence[str]) -> None:
    options = _parse(arguments)
    names = options.names or list(BENCHMARKS)
    kept = _kept(options.output, names)
    same = (__version__, _commit(), _machine(), " ".join(["python -m benchmarks", *arguments]))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = csv.writer(file, dialect="excel-tab", lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(kept)
        for name in names:
            for found in BENCHMARKS[name](options):
                print(f"{name}: {found.case}: {found.metric} {found.value:.4g} {found.unit}")
                value = f"{found.value:.6g}"
                writer.writerow((*same, name, found.case, found.metric, value, found.unit))
    print(f"Written: {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
