"""Stored files as answers: whole or one range, with validators, never shown inline."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from acorn_svc.api.caching import has_already, headers_for
from acorn_svc.errors import Unavailable

# Ranges of several parts cost more than they are worth; a longer header is not looked at.
ONE_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})|bytes=-(\d{1,18})")
MEDIA_TYPE = "application/octet-stream"
CHUNK_BYTES = 256 * 1024


def file_response(request: Request, find: Callable[[], Path], name: str, etag: str) -> Response:
    """The file that `find` gives as a download called `name`: 200, 206 for one range, 304, or 416."""
    headers = headers_for(etag, "no-cache")
    if has_already(request, etag):
        return Response(status_code=304, headers=headers)
    try:
        file = find().open("rb")
    except FileNotFoundError:
        raise Unavailable("This scene has just changed; ask again.", retry_after=1) from None
    try:
        facts = os.fstat(file.fileno())
        headers["Last-Modified"] = formatdate(facts.st_mtime, usegmt=True)
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
        part = _part(request, headers, facts.st_size)
    except BaseException:
        file.close()
        raise
    return _Download(file, part, headers, facts.st_size, only_header=request.method == "HEAD")


class _Part(NamedTuple):
    """Some bytes of a file, as in `range`; whether that is what was asked for."""

    start: int
    stop: int
    is_asked_for: bool


def _part(request: Request, headers: dict[str, str], size: int) -> _Part:
    """What is to be sent of a file with these `headers`; raises 416 for what lies outside.

    All of it, unless one plain range of it is asked for: `If-Range` says which file the client knows.
    """
    match = ONE_RANGE.fullmatch(request.headers.get("range", ""))
    known = request.headers.get("if-range")
    is_of_another = known is not None and known not in (headers["ETag"], headers["Last-Modified"])
    if match is None or is_of_another or (match[2] and int(match[2]) < int(match[1])):
        return _Part(0, size, is_asked_for=False)
    start = int(match[1]) if match[1] else size - min(int(match[3]), size)
    if start >= size:
        raise HTTPException(416, "The range lies outside the file.", {"Content-Range": f"bytes */{size}"})
    return _Part(start, min(int(match[2]) + 1, size) if match[2] else size, is_asked_for=True)


class _Download(StreamingResponse):
    """Part of a file that is open: it comes to its end also when the file is removed meanwhile."""

    def __init__(
        self, file: BinaryIO, part: _Part, headers: dict[str, str], size: int, *, only_header: bool
    ) -> None:
        length = part.stop - part.start
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Length": str(length)}
        if part.is_asked_for:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
        content = () if only_header else _chunks(file, part.start, length)
        status = 206 if part.is_asked_for else 200
        super().__init__(content, status, headers, MEDIA_TYPE)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        with self._file:
            await super().__call__(scope, receive, send)


def _chunks(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    file.seek(start)
    while chunk := file.read(min(CHUNK_BYTES, length)):
        length -= len(chunk)
        yield chunk
