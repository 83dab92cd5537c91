"""The reaper: every worker has one, and it takes up what other workers have lost.

A job is lost when its sign, a count that its worker raises, has been the same for a whole lease; or when it
has waited for a whole lease where no worker would find it, because the one that had just found it died.
Time is that of this process's monotonic clock alone (see `jobs.lease`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import structlog

from acorn_svc.errors import Conflict, NotFound
from acorn_svc.jobs.queue import JobQueue, Sign

PRUNE_SECONDS = 3600.0

log = structlog.get_logger()


class Reaper:
    """Remembers since when each sign has been seen, and takes over the jobs behind those that are stale."""

    def __init__(
        self, jobs: JobQueue, lease_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._jobs = jobs
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._seen: dict[Sign, float] = {}

    def look(self) -> list[Sign]:
        """Look once; returns the jobs that were taken over."""
        moment = self._clock()
        self._seen = {sign: self._seen.get(sign, moment) for sign in self._jobs.signs()}
        stale = [sign for sign, since in self._seen.items() if moment - since >= self._lease_seconds]
        return [sign for sign in stale if self._take_over(sign)]

    def _take_over(self, sign: Sign) -> bool:
        # Another reaper may have been faster, or the worker alive after all.
        with suppress(Conflict, NotFound):
            self._jobs.take_over(sign)
            log.warning("a job was lost and is queued again", scene=sign.scene_id, run=sign.run)
            return True
        return False


def keep_reaping(reaper: Reaper, tidy: Callable[[], None], seconds: float, stop: threading.Event) -> None:
    """Look every `seconds` until `stop`, and now and then `tidy`; no error ends this."""
    tidied = -PRUNE_SECONDS
    while not stop.wait(seconds):
        try:
            reaper.look()
            if time.monotonic() - tidied >= PRUNE_SECONDS:
                tidy()
                tidied = time.monotonic()
        except Exception:
            log.exception("lost jobs could not be looked for")
