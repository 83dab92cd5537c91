"""Compiled kernels in a directory: one file for each, of any content under any name.

A cache never fails: what cannot be read, is not whole or cannot be written is as if it were not there.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from uuid import uuid4

DIGEST_BYTES = sha256().digest_size


def read(directory: Path, name: str) -> bytes | None:
    """What was written under a name, if it is there and whole."""
    try:
        content = (directory / name).read_bytes()
    except OSError:
        return None
    code, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    return code if sha256(code).digest() == digest else None


def write(directory: Path, name: str, code: bytes) -> bool:
    """Writes all or nothing, also where several processes do so at once; says whether it did."""
    part = directory / f"{name}.{uuid4().hex}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        part.write_bytes(code + sha256(code).digest())
        part.replace(directory / name)
    except OSError:
        _remove(part)
        return False
    return True


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
