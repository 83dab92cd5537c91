"""Coverage-guided fuzzing of one target: `python fuzzing.py TARGET [options of libFuzzer]`.

A finding ends it with a traceback, and its input is written to where `-artifact_prefix` says; keep it in
`tests/fuzz/corpus/TARGET/`, where every run of the tests replays it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]
with atheris.instrument_imports(include=["acorn_svc"]):
    from targets import TARGETS


def main() -> None:
    """Fuzz until it is enough, or something is found."""
    name, *options = sys.argv[1:]
    target = TARGETS[name]
    # the good inputs are the first corpus
    folder = next((Path(option) for option in options if not option.startswith("-")), None)
    if folder is not None:
        for number, content in enumerate(target.good):
            (folder / f"good-{number}").write_bytes(content)
    atheris.Setup([sys.argv[0], *options], target.survive)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
