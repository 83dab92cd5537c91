"""A tus client for tests, which keeps to the protocol unless told otherwise."""

from __future__ import annotations

import base64
import contextlib
import socket
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2

TUS = {"Tus-Resumable": "1.0.0"}
PART = {**TUS, "Content-Type": "application/offset+octet-stream"}


def labels(**pairs: str) -> str:
    """An Upload-Metadata."""
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items())


def address(answer: httpx2.Response) -> str:
    """Where the upload is that was begun."""
    return urljoin(str(answer.url), answer.headers["location"])


class Tus:
    """Uploads by tus; underscores in names of headers stand for dashes."""

    def __init__(self, client: httpx2.Client) -> None:
        self.client = client

    def begin(self, length: int, content: bytes = b"", **headers: str) -> httpx2.Response:
        kind = PART if content else TUS
        headers = {**kind, "Upload-Length": str(length), **_dashed(headers)}
        return self.client.post("/uploads", content=content, headers=headers)

    def new(self, length: int, **headers: str) -> str:
        answer = self.begin(length, **headers)
        assert answer.status_code == 201, answer.text
        return address(answer)

    def append(self, path: str, offset: int, content: bytes, **headers: str) -> httpx2.Response:
        headers = {**PART, "Upload-Offset": str(offset), **_dashed(headers)}
        return self.client.patch(path, content=content, headers=headers)

    def append_and_leave(self, path: str, offset: int, content: bytes) -> None:
        """Announce all of `content`, send half of it, and hang up."""
        url = urlsplit(path)
        head = f"PATCH {url.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in PART.items())
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection((url.hostname, url.port)) as connection,
        ):
            connection.sendall(f"{head}Upload-Offset: {offset}\r\n\r\n".encode())
            connection.sendall(content[: len(content) // 2])

    def offset(self, path: str) -> int:
        answer = self.client.head(path, headers=TUS)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        return int(answer.headers["upload-offset"])

    def outcome(self, path: str) -> dict[str, Any]:
        return dict(self.client.get(path).json())


def _dashed(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
