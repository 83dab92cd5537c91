"""Signed links: one scene for whoever has the link, for reading, for a time."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from acorn_svc.api.callers import CallersDep
from acorn_svc.api.dependencies import SceneDep
from acorn_svc.api.errors import documented
from acorn_svc.api.scenes import BaseDep, SceneLinks, links_of

DEFAULT_SECONDS: Final = 86_400
MOST_SECONDS: Final = 10 * 366 * 86_400

router = APIRouter(tags=["Access"])


class LinkIn(BaseModel):
    """How long a link is to work."""

    model_config = ConfigDict(extra="forbid")

    expires_in: int = Field(
        default=DEFAULT_SECONDS, strict=True, ge=1, le=MOST_SECONDS, description="In seconds."
    )


class SignedLinks(BaseModel):
    """Addresses that work without a key."""

    base: str = Field(description="What stands in front of every address of the scene.")
    expires_at: datetime
    links: SceneLinks


@router.post(
    "/scenes/{id}/links",
    status_code=201,
    summary="Make signed links",
    responses=documented(400, 401, 403, 404, 413, 422),
)
async def create_links(
    scene: SceneDep, base: BaseDep, callers: CallersDep, wanted: LinkIn | None = None
) -> SignedLinks:
    """The addresses of one scene for image tags, viewers and other people: whoever has them can see this
    scene, and nothing else, until they expire. They cannot be taken back one by one.

    Viewers build further addresses from `links.iiif`, `links.dzi` and `links.tiles3d`; these work too.
    """
    signed = await callers.new_link(scene.id, (wanted or LinkIn()).expires_in)
    own = f"{base}s/{signed}/"
    return SignedLinks(base=own, expires_at=signed.expires_at, links=links_of(scene, own))
