"""Signing in on the page: a key for a cookie that scripts cannot read and other sites cannot use."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from acorn_svc.api.callers import COOKIE, Caller, CallerDep, CallersDep
from acorn_svc.api.errors import documented
from acorn_svc.store.keys import Scope

HEADERS: Final = {"Cache-Control": "no-store"}

router = APIRouter(tags=["Access"])


class SignIn(BaseModel):
    """What signs in."""

    model_config = ConfigDict(extra="forbid")

    key: SecretStr = Field(min_length=1, max_length=1000, description="The key.")


class Session(BaseModel):
    """Who asks, as far as the service knows."""

    access: Literal["open", "keys"] = Field(
        description="open: there is no key, and everybody may do everything. keys: a key is needed."
    )
    name: str | None = Field(description="Of the key, or of the user; null for anybody.")
    scope: Scope | None = Field(description="What they may do; null where only public scenes can be seen.")
    expires_at: datetime | None = Field(description="When they have to sign in again; null for never.")


@router.get("/session", summary="Ask who one is", responses=documented(401))
async def get_session(caller: CallerDep, callers: CallersDep, response: Response) -> Session:
    """What the service makes of the key, cookie or proxy that the request came with."""
    response.headers.update(HEADERS)
    return await _session(caller, callers)


@router.post("/session", summary="Sign in", responses=documented(400, 401, 403, 413, 422))
async def sign_in(wanted: SignIn, request: Request, response: Response, callers: CallersDep) -> Session:
    """A cookie for a key. It is for browsers; other programs send the key with each request."""
    caller, text, seconds = await callers.new_session(wanted.key.get_secret_value())
    request.state.caller = caller
    response.headers.update(HEADERS)
    response.set_cookie(
        COOKIE,
        text,
        max_age=seconds,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return await _session(caller, callers)


@router.delete("/session", status_code=204, summary="Sign out", responses=documented(401, 403))
async def sign_out(response: Response) -> None:
    """Take the cookie away."""
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")


async def _session(caller: Caller, callers: CallersDep) -> Session:
    return Session(
        access="keys" if await callers.asks_for_keys() else "open",
        name=None if caller.scope is None else caller.name,
        scope=caller.scope,
        expires_at=caller.expires_at,
    )
