"""Errors as answers: one table from exception to status, one JSON shape for all of them."""

from __future__ import annotations

import errno
import re
import sqlite3
from http import HTTPStatus
from typing import Any

import psycopg
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path

from acorn_svc.api.caching import CROSS_ORIGIN
from acorn_svc.errors import (
    AcornError,
    BadInput,
    BadRequest,
    ChecksumMismatch,
    Conflict,
    Forbidden,
    HeaderTooLarge,
    InsufficientStorage,
    Misdirected,
    NotFound,
    OtherVersion,
    TooManyBytes,
    TooManyRequests,
    TooSlow,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
    WrongOffset,
)

# The nearest class above an exception decides.
STATUS: dict[type[AcornError], int] = {
    BadRequest: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    TooSlow: 408,
    Conflict: 409,
    TooManyBytes: 413,
    UnsupportedMedia: 415,
    Misdirected: 421,
    BadInput: 422,
    TooManyRequests: 429,
    HeaderTooLarge: 431,
    ChecksumMismatch: 460,  # as tus has it
    AcornError: 500,
    Unavailable: 503,
    InsufficientStorage: 507,
}
# Errors that come from the web framework, not from us.
CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
MESSAGES = {
    400: "The request cannot be understood.",
    404: "There is nothing at this address.",
    405: "This address doesn't take this method.",
}

LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
# A disk that is full may also say that it cannot be read, or that no file can be opened.
DISK_TROUBLE = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)

NOT_KEPT = "no-store"
# In a path, the version of a scene, after its id.
VERSION = re.compile("(/[0-9a-z]{26})-[0-9]+")

log = structlog.get_logger()


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str = Field(description="A stable name for programs.", examples=["limit_exceeded"])
    message: str = Field(
        description="A sentence for people.",
        examples=["The image has 2500000000 pixels; at most 256000000 are allowed."],
    )
    limit: str | None = Field(None, description="The limit that was met.", examples=["max_image_pixels"])
    value: int | float | None = Field(None, description="What that limit allows.", examples=[256_000_000])


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


