"""Stored files as answers: whole or one range, with validators, never shown inline."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
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
        _keep_one_range(request, os.fstat(file.fileno()).st_size)
        return _OpenFile(file, headers, name)
    except BaseException:
        file.close()
        raise


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


def _keep_one_range(request: Request, size: int) -> None:
    """Forget a Range header that isn't one plain range; raises 416 when it lies outside."""
    wanted = request.headers.get("range")
    if wanted is None:
        return
    match = ONE_RANGE.fullmatch(wanted.replace(" ", ""))
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        kept = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
        request.scope["headers"] = kept
    elif (match[1] and int(match[1]) >= size) or match[3] == "0":
        content_range = {"Content-Range": f"bytes */{size}"}
        raise HTTPException(416, "The range lies outside the file.", content_range)
