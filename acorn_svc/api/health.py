"""Whether the service works."""

from __future__ import annotations

import shutil
from typing import Literal

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from acorn_svc import __version__
from acorn_svc.api.gate import Flights
from acorn_svc.jobs.worker import EmbeddedWorkers
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import SceneStore, Status

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


class Checkup:
    """Looks how the service is: on a thread of its own, and once for all who ask at the same time.

    So it answers under any load, and is none itself.
    """

    def __init__(self, store: SceneStore, settings: Settings, workers: EmbeddedWorkers | None) -> None:
        self._store = store
        self._settings = settings
        self._workers = workers
        self._thread = anyio.CapacityLimiter(1)
        self._looking: Flights[Health] = Flights()

    async def __call__(self, request: Request) -> Health:
        """The state of the service, for one who asks."""
        return await self._looking.join(request, None, self._look)

    async def _look(self) -> Health:
        return await anyio.to_thread.run_sync(self._found, limiter=self._thread)

    def _found(self) -> Health:
        state: Literal["running", "starting", "none"] = "none"
        if self._workers is not None:
            state = "running" if self._workers.alive else "starting"
        queued, fitting = self._store.counts(Status.QUEUED, Status.FITTING)
        return Health(
            status="degraded" if state == "starting" else "ok",
            version=__version__,
            worker=state,
            queued=queued,
            fitting=fitting,
            free_disk_bytes=shutil.disk_usage(self._settings.data).free,
        )


@router.get(
    "/healthz",
    summary="Ask whether the service works",
    responses={503: {"model": Health, "description": "No fits run at the moment."}},
)
async def health(request: Request, response: Response) -> Health:
    """200 when everything runs, 503 when the worker does not."""
    checkup: Checkup = request.app.state.checkup
    found = await checkup(request)
    response.status_code = 503 if found.status == "degraded" else 200
    return found
