"""What Prometheus is told at `/metrics`; `docs/operations.md` says what to do about it.

Counting a request is on the way of every picture from the cache, and takes a few microseconds. All else is
looked up when Prometheus asks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from fastapi import APIRouter, Request, Response
from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector
from starlette.types import Scope

from acorn_svc import __version__
from acorn_svc.api.gate import Gate
from acorn_svc.api.rendering import Renderer
from acorn_svc.jobs.worker import EmbeddedWorkers
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import SceneStore, Status

SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
OTHER: Final = "other"
"""Stands for what a client can choose freely, of which there must not be a metric each."""

router = APIRouter(tags=["Service"])


@router.get(
    "/metrics",
    summary="Tell Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
def metrics(request: Request) -> Response:
    """Counts and states of this process, of its queue and of its caches, in Prometheus' text format."""
    content = generate_latest(request.app.state.metrics.registry)
    return Response(content, media_type=CONTENT_TYPE_PLAIN_0_0_4)


class Metrics:
    """The metrics of one application."""

    def __init__(
        self, settings: Settings, store: SceneStore, renderer: Renderer, workers: EmbeddedWorkers | None
    ) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "acorn_http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "acorn_http_request_seconds",
            "Time until an answer began.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        ProcessCollector(registry=self.registry)
        for collector in (_Scenes(store), _Pictures(renderer), _Machine(settings, workers)):
            self.registry.register(collector)

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """One request has been answered; `seconds` passed until the answer began."""
        method = scope["method"] if scope["method"] in METHODS else OTHER
        key = method, scope["state"].get("route", OTHER), status
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._labelled(*key)
        known[0].inc()
        known[1].observe(seconds)

    def count_refusal(self, status: int) -> None:
        """A request, or a connection, has been refused before it came to any route."""
        self._labelled(OTHER, OTHER, status)[0].inc()

    def _labelled(self, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        return self._requests.labels(method, route, str(status)), self._seconds.labels(route)


class _Scenes(Collector):
    """The scenes of the database, the same from every server that uses it."""

    def __init__(self, store: SceneStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Asks the database."""
        scenes = GaugeMetricFamily("acorn_scenes", "Scenes by their status.", labels=["status"])
        for status, count in zip(Status, self._store.counts(*Status), strict=True):
            scenes.add_metric([status], count)
        yield scenes
        since = self._store.waiting_since()
        waited = 0.0 if since is None else (datetime.now(UTC) - since).total_seconds()
        yield GaugeMetricFamily("acorn_queue_wait_seconds", "The longest wait in the queue.", value=waited)


class _Pictures(Collector):
    """Renders and caches of this process."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def collect(self) -> Iterator[Metric]:
        """Asks the renderer."""
        yield from self._gates({"pictures": self._renderer.gate, "meshes": self._renderer.extractions})
        used = GaugeMetricFamily("acorn_cache_bytes", "Memory of a cache in use.", labels=["cache"])
        limit = GaugeMetricFamily("acorn_cache_limit_bytes", "Most memory of a cache.", labels=["cache"])
        lookups = CounterMetricFamily("acorn_cache_lookups", "Look-ups.", labels=["cache", "result"])
        for name, cache in self._renderer.caches.items():
            used.add_metric([name], cache.used)
            limit.add_metric([name], cache.capacity)
            lookups.add_metric([name, "hit"], cache.hits)
            lookups.add_metric([name, "miss"], cache.misses)
        yield from (used, limit, lookups)

    def _gates(self, gates: dict[str, Gate]) -> Iterator[Metric]:
        running = GaugeMetricFamily("acorn_renders_running", "Renders at work.", labels=["kind"])
        waiting = GaugeMetricFamily("acorn_renders_waiting", "Renders that wait.", labels=["kind"])
        seconds = SummaryMetricFamily("acorn_render_seconds", "Time that renders took.", labels=["kind"])
        for kind, gate in gates.items():
            running.add_metric([kind], gate.tally.running)
            waiting.add_metric([kind], gate.waiting)
            seconds.add_metric([kind], count_value=gate.tally.count, sum_value=gate.tally.seconds)
        yield from (running, waiting, seconds)


class _Machine(Collector):
    """The program, its workers and its disk."""

    def __init__(self, settings: Settings, workers: EmbeddedWorkers | None) -> None:
        self._settings = settings
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """Asks the system."""
        yield InfoMetricFamily("acorn", "The program.", value={"version": __version__})
        free = shutil.disk_usage(self._settings.data).free
        yield GaugeMetricFamily("acorn_disk_free_bytes", "Free on the disk that holds the data.", value=free)
        if self._workers is not None:
            alive = float(self._workers.alive)
            yield GaugeMetricFamily(
                "acorn_workers_up", "Whether the workers of this server run.", value=alive
            )
