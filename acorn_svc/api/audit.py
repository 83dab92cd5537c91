"""The audit log: who changed what, and when."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from acorn_svc.api.errors import documented
from acorn_svc.store.audit import AuditLog

MAX_PAGE = 1000

router = APIRouter(tags=["Access"])


class Entry(BaseModel):
    """One thing that somebody did, or tried to do."""

    id: int
    at: datetime
    caller: str = Field(
        description="`key:` and its id, `user:` and their name at the proxy, `local` where there is no key, "
        "or `command line`.",
        examples=["key:4m1xk7a0vq2c"],
    )
    name: str = Field(description="What people call them.")
    action: str = Field(examples=["DELETE /scenes/{id}"])
    target: str | None = Field(description="The id of the scene, the upload or the key.")
    address: str | None = Field(description="Where the request came from.")
    status: int = Field(description="Of the answer: from 400 on, nothing was done.")


class EntryList(BaseModel):
    """Some entries, newest first."""

    items: list[Entry]
    next: int | None = Field(description="The `cursor` that continues the list; null at its end.")


@router.get("/audit", summary="Read the audit log", responses=documented(401, 403))
def read_audit_log(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="At most this many.")] = 100,
    cursor: Annotated[int | None, Query(ge=1, le=2**62, description="`next` of the page before.")] = None,
) -> EntryList:
    """What was changed, or was to be, newest first. Follow `next` for older entries."""
    log: AuditLog = request.app.state.audit
    found = log.newest(limit + 1, cursor)
    items = [Entry.model_validate(entry, from_attributes=True) for entry in found[:limit]]
    return EntryList(items=items, next=items[-1].id if len(found) > limit else None)
