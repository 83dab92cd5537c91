"""What becomes of a file that has arrived as a whole, however it came: it is checked and made a scene."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, TypeVar

import anyio
import anyio.to_thread
import structlog
from fastapi import Depends, Request
from sqlalchemy.orm import Session

from acorn_svc.jobs.child import looks_like_field
from acorn_svc.jobs.inspection import Inspection, Inspector
from acorn_svc.jobs.queue import JobQueue
from acorn_svc.store.scenes import Scene, SceneStore, Status

THREADS: Final = 32
T = TypeVar("T")

log = structlog.get_logger()

NewScene = Callable[[Inspection, int], Scene]
Also = Callable[[Session, Scene], object]


class Intake:
    """Writes what arrives and makes scenes of it, in threads of its own.

    A check takes long, and others wait for it; the rest of the service finds its threads all the same.
    """

    def __init__(self, store: SceneStore, jobs: JobQueue, inspector: Inspector) -> None:
        self._store = store
        self._jobs = jobs
        self._inspector = inspector
        self._writers = anyio.CapacityLimiter(THREADS)
        self._checkers = anyio.CapacityLimiter(THREADS)

    async def write(self, work: Callable[[], T]) -> T:
        """Do `work`, which is short, in a thread."""
        return await anyio.to_thread.run_sync(work, limiter=self._writers)

    async def check(self, work: Callable[[], T]) -> T:
        """Do `work`, which admits a file, in a thread."""
        return await anyio.to_thread.run_sync(work, limiter=self._checkers)

    def admit(
        self,
        path: Path,
        sha256: str,
        owner: str | None,
        new_scene: NewScene,
        also: Also = lambda _session, _scene: None,
    ) -> Scene:
        """Check the file `path` of the spool, whose SHA-256 is given in hexadecimal, and keep it as a scene.

        `new_scene` says what the scene of `owner` is, from the inspection and the size in bytes; `also`
        joins the transaction that adds it.

        Raises BadInput for a file of which no scene can be made, Unavailable, TooManyRequests and
        InsufficientStorage.
        """
        size = path.stat().st_size
        # A check is dear: first whether there would be room. A fitted field needs no job.
        self._store.require_quota(sha256, size)
        if not looks_like_field(path):
            self._jobs.require_room(owner)
        scene = new_scene(self._inspector.inspect(path), size)
        log.info("scene uploaded", scene=scene.id, kind=scene.kind, bytes=scene.bytes_original)
        if scene.status == Status.QUEUED:
            self._jobs.require_room(owner)  # others may have come meanwhile
            return self._jobs.accept(scene, path, lambda session: also(session, scene), sha256)
        return self._store.create(scene, path, lambda session: also(session, scene), sha256)


async def get_intake(request: Request) -> Intake:
    """What makes scenes of uploads for this application."""
    intake: Intake = request.app.state.intake
    return intake


IntakeDep = Annotated[Intake, Depends(get_intake)]
