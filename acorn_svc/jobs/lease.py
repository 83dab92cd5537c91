"""The lease of a job: a worker keeps it by signs of life, and lets go of the job when it cannot give any.

A sign of life is a count in the database that goes up. Another worker takes the job over when it has seen
the same count for `lease_seconds` by its own monotonic clock (`jobs.reaper`), and this one ends its child
when it has not raised the count for so long by its own. No clock that can be set or that two machines
would have to agree on is asked. The worker counts from before it raised the count, the other from after it
saw that: so the worker lets go first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from acorn_svc.errors import Conflict, NotFound

log = structlog.get_logger()


class Lease:
    """Calls `beat` every `heartbeat_seconds` while it is entered, and `lose` when the lease is over.

    It is over when `beat` raises Conflict or NotFound, or has not succeeded for `lease_seconds`: also while
    a call of `beat` hangs.
    """

    def __init__(
        self,
        beat: Callable[[], object],
        lose: Callable[[], object],
        *,
        lease_seconds: float,
        heartbeat_seconds: float,
    ) -> None:
        self._beat = beat
        self._lose = lose
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._released = threading.Event()
        self._over = threading.Event()
        self._end = self._new_end()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def is_over(self) -> bool:
        """Whether the job was let go of; true before `lose` is called."""
        return self._over.is_set()

    def __enter__(self) -> Self:
        self._end.start()
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._end.cancel()

    def _new_end(self) -> threading.Timer:
        timer = threading.Timer(self._lease_seconds, self._let_go)
        timer.daemon = True
        return timer

    def _keep(self) -> None:
        while not self._released.wait(self._heartbeat_seconds):
            try:
                self._renew()
            except (Conflict, NotFound):
                self._let_go()
                return
            except Exception as error:
                log.warning("no sign of life could be given", error=str(error))

    def _let_go(self) -> None:
        self._over.set()
        self._lose()

    def _renew(self) -> None:
        """Put the end off, counted from before the sign of life."""
        end = self._new_end()
        end.start()
        try:
            self._beat()
        except BaseException:
            end.cancel()
            raise
        self._end.cancel()
        self._end = end
        if self._released.is_set():
            end.cancel()
