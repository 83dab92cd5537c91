"""Uploads that go on where they broke off: the tus protocol, 1.0.0, at `/uploads`.

    POST ─▶ PATCH, PATCH, ... ─▶ the last byte ─▶ checked ─▶ a scene, or an error
             └─ broke off ─▶ HEAD says where to go on           └─ told by PATCH, HEAD and GET

Why no library does this is said in docs/design/0004-uploads.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import MutableMapping
from contextlib import suppress
from datetime import datetime
from email.utils import format_datetime
from functools import partial
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import anyio
import structlog
from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from acorn_svc.api.callers import CallerDep
from acorn_svc.api.dependencies import SettingsDep, UploadsDep
from acorn_svc.api.errors import ErrorDetail, documented
from acorn_svc.api.intake import Intake, IntakeDep
from acorn_svc.api.scenes import BaseDep, SceneOptions, new_scene, with_fields
from acorn_svc.api.uploads import announced_bytes, announced_digests, decode_base64, pieces, too_many_bytes
from acorn_svc.errors import (
    BadInput,
    BadRequest,
    ChecksumMismatch,
    Conflict,
    InsufficientStorage,
    NotFound,
    TooManyRequests,
    Unavailable,
    UnsupportedMedia,
)
from acorn_svc.store.uploads import Also, Upload, UploadStore, Writer

if TYPE_CHECKING:
    from hashlib import _Hash

    Check = tuple[_Hash, bytes]

VERSION: Final = "1.0.0"
EXTENSIONS: Final = "creation,creation-with-upload,expiration,checksum,termination"
CHECKSUMS: Final = {"sha1": hashlib.sha1, "sha256": hashlib.sha256}
MEDIA_TYPE: Final = "application/offset+octet-stream"
MOST_BYTES: Final = 2**53 - 1
CARE_SECONDS: Final = 30
"""Time between two looks at what was left over."""

log = structlog.get_logger()


class TusRoute(APIRoute):
    """A route that speaks tus: it names the version in every answer, and knows disguised methods."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Let X-HTTP-Method-Override say the method, for clients that cannot send every one."""
        disguised = _header(scope, b"x-http-method-override")
        if not disguised:
            return super().matches(scope)
        method = {"method": disguised.upper()}
        match, found = super().matches({**scope, **method})
        return match, {**found, **method}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and name the version."""

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"tus-resumable", VERSION.encode())]
            await send(message)

        await super().handle(scope, receive, named)


def _header(scope: MutableMapping[str, Any], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope.get("headers", ()) if key == name), "")


async def require_version(request: Request) -> None:
    """Refuse clients that speak another version of tus, or none."""
    if request.headers.get("tus-resumable") != VERSION:
        raise HTTPException(412, f"Tus-Resumable must be {VERSION}.", {"Tus-Version": VERSION})


SPOKEN: Final = {
    "parameters": [
        {
            "name": "Tus-Resumable",
            "in": "header",
            "required": True,
            "schema": {"const": VERSION, "type": "string"},
        }
    ]
}
PART: Final = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
IN_TUS: Final = [Depends(require_version)]

UploadId = Annotated[str, Path(description="The upload's id.", examples=["01jd3x7k5v9m2q4r8t6w0y1z3b"])]
Bytes = Annotated[int, Header(ge=0, le=MOST_BYTES)]
Labels = Annotated[
    str, Header(description="The options of the scene, as tus writes such pairs.", max_length=16_384)
]
Checksum = Annotated[
    str | None,
    Header(description="`sha256` or `sha1`, a space, and the digest of this part in Base64.", max_length=200),
]
router = APIRouter(tags=["Uploads"], route_class=TusRoute)


class UploadOut(BaseModel):
    """One upload, and what came of it."""

    id: str = Field(examples=["01jd3x7k5v9m2q4r8t6w0y1z3b"])
    status: Literal["receiving", "checking", "done", "failed"]
    offset: int = Field(description="So many bytes have arrived for good.")
    length: int = Field(description="So many bytes there are in all.")
    expires_at: datetime = Field(description="When it is forgotten; bytes that arrive put that off.")
    scene_id: str | None = Field(description="The scene that was made, once it is done.")
    scene: str | None = Field(description="Where that scene is, as an absolute URL.")
    error: ErrorDetail | None = Field(description="Why no scene could be made, when it failed.")


@router.options("/uploads", status_code=204, response_class=Response, summary="Ask what of tus is spoken")
async def describe_uploads(settings: SettingsDep) -> Response:
    """The version, the extensions and the largest upload, in headers."""
    headers = {
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(settings.max_upload_bytes),
        "Tus-Checksum-Algorithm": ",".join(CHECKSUMS),
    }
    return Response(status_code=204, headers=headers)


@router.post(
    "/uploads",
    status_code=201,
    response_class=Response,
    summary="Begin an upload",
    responses=documented(400, 401, 403, 412, 413, 415, 422, 429, 460, 503, 507),
    dependencies=IN_TUS,
    openapi_extra={**SPOKEN, "requestBody": {"content": PART}},
)
async def begin_upload(
    request: Request,
    uploads: UploadsDep,
    intake: IntakeDep,
    settings: SettingsDep,
    base: BaseDep,
    caller: CallerDep,
    upload_length: Bytes,
    upload_metadata: Labels = "",
    upload_checksum: Checksum = None,
) -> Response:
    """`Upload-Length` is the size of the whole file. The answer's `Location` is where to send it.

    `Upload-Metadata` holds the options of `POST /scenes`; other keys are kept, but mean nothing. A
    `Repr-Digest` with a `sha-256` is checked once the whole file has come. The first part of the file may
    come with this request, as by PATCH.
    """
    most = settings.max_upload_bytes
    if upload_length > most:
        raise too_many_bytes(most)
    options = _options_in(upload_metadata).decided(settings).model_dump(exclude_unset=True)
    digest = next(iter(announced_digests(request.headers, "repr-digest")), None)
    checks = _checks(request, upload_checksum)
    has_part = _has_body(request)
    if has_part:
        _require_part(request)
    upload = await intake.write(
        partial(uploads.create, upload_length, upload_metadata, options, digest, caller.owner),
    )
    if has_part or upload.is_complete:
        try:
            upload = await _take(request, checks, upload.id, 0, uploads, intake)
        except Exception:
            # The client doesn't learn where it is, and will begin anew: also when it has just left.
            await intake.write(partial(uploads.delete, upload.id))
            raise
    # Relative, so that it holds behind every proxy.
    headers = {"Location": f"uploads/{upload.id}", **_headers(upload, uploads, base)}
    return Response(status_code=201, headers=headers)


@router.patch(
    "/uploads/{id}",
    status_code=204,
    response_class=Response,
    summary="Append to an upload",
    responses=documented(400, 401, 403, 404, 409, 412, 413, 415, 422, 429, 460, 503, 507),
    dependencies=IN_TUS,
    openapi_extra={**SPOKEN, "requestBody": {"content": PART, "required": True}},
)
async def append_to_upload(
    id: UploadId,
    request: Request,
    uploads: UploadsDep,
    intake: IntakeDep,
    base: BaseDep,
    upload_offset: Bytes,
    upload_checksum: Checksum = None,
) -> Response:
    """`Upload-Offset` is where the body goes on; if the upload stands elsewhere, 409 says where.

    What the answer's `Upload-Offset` counts is on the disk. When a request breaks off, all that came of it
    counts, unless it has a checksum. Of two requests the newer one wins, if it begins where the older has
    come to, and the older is answered 409.

    After the last byte the file is checked as by `POST /scenes`, and the answer's `Acorn-Scene` is where the
    scene is. Whoever missed it can GET the upload.
    """
    _require_part(request)
    checks = _checks(request, upload_checksum)
    upload = await _take(request, checks, id, upload_offset, uploads, intake)
    return Response(status_code=204, headers=_headers(upload, uploads, base))


@router.head(
    "/uploads/{id}",
    response_class=Response,
    summary="Ask where an upload goes on",
    responses=documented(401, 403, 404, 412),
    dependencies=IN_TUS,
    openapi_extra=SPOKEN,
)
def find_upload(id: UploadId, uploads: UploadsDep, base: BaseDep) -> Response:
    """`Upload-Offset`, `Upload-Length` and `Upload-Metadata` in headers, for clients that speak tus."""
    uploads.settle(id)
    upload = uploads.get(id)
    headers = {**_headers(upload, uploads, base), "Upload-Length": str(upload.length)}
    if upload.labels:
        headers["Upload-Metadata"] = upload.labels
    return Response(headers=headers)


@router.get("/uploads/{id}", summary="Ask what came of an upload", responses=documented(401, 403, 404))
def get_upload(id: UploadId, response: Response, uploads: UploadsDep, base: BaseDep) -> UploadOut:
    """How much has arrived and, in the end, the scene or the error that came of it."""
    upload = uploads.get(id)
    response.headers["Cache-Control"] = "no-store"
    return UploadOut(
        id=upload.id,
        status=_status(upload),
        offset=upload.received,
        length=upload.length,
        expires_at=uploads.expires_at(upload),
        scene_id=upload.scene_id,
        scene=_scene_url(upload, base),
        error=None if upload.error is None else ErrorDetail(**upload.error),
    )


@router.delete(
    "/uploads/{id}",
    status_code=204,
    summary="Give up an upload",
    responses=documented(401, 403, 404, 412),
    dependencies=IN_TUS,
    openapi_extra=SPOKEN,
)
def delete_upload(id: UploadId, uploads: UploadsDep) -> None:
    """Forget it, with all that has arrived. A scene that was made of it stays."""
    uploads.delete(id)


async def look_after(uploads: UploadStore, intake: Intake) -> None:
    """Again and again, finish what was left over and remove what has expired; ends when cancelled."""
    while True:
        try:
            await tend(uploads, intake)
        except Exception:
            log.exception("uploads could not be looked after")
        await anyio.sleep(CARE_SECONDS)


async def tend(uploads: UploadStore, intake: Intake) -> None:
    """Finish uploads that arrived before a crash, or when there was no room for a job; remove old ones."""
    await intake.write(uploads.sweep)
    for upload_id in await intake.write(uploads.left_over):
        try:
            with suppress(BadInput, NotFound, TooManyRequests, Unavailable, InsufficientStorage):
                await _finish(upload_id, None, uploads, intake)
        except Exception:
            log.exception("an upload could not be finished", upload=upload_id)


async def _take(
    request: Request, checks: list[Check], upload_id: str, offset: int, uploads: UploadStore, intake: Intake
) -> Upload:
    """Append the body of `request` at `offset`; after the last byte, make the scene."""
    writer = await intake.write(partial(uploads.take_over, upload_id, offset, as_a_whole=bool(checks)))
    try:
        await _append(request, checks, writer, intake)
    finally:
        writer.close()
        await intake.write(writer.withdraw)
    if writer.missing == 0:
        await _finish(upload_id, writer.sha256, uploads, intake)
    upload = await intake.write(partial(uploads.get, upload_id))
    if upload.error is not None:
        raise Conflict("No scene could be made of this upload; GET it to learn why.")
    return upload


async def _append(request: Request, checks: list[Check], writer: Writer, intake: Intake) -> None:
    def write(piece: bytes) -> None:
        writer.write(piece)
        for hasher, _ in checks:
            hasher.update(piece)

    if announced_bytes(request) > writer.missing:
        raise BadRequest("There are more bytes than Upload-Length says.")
    try:
        async for piece in pieces(request.stream()):
            await intake.write(partial(write, piece))
    except (ClientDisconnect, HTTPException):
        await intake.write(writer.settle)
        raise
    if any(hasher.digest() != expected for hasher, expected in checks):
        raise ChecksumMismatch("The bytes of this request aren't those of its checksum.")
    await intake.write(writer.keep)


async def _finish(upload_id: str, sha256: str | None, uploads: UploadStore, intake: Intake) -> None:
    def make(upload: Upload, path: FilePath, sha256: str, also: Also) -> None:
        options = SceneOptions.model_validate(upload.options)
        making = partial(new_scene, options, upload.owner)
        intake.admit(path, sha256, upload.owner, making, also)

    await intake.check(partial(uploads.finish, upload_id, sha256, make))


def _checks(request: Request, checksum: str | None) -> list[Check]:
    """The digests that the body has to have, each with what computes it."""
    digests = announced_digests(request.headers, "content-digest")
    checks: list[Check] = [(hashlib.sha256(), bytes.fromhex(digest)) for digest in digests]
    if checksum is not None:
        name, _, text = checksum.partition(" ")
        if name not in CHECKSUMS:
            raise BadRequest(f"A checksum is one of {', '.join(CHECKSUMS)}.")
        hasher = CHECKSUMS[name]()
        checks.append((hasher, decode_base64(text.strip(), hasher.digest_size)))
    return checks


def _has_body(request: Request) -> bool:
    return announced_bytes(request) > 0 or "transfer-encoding" in request.headers


def _require_part(request: Request) -> None:
    if request.headers.get("content-type") != MEDIA_TYPE:
        raise UnsupportedMedia(f"A part of an upload has the type {MEDIA_TYPE}.")


def _options_in(labels: str) -> SceneOptions:
    """The options in Upload-Metadata; raises BadRequest, or says which option is wrong."""
    pairs: dict[str, str] = {}
    for pair in labels.split(",") if labels.strip() else ():
        key, _, value = pair.strip().partition(" ")
        if not key.isascii() or not key or key in pairs:
            raise BadRequest("Upload-Metadata has a key that is empty, not ASCII or there twice.")
        pairs[key] = decode_base64(value.strip()).decode(errors="replace")
    known = {name: value for name, value in pairs.items() if name in SceneOptions.model_fields}
    return with_fields(SceneOptions.model_validate({}), known)


def _headers(upload: Upload, uploads: UploadStore, base: str) -> dict[str, str]:
    headers = {"Upload-Offset": str(upload.received), "Cache-Control": "no-store"}
    if not upload.is_finished:
        headers["Upload-Expires"] = format_datetime(uploads.expires_at(upload), usegmt=True)
    scene = _scene_url(upload, base)
    return headers if scene is None else {**headers, "Acorn-Scene": scene}


def _scene_url(upload: Upload, base: str) -> str | None:
    return None if upload.scene_id is None else f"{base}scenes/{upload.scene_id}"


def _status(upload: Upload) -> Literal["receiving", "checking", "done", "failed"]:
    if upload.error is not None:
        return "failed"
    if upload.scene_id is not None:
        return "done"
    return "checking" if upload.is_complete else "receiving"
