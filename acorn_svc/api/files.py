"""Stored files as answers: whole or one range, with validators, never shown inline."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from fastapi import Request, Response
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from acorn_svc.api.caching import has_already, headers_for
from acorn_svc.errors import Unavailable

# Ranges of several parts cost more than they are worth; a longer header is not looked at.
ONE_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})|bytes=-(\d{1,18})")
MEDIA_TYPE = "application/octet-stream"


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
        response = _OpenFile(file, headers, name)
        _keep_one_range(request, response.headers)
    except BaseException:
        file.close()
        raise
    return response


class _OpenFile(FileResponse):
    """A download of all of a file that is open, also when the file is removed meanwhile."""

    def __init__(self, file: BinaryIO, headers: dict[str, str], name: str) -> None:
        facts = os.fstat(file.fileno())
        path = f"/dev/fd/{file.fileno()}"
        super().__init__(path, headers=headers, media_type=MEDIA_TYPE, filename=name, stat_result=facts)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        with self._file:
            await super().__call__(scope, receive, send)


def _keep_one_range(request: Request, of_file: Mapping[str, str]) -> None:
    """Forget a Range that isn't one plain range, or of another file; raises 416 when it lies outside.

    `of_file` are the headers of the answer with the whole file.
    """
    wanted = request.headers.get("range")
    if wanted is None:
        return
    match = ONE_RANGE.fullmatch(wanted)
    if match is None or (match[2] and int(match[2]) < int(match[1])) or not _is_of(request, of_file):
        kept = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
        request.scope["headers"] = kept
        return
    size = of_file["content-length"]
    if (match[1] and int(match[1]) >= int(size)) or match[3] == "0":
        raise HTTPException(416, "The range lies outside the file.", {"Content-Range": f"bytes */{size}"})


def _is_of(request: Request, of_file: Mapping[str, str]) -> bool:
    """Whether a range is of the file that the client has begun to read (`If-Range`), if it says so."""
    known = request.headers.get("if-range")
    return known is None or known in (of_file["etag"], of_file["last-modified"])
