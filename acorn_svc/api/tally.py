"""How often something was done, and how long it took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Tally:
    """Counts pieces of work, in whichever thread they are done.

    Attributes:
        running: are being done at this moment.
        count: have ended, with or without an error.
        seconds: they took all together.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.running = 0
        self.count = 0
        self.seconds = 0.0

    def timed(self, work: Callable[[], T]) -> Callable[[], T]:
        """`work`, counted when it is called."""

        def counted() -> T:
            with self._lock:
                self.running += 1
            begin = time.perf_counter()
            try:
                return work()
            finally:
                seconds = time.perf_counter() - begin
                with self._lock:
                    self.running -= 1
                    self.count += 1
                    self.seconds += seconds

        return counted
