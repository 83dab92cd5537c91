"""Bytes that arrive: counted and digested while they come, written to the disk, never decoded here."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from anyio.lowlevel import checkpoint
from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from acorn_svc.api.intake import Intake
from acorn_svc.errors import BadRequest, DigestMismatch, TooManyBytes
from acorn_svc.settings import Settings
from acorn_svc.store.blobs import Blobs, sha256_of
from acorn_svc.store.scenes import SceneStore

MULTIPART: Final = "multipart/form-data"
MAX_FIELDS: Final = 32
MAX_FIELD_BYTES: Final = 64 * 1024
PIECE_BYTES: Final = 1024 * 1024
PIECE_SECONDS: Final = 1.0
"""So much, or for so long, is gathered before it is written: threads are not free."""
PARSED_BYTES: Final = 64 * 1024
"""So much of a form is parsed at once: 10 ms of the event loop, where all of it is like boundaries."""
DIGEST_HEADERS: Final = ("content-digest", "repr-digest")
SHA256: Final = re.compile(r"sha-256\s*=\s*:([^:]*):")
RequireRoom = Callable[[int], None]


@dataclass(frozen=True)
class Received:
    """An upload that has arrived: its SHA-256 in hexadecimal, and the other fields of its form."""

    sha256: str
    fields: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def spooled(blobs: Blobs) -> Iterator[Path]:
    """A file of the spool that is gone afterwards, unless it was published."""
    path = blobs.spool_file()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


async def receive(
    request: Request, path: Path, store: SceneStore, settings: Settings, intake: Intake
) -> Received:
    """Write the upload of `request` to `path`.

    Raises TooManyBytes as soon as it is known, InsufficientStorage before the disk is full,
    DigestMismatch, and BadRequest for a multipart body or a digest that cannot be read.
    """
    announced = announced_bytes(request)
    if announced > settings.max_upload_bytes:
        raise too_many_bytes(settings.max_upload_bytes)
    await intake.write(partial(store.require_room, announced))
    wanted = announced_digests(request.headers, *DIGEST_HEADERS)
    body = _counted(request, settings.max_upload_bytes)

    if request.headers.get("content-type", "").lower().startswith(MULTIPART):
        return await _receive_form(request, body, wanted, path, store.require_disk, intake)
    sha256 = await _write(body, path, store.require_disk, intake)
    _require_digests(wanted, sha256)
    return Received(sha256)


def announced_bytes(request: Request) -> int:
    """What Content-Length says, or 0."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else 0


def announced_digests(headers: Headers, *names: str) -> set[str]:
    """The SHA-256 in those headers `names` (RFC 9530) that are there, in hexadecimal.

    Raises BadRequest for one that cannot be read, and where there are only others, which are not checked.
    """
    values = [", ".join(headers.getlist(name)) for name in names if name in headers]
    return {_sha256_of(value) for value in values}


def _sha256_of(value: str) -> str:
    for member in value.split(","):
        if match := SHA256.fullmatch(member.strip()):
            return decode_base64(match[1], hashlib.sha256().digest_size).hex()
    raise BadRequest("The digest isn't one of the form sha-256=:...:, as RFC 9530 has it.")


def decode_base64(text: str, size: int | None = None) -> bytes:
    """The bytes that `text` stands for; raises BadRequest when there are none, or not `size`."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("A header holds something that isn't Base64.") from None
    if size is not None and len(content) != size:
        raise BadRequest(f"A digest has {len(content)} bytes instead of {size}.")
    return content


def _require_digests(wanted: set[str], sha256: str) -> None:
    if wanted - {sha256}:
        raise DigestMismatch("Other bytes have arrived than the digest that was sent with them is of.")


async def pieces(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The same bytes in larger pieces; when they break off, those that came are told before that is.

    Those of a slow client are smaller, so that few seconds of it are ever in memory alone.
    """
    gathered = bytearray()
    end = time.monotonic() + PIECE_SECONDS
    try:
        async for chunk in chunks:
            gathered += chunk
            if len(gathered) >= PIECE_BYTES or time.monotonic() > end:
                yield bytes(gathered)
                gathered.clear()
                end = time.monotonic() + PIECE_SECONDS
    except Exception:
        if gathered:
            yield bytes(gathered)
        raise
    if gathered:
        yield bytes(gathered)


async def _counted(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    count = 0
    async for chunk in request.stream():
        count += len(chunk)
        if count > limit:
            raise too_many_bytes(limit)
        yield chunk


def too_many_bytes(limit: int) -> TooManyBytes:
    """The error that an upload has more bytes than `max_upload_bytes` allows."""
    message = f"The upload is larger than {limit} bytes."
    return TooManyBytes(message, limit="max_upload_bytes", value=limit)


async def _write(body: AsyncIterator[bytes], path: Path, require_room: RequireRoom, intake: Intake) -> str:
    """Write `body` to `path`; returns its SHA-256 in hexadecimal."""
    sha256 = hashlib.sha256()

    def write(piece: bytes) -> None:
        require_room(len(piece))
        file.write(piece)
        sha256.update(piece)

    with path.open("wb") as file:
        async for piece in pieces(body):
            await intake.write(partial(write, piece))
    return sha256.hexdigest()


async def _receive_form(
    request: Request,
    body: AsyncGenerator[bytes, None],
    wanted: set[str],
    path: Path,
    require_room: RequireRoom,
    intake: Intake,
) -> Received:
    """Read a form and write its file to `path`; `wanted` are digests of the whole form."""
    whole = hashlib.sha256()
    body = _with_room(body, require_room, intake)
    parser = FormParser(request.headers, _digested(body, whole) if wanted else body, path)
    try:
        form = await parser.parse()
    except MultiPartException:
        raise BadRequest("The multipart body cannot be read.") from None
    await form.close()  # from here on all of the file can be read
    _require_digests(wanted, whole.hexdigest())
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise BadRequest("The multipart body has no file in a field named `file`.")
    sha256 = await intake.write(partial(sha256_of, path))
    _require_digests(announced_digests(file.headers, *DIGEST_HEADERS), sha256)
    return Received(sha256, {name: value for name, value in form.items() if isinstance(value, str)})


class FormParser(MultiPartParser):
    """Writes the file of a form to `path`, where it is to be, not to one that would have to be copied."""

    def __init__(self, headers: Headers, body: AsyncGenerator[bytes, None], path: Path) -> None:
        super().__init__(headers, body, max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
        self._path = path

    def on_part_begin(self) -> None:
        """Called before each part. All are UTF-8 (RFC 7578), whatever codec the header of the form names."""
        super().on_part_begin()
        self._charset = "utf-8"

    def on_headers_finished(self) -> None:
        """Called before the content of each part."""
        super().on_headers_finished()
        upload = self._current_part.file
        if upload is not None:
            upload.file.close()
            upload.file = self._path.open("wb")
            self._files_to_close_on_error.append(upload.file)  # type: ignore[arg-type]


async def _digested(body: AsyncIterator[bytes], whole: hashlib._Hash) -> AsyncGenerator[bytes, None]:
    async for chunk in body:
        whole.update(chunk)
        yield chunk


async def _with_room(
    body: AsyncIterator[bytes], require_room: RequireRoom, intake: Intake
) -> AsyncGenerator[bytes, None]:
    """The same bytes as long as there is room for them, and so few at once that others have their turn."""
    async for piece in pieces(body):
        await intake.write(partial(require_room, len(piece)))
        for start in range(0, len(piece), PARSED_BYTES):
            yield piece[start : start + PARSED_BYTES]
            await checkpoint()