DESCRIPTIONS = {
    400: "A parameter cannot be understood.",
    401: "This needs a key, or a newer one.",
    403: "The key isn't enough for this.",
    404: "There is nothing with this id, or it has nothing to show yet.",
    408: "The request arrives too slowly.",
    409: "The state of the scene or upload doesn't allow this.",
    412: "This version of tus isn't spoken here; `Tus-Version` says which is.",
    413: "The body is too large.",
    415: "The file is of a kind that Acorn doesn't read.",
    416: "The range lies outside the file.",
    421: "The service doesn't go by this name.",
    422: "The data cannot be used, or is larger than a limit allows.",
    429: "This key has as many jobs, or unfinished uploads, as it may have.",
    431: "The header is too large.",
    460: "The bytes of this request aren't those of its checksum; none were taken.",
    503: "Too busy; `Retry-After` says when to ask again.",
    507: "There is no room left.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors."""
    return {status: {"model": ErrorBody, "description": DESCRIPTIONS[status]} for status in statuses}


def install(app: FastAPI) -> None:
    """Let `app` answer every error in the one shape."""
    app.add_exception_handler(AcornError, _acorn_error)
    app.add_exception_handler(OtherVersion, _other_version)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(OSError, _storage_error)
    app.add_exception_handler(OperationalError, _storage_error)
    app.add_exception_handler(PoolTimeout, _storage_error)
    app.add_exception_handler(Exception, _unexpected)


def status_of(error: AcornError) -> int:
    """The HTTP status of an error: that of the nearest class in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def answer(error: AcornError) -> JSONResponse:
    """The answer that says `error`."""
    return _answer(
        status_of(error), error.code, error.message, error.limit, error.value, headers=_headers_of(error)
    )


def _headers_of(error: AcornError) -> dict[str, str]:
    if isinstance(error, Unavailable):
        return {"Retry-After": str(error.retry_after)}
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": 'Bearer realm="acorn"'}
    if isinstance(error, WrongOffset):
        return {"Upload-Offset": str(error.offset)}
    return {}


def _answer(
    status: int,
    code: str,
    message: str,
    limit: str | None = None,
    value: int | float | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    detail = ErrorDetail(code=code, message=message, limit=limit, value=value)
    content = ErrorBody(error=detail).model_dump()
    return JSONResponse(content, status, {"Cache-Control": NOT_KEPT, **CROSS_ORIGIN, **(headers or {})})


async def _acorn_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AcornError)
    return answer(error)


async def _other_version(request: Request, _error: Exception) -> RedirectResponse:
    """Lead to the same of the version that there is now: to the address without a version."""
    path, query = request.scope["path"], request.url.query
    address = VERSION.sub(r"\1", path, count=1) + (f"?{query}" if query else "")
    return RedirectResponse(address, headers={"Cache-Control": NOT_KEPT, **CROSS_ORIGIN})


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _answer(422, BadInput.code, describe_invalid(error.errors()))


def describe_invalid(errors: Any) -> str:
    """One sentence for the first of pydantic's complaints; it never repeats what was sent."""
    first = errors[0]
    # The first part says where: query, path, body; a name that the client made up is not repeated.
    names = [str(part) for part in first["loc"][1:] if isinstance(part, str | int)]
    if first["type"] == "json_invalid":
        return "The body isn't valid JSON."
    if first["type"] == "extra_forbidden":
        return "The request has a parameter that isn't known here."
    message = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    return f"{'.'.join(names) or 'The request'}: {message}."


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, AcornError):
        return answer(error.__cause__)
    status = error.status_code
    headers = dict(error.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    code = CODES.get(status, HTTPStatus(status).phrase.lower().replace(" ", "_"))
    message = MESSAGES.get(status, str(error.detail))
    return _answer(status, code, message, headers=headers)


def _methods(request: Request) -> set[str]:
    """Every method that the address takes; a single route knows only its own."""
    path = get_route_path(request.scope)
    return {
        method
        for route in iter_route_contexts(request.app.routes)
        if route.path is not None and compile_path(route.path)[0].match(path)
        for method in route.methods or ()
    }


async def _left(_request: Request, _error: Exception) -> JSONResponse:
    # Nobody is there to read it.
    return _answer(400, BadRequest.code, "The request broke off.")


async def _storage_error(request: Request, error: Exception) -> JSONResponse:
    known = of_storage(error)
    return answer(known) if known is not None else await _unexpected(request, error)


def of_storage(error: Exception) -> AcornError | None:
    """What an error of the disk or of the database means, if it is one that may happen."""
    if _disk_is_full(error):
        return InsufficientStorage("The disk is full.")
    if isinstance(error, PoolTimeout) or (isinstance(error, OperationalError) and _will_pass(error)):
        return Unavailable("The database is busy or cannot be reached; try again.", retry_after=1)
    return None


def _disk_is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OperationalError):
        return isinstance(error.orig, psycopg.errors.DiskFull) or _code_of(error) == sqlite3.SQLITE_FULL
    return False


def _will_pass(error: OperationalError) -> bool:
    """Whether someone else holds a lock, the disk gives no answer, or PostgreSQL cannot be reached."""
    if _code_of(error) in DISK_TROUBLE:
        log.warning("the database cannot be read or written", error=str(error.orig))
        return True
    return isinstance(error.orig, psycopg.OperationalError) or _code_of(error) in LOCKED


def _code_of(error: OperationalError) -> int | None:
    """What SQLite says is wrong, without the details that the higher bits hold."""
    code: int | None = getattr(error.orig, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected error", method=request.method, path=request.url.path, exc_info=error)
    # Made outside of what adds the id to all other answers.
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    headers = {"X-Request-ID": request_id} if request_id else {}
    message = "Something went wrong in the service; it was written down."
    return _answer(500, "internal", message, headers=headers)
