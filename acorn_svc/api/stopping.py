"""When the service is asked to stop, and how long all that has to end may take together."""

from __future__ import annotations

import threading
from time import monotonic


class Stopping(threading.Event):
    """Set once the service is to stop; whatever then waits for something to end shares `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._deadline: float | None = None

    def set(self) -> None:
        """Begin to stop; the first call counts."""
        if self._deadline is None:
            self._deadline = monotonic() + self._seconds
        super().set()

    @property
    def seconds_left(self) -> float:
        """What is left of the time to stop, 0 or more; all of it before that has begun."""
        return self._seconds if self._deadline is None else max(self._deadline - monotonic(), 0)
