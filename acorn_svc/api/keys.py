"""API keys: make, list, revoke."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from acorn_svc.api.callers import CallersDep
from acorn_svc.api.errors import documented
from acorn_svc.store.database import PLAIN_TEXT
from acorn_svc.store.keys import Key, KeyStore, Scope

LONGEST_SECONDS = 100 * 366 * 86_400

router = APIRouter(tags=["Access"])


class KeyIn(BaseModel):
    """What is to be known of a new key."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        min_length=1,
        max_length=100,
        pattern=PLAIN_TEXT,
        description="Who or what it is for.",
        examples=["camera"],
    )
    scope: Scope = Field(
        description="read: see everything. write: also upload, and change what was made with this key. "
        "admin: also everything else."
    )
    expires_in: int | None = Field(
        None,
        strict=True,
        ge=1,
        le=LONGEST_SECONDS,
        description="Seconds until it counts no more; null for never.",
    )


class KeyOut(BaseModel):
    """What is known of a key."""

    id: str = Field(examples=["4m1xk7a0vq2c"])
    name: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None = Field(description="When it was last used, to the hour.")


class NewKey(KeyOut):
    """A key that has just been made."""

    key: str = Field(description="The key itself. It is told now and never again.")


class KeyList(BaseModel):
    """Every key there ever was, oldest first."""

    items: list[KeyOut]


async def get_keys(request: Request) -> KeyStore:
    """The keys of this application."""
    keys: KeyStore = request.app.state.keys
    return keys


KeysDep = Annotated[KeyStore, Depends(get_keys)]


@router.get("/keys", summary="List keys", responses=documented(401, 403))
def list_keys(keys: KeysDep) -> KeyList:
    """All keys, also those that have expired or were revoked, but never the keys themselves."""
    return KeyList(items=[KeyOut.model_validate(key, from_attributes=True) for key in keys.all()])


@router.post("/keys", status_code=201, summary="Make a key", responses=documented(400, 401, 403, 413, 422))
async def create_key(wanted: KeyIn, keys: KeysDep, callers: CallersDep) -> NewKey:
    """From the first key on, every request but for public scenes needs one."""
    lifetime = None if wanted.expires_in is None else timedelta(seconds=wanted.expires_in)
    key, text = await run_sync(lambda: keys.create(wanted.name, wanted.scope, lifetime))
    callers.ring.forget()
    return NewKey.model_validate({**_facts(key), "key": text})


@router.delete(
    "/keys/{id}", status_code=204, summary="Revoke a key", responses=documented(401, 403, 404, 409)
)
async def revoke_key(
    id: Annotated[str, Path(description="The key's id.")], keys: KeysDep, callers: CallersDep
) -> None:
    """From now on the key opens nothing, nor does a session that was begun with it."""
    await run_sync(lambda: keys.revoke(id))
    callers.ring.forget()


def _facts(key: Key) -> dict[str, object]:
    return {name: getattr(key, name) for name in KeyOut.model_fields}
