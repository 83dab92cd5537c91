"""Whether the service works."""

from __future__ import annotations

import shutil
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from acorn_svc import __version__
from acorn_svc.api.dependencies import SettingsDep, StoreDep
from acorn_svc.store.scenes import Status

router = APIRouter(tags=["Service"])


class Health(BaseModel):
    """The state of the service."""

    status: Literal["ok", "degraded"] = Field(description="degraded: pictures are served, but no fits run.")
    version: str = Field(description="Of the program.", examples=["0.1.0"])
    worker: Literal["running", "starting", "none"] = Field(
        description="The processes that run fits; none when this server has none of its own."
    )
    queued: int = Field(description="Fits that wait.")
    fitting: int = Field(description="Fits that run.")
    free_disk_bytes: int


@router.get(
    "/healthz",
    summary="Ask whether the service works",
    responses={503: {"model": Health, "description": "No fits run at the moment."}},
)
def health(request: Request, response: Response, store: StoreDep, settings: SettingsDep) -> Health:
    """200 when everything runs, 503 when the worker does not."""
    workers = request.app.state.workers
    state: Literal["running", "starting", "none"] = "none"
    if workers is not None:
        state = "running" if workers.alive else "starting"
    degraded = state == "starting"
    response.status_code = 503 if degraded else 200
    queued, fitting = store.counts(Status.QUEUED, Status.FITTING)
    return Health(
        status="degraded" if degraded else "ok",
        version=__version__,
        worker=state,
        queued=queued,
        fitting=fitting,
        free_disk_bytes=shutil.disk_usage(settings.data).free,
    )
