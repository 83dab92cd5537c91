"""Answers that browsers, caches and other sites may keep: validators, lifetimes, CORS, HEAD."""

from __future__ import annotations

import hashlib
from typing import Final

from fastapi import Request, Response

PREFLIGHT_SECONDS: Final = 86_400
# On every answer, asked for or not: a cache may hand it to another site than the one that asked.
CROSS_ORIGIN: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "ETag, Link",
}
FOR_EVER: Final = "public, max-age=31536000, immutable"
READ_METHODS: Final = "GET, HEAD, OPTIONS"


def content_etag(content: bytes, media_type: str) -> str:
    """Changes with the bytes, and with what they are called."""
    digest = hashlib.blake2b(content + media_type.encode(), digest_size=16)
    return f'"{digest.hexdigest()}"'


def kept_for(seconds: int) -> str:
    """The `Cache-Control` of what anybody may keep for so long without asking again."""
    return f"public, max-age={seconds}"


def headers_for(etag: str, cache_control: str, **more: str) -> dict[str, str]:
    """What every readable answer says about itself; keyword arguments are further headers."""
    return {"ETag": etag, "Cache-Control": cache_control, **more, **CROSS_ORIGIN}


def bodiless(request: Request, media_type: str, headers: dict[str, str]) -> Response | None:
    """The answer to HEAD, or to a client that has the content already; None when it needs it."""
    if has_already(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if request.method != "HEAD":
        return None
    response = Response(media_type=media_type, headers=headers)
    # The length is only known once the content has been made.
    del response.headers["content-length"]
    return response


def has_already(request: Request, etag: str) -> bool:
    """Whether `If-None-Match` names `etag`, by the weak comparison that RFC 9110 asks for."""
    known = request.headers.get("if-none-match", "")
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in known.split(","))


def allowed(methods: str = READ_METHODS) -> Response:
    """The answer to OPTIONS, from another site's preflight or without one."""
    headers = {
        "Allow": methods,
        "Access-Control-Allow-Methods": methods,
        "Access-Control-Allow-Headers": "*",
        "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
        **CROSS_ORIGIN,
    }
    return Response(status_code=204, headers=headers)
