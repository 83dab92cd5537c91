"""Bytes that arrive: counted while they come, written to the spool, never decoded here."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from acorn_svc.errors import BadRequest, TooManyBytes
from acorn_svc.settings import Settings
from acorn_svc.store.blobs import Blobs

MULTIPART = "multipart/form-data"
MAX_FIELDS = 32
MAX_FIELD_BYTES = 64 * 1024


@contextmanager
def spooled(blobs: Blobs) -> Iterator[Path]:
    """A file of the spool that is gone afterwards, unless it was published."""
    path = blobs.spool_file()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


async def receive(request: Request, path: Path, blobs: Blobs, settings: Settings) -> dict[str, str]:
    """Write the upload of `request` to `path`; returns the other fields of a multipart body.

    Raises TooManyBytes as soon as it is known, InsufficientStorage before the disk is full, and
    BadRequest for a multipart body that cannot be read.
    """
    limit = settings.max_upload_bytes
    announced = _announced_bytes(request)
    if announced > limit:
        raise _too_many(limit)
    blobs.require_room(announced, settings.min_free_disk_bytes)
    if request.headers.get("content-type", "").lower().startswith(MULTIPART):
        return await _receive_form(request, path, limit)
    async with await anyio.open_file(path, "wb") as file:
        async for chunk in _counted(request, limit):
            await file.write(chunk)
    return {}


def _announced_bytes(request: Request) -> int:
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else 0


async def _counted(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    count = 0
    async for chunk in request.stream():
        count += len(chunk)
        if count > limit:
            raise _too_many(limit)
        yield chunk


def _too_many(limit: int) -> TooManyBytes:
    message = f"The upload is larger than {limit} bytes."
    return TooManyBytes(message, limit="max_upload_bytes", value=limit)


async def _receive_form(request: Request, path: Path, limit: int) -> dict[str, str]:
    parser = MultiPartParser(
        request.headers,
        _counted(request, limit),
        max_files=1,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException:
        raise BadRequest("The multipart body cannot be read.") from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise BadRequest("The multipart body has no file in a field named `file`.")
        await anyio.to_thread.run_sync(_copy, file, path)
        return {name: value for name, value in form.items() if isinstance(value, str)}
    finally:
        await form.close()


def _copy(file: UploadFile, path: Path) -> None:
    with path.open("wb") as target:
        shutil.copyfileobj(file.file, target)
