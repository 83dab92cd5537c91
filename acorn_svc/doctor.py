"""What is installed and what works here, for `acorn doctor`."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from acorn_svc.jobs import sandbox

LIBRARIES = ("torch", "numpy", "pyvips", "safetensors", "fastapi", "uvicorn", "dbos", "sqlalchemy")
WEB_BUNDLE = Path(__file__).parent / "web" / "index.html"


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        what: was looked for.
        works: whether it does.
        found: version, or what is missing.
        needed: whether Acorn fails without it.
    """

    what: str
    works: bool
    found: str
    needed: bool = True


def examine() -> Iterator[Finding]:
    """Everything that can be told without starting the service."""
    yield Finding("acorn", True, metadata.version("acorn-svc"))
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("python", True, f"{system}, {os.cpu_count()} cores")
    yield from map(_library, LIBRARIES)
    yield _libvips()
    yield from _back_ends()
    yield from _sandbox()
    yield _web_bundle()
    yield _demo_photo()


def _library(name: str) -> Finding:
    """Imports it: a library that is installed may still be broken."""
    try:
        import_module(name)
        return Finding(name, True, metadata.version(name))
    except (ImportError, OSError) as error:
        return Finding(name, False, f"{type(error).__name__}: {error}")


def _libvips() -> Finding:
    try:
        pyvips = import_module("pyvips")
    except (ImportError, OSError) as error:
        return Finding("libvips", False, f"{error}")
    return Finding("libvips", True, ".".join(str(pyvips.version(part)) for part in range(3)))


def _back_ends() -> Iterator[Finding]:
    """Which implementations of the operations can run; the plain reference is enough."""
    try:
        operations = import_module("acorn_svc.field.ops")
    except (ImportError, OSError) as error:
        yield Finding("back ends", False, f"{error}")
        return
    for name, works, reason in operations.available():
        yield Finding(f"back end {name}", works, reason or "works", needed=name == "reference")


def _sandbox() -> Iterator[Finding]:
    """What is out of reach for the process that decodes uploads."""
    holds = sandbox.holds()
    lacks = "no Landlock here: what decodes uploads can read every file that the service can"
    yield Finding("sandbox of files", holds.files, "works" if holds.files else lacks, needed=False)
    lacks = "no seccomp here: what decodes uploads can reach networks and start programs"
    yield Finding("sandbox of system calls", holds.calls, "works" if holds.calls else lacks, needed=False)


def _web_bundle() -> Finding:
    there = WEB_BUNDLE.is_file()
    found = "built" if there else "not built: `make web`; the API works without it"
    return Finding("web page", there, found, needed=False)


def _demo_photo() -> Finding:
    there = find_spec("skimage") is not None
    found = "scikit-image is installed" if there else "scikit-image is not installed"
    return Finding("photo for `acorn demo`", there, found, needed=False)
