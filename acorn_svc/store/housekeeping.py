"""What a server does in the background: remove what a crash has left behind."""

from __future__ import annotations

import threading

import structlog

from acorn_svc.settings import Settings
from acorn_svc.store.scenes import SceneStore

log = structlog.get_logger()


class Housekeeper:
    """Removes unneeded files at the start and every `gc_interval_seconds`, in a thread of its own."""

    def __init__(self, store: SceneStore, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End, after what is being done at the moment if that takes `seconds` at most."""
        self._stopping.set()
        self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            try:
                removed = self._store.collect(self._settings.gc_age_seconds)
                if removed.files:
                    log.info("removed files that no scene needs", files=removed.files, bytes=removed.bytes)
                if removed.foreign:
                    log.warning("left files alone that may be another database's", files=removed.foreign)
            except Exception:  # an object store that is down, for example: the next time will do
                log.exception("could not remove files that no scene needs")
            if self._stopping.wait(self._settings.gc_interval_seconds):
                return
