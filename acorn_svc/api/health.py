"""Whether the service works, and whether to send it requests."""

from __future__ import annotations

import os
import shutil
from typing import Literal

import anyio
import anyio.to_thread
import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from acorn_svc import __version__
from acorn_svc.api.gate import Flights
from acorn_svc.jobs.worker import EmbeddedWorkers
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import SceneStore, Status

router = APIRouter(tags=["Service"])
log = structlog.get_logger()


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


class Readiness(BaseModel):
    """Whether this server can take requests, and what it lacks."""

    ready: bool
    stopping: bool = Field(description="It has been asked to end, and finishes what it has begun.")
    database: bool = Field(description="The database answers.")
    files: bool = Field(description="Files can be read and written.")


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
        self._trying: Flights[tuple[bool, bool]] = Flights()

    async def __call__(self, request: Request) -> Health:
        """The state of the service, for one who asks."""
        return await self._looking.join(request, None, self._look)

    async def readiness(self, request: Request, *, stopping: bool) -> Readiness:
        """Whether requests should be sent here, for one who asks."""
        database, files = await self._trying.join(request, None, self._try)
        ready = database and files and not stopping
        return Readiness(ready=ready, stopping=stopping, database=database, files=files)

    async def _look(self) -> Health:
        return await anyio.to_thread.run_sync(self._found, limiter=self._thread)

    async def _try(self) -> tuple[bool, bool]:
        return await anyio.to_thread.run_sync(self._answering, limiter=self._thread)

    def _answering(self) -> tuple[bool, bool]:
        """Whether the database answers, and whether files can be read and written."""
        files = os.access(self._store.blobs.spool, os.R_OK | os.W_OK | os.X_OK)
        try:
            self._store.count(Status.QUEUED)
        except Exception as error:  # each kind of database has errors of its own
            log.warning("the database does not answer", error=str(error))
            return False, files
        return True, files

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


@router.get(
    "/readyz",
    summary="Ask whether to send requests here",
    responses={503: {"model": Readiness, "description": "Send them elsewhere for now."}},
)
async def readiness(request: Request, response: Response) -> Readiness:
    """200 when this server can take requests, 503 when it cannot or is about to end. Fits don't count."""
    checkup: Checkup = request.app.state.checkup
    found = await checkup.readiness(request, stopping=request.app.state.stopping.is_set())
    response.status_code = 200 if found.ready else 503
    return found
