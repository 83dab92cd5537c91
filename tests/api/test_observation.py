"""What the service tells about itself: metrics, request ids, lines that are written down, readiness."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from conftest import Gallery, random_field
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from acorn_svc import logs
from acorn_svc.api import app as app_module
from acorn_svc.api.app import create_app
from acorn_svc.api.metrics import METHODS
from acorn_svc.errors import Unavailable
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import Status

DOCS = Path(app_module.__file__).parents[2] / "docs"
TILE = "/iiif/{}/0,0,32,32/32,/0/default.jpg"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Gallery]:
    """A server of its own, that writes down every request."""
    app = create_app(Settings(data=tmp_path, log_requests="all"))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Gallery(client, app.state.store)


def measured(service: Gallery) -> dict[str, float]:
    """Every sample by its name and labels."""
    families = text_string_to_metric_families(service.client.get("/metrics").text)
    return {
        sample.name + "".join(f" {value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_requests_are_counted_by_method_route_and_status(service: Gallery) -> None:
    scene_id = service.add(random_field(32, 32))
    for _ in range(3):
        assert service.client.get(TILE.format(scene_id)).status_code == 200
    service.client.get("/scenes/nothing")
    service.client.request("SPELL", "/no/such/place")
    found = measured(service)
    route = "/iiif/{id}/{region}/{size}/{rotation}/{file}"
    assert found[f"acorn_http_requests_total GET {route} 200"] == 3
    assert found[f"acorn_http_request_seconds_count {route}"] == 3
    assert found["acorn_http_requests_total GET /scenes/{id} 404"] == 1
    assert "SPELL" not in METHODS
    assert found["acorn_http_requests_total other other 404"] == 1


def test_renders_and_caches_are_told(service: Gallery) -> None:
    scene_id = service.add(random_field(32, 32))
    for _ in range(3):
        service.client.get(TILE.format(scene_id))
    found = measured(service)
    assert found["acorn_render_seconds_count pictures"] == 1
    assert found["acorn_render_seconds_sum pictures"] > 0
    assert found["acorn_renders_running pictures"] == found["acorn_renders_waiting pictures"] == 0
    assert found["acorn_cache_lookups_total tiles hit"] == 2
    assert found["acorn_cache_lookups_total tiles miss"] >= 1
    assert 0 < found["acorn_cache_bytes fields"] < found["acorn_cache_limit_bytes fields"]


def test_the_queue_is_told(service: Gallery) -> None:
    before = measured(service)
    assert (before["acorn_scenes queued"], before["acorn_queue_wait_seconds"]) == (0, 0)
    service.add(random_field(8, 8), status=Status.QUEUED)
    service.add(random_field(8, 8), status=Status.FAILED)
    found = measured(service)
    assert [status for status in Status if found[f"acorn_scenes {status}"]] == ["queued", "failed"]
    assert found["acorn_queue_wait_seconds"] > 0
    assert found["acorn_disk_free_bytes"] > 0
    assert found["process_resident_memory_bytes"] > 0


def test_every_metric_is_in_the_manual(service: Gallery) -> None:
    service.client.get("/healthz")
    names = {
        family.name
        for family in text_string_to_metric_families(service.client.get("/metrics").text)
        if not family.name.endswith("_created")
    }
    manual = (DOCS / "operations.md").read_text()
    assert [name for name in sorted(names) if name.startswith("acorn") and f"`{name}" not in manual] == []


def test_a_request_has_an_id_in_its_answer_and_in_its_line(service: Gallery) -> None:
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        own = service.client.get("/healthz").headers["x-request-id"]
        given = service.client.get("/healthz", headers={"X-Request-ID": "from-a.proxy_1"})
        forged = service.client.get("/healthz", headers={"X-Request-ID": 'x" level="error'})
    assert given.headers["x-request-id"] == "from-a.proxy_1"
    assert 'x"' not in forged.headers["x-request-id"]
    told = [(line["event"], line["path"], line["status"], line["request_id"]) for line in lines]
    assert told[:2] == [("request", "/healthz", 200, own), ("request", "/healthz", 200, "from-a.proxy_1")]


def test_a_line_names_the_client_of_a_trusted_proxy(tmp_path: Path) -> None:
    app = create_app(Settings(data=tmp_path, trusted_proxies="10.0.0.0/8", log_requests="all"))
    with TestClient(app, client=("10.1.2.3", 5)) as client, capture_logs() as lines:
        client.get("/healthz", headers={"X-Forwarded-For": "203.0.113.9"})
    assert [line["client"] for line in lines if line["event"] == "request"] == ["203.0.113.9"]


def test_a_signed_link_is_counted_by_its_route_and_written_without_its_token(service: Gallery) -> None:
    token = f"scene.1.{'x' * 43}"
    with capture_logs() as lines:
        assert service.client.get(f"/s/{token}/scenes/{'0' * 26}/tree").status_code == 403
    assert [line["path"] for line in lines if line["event"] == "request"] == [
        f"/s/.../scenes/{'0' * 26}/tree"
    ]
    assert token not in str(lines)
    assert measured(service)["acorn_http_requests_total GET /scenes/{id}/tree 403"] == 1


def test_an_unforeseen_error_can_be_found_by_its_id(
    service: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(service.store, "page", broken)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        answer = service.client.get("/scenes")
    assert answer.status_code == 500
    request_id = answer.headers["x-request-id"]
    assert {"unexpected error", "request"} == {
        line["event"] for line in lines if line.get("request_id") == request_id
    }
    assert measured(service)["acorn_http_requests_total GET /scenes 500"] == 1


def test_only_failures_are_written_down_unless_set_otherwise(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object, **__: object) -> None:
        raise Unavailable("Too much to do.")

    with capture_logs() as lines:
        gallery.client.get("/healthz")
        gallery.client.get("/scenes/nothing")
        monkeypatch.setattr(gallery.store, "page", busy)
        assert gallery.client.get("/scenes").status_code == 503
    assert lines == []


def test_ready_until_asked_to_stop(service: Gallery) -> None:
    answer = service.client.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (200, True)
    service.client.app.state.stopping.set()
    answer = service.client.get("/readyz")
    assert (answer.status_code, answer.json()["stopping"]) == (503, True)


def test_not_ready_without_database_or_files(service: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OperationalError("select", {}, Exception("gone"))

    with monkeypatch.context() as patch:
        patch.setattr(service.store, "counts", broken)
        assert service.client.get("/readyz").json()["database"] is False
    service.store.blobs.spool.rmdir()
    answer = service.client.get("/readyz")
    assert (answer.status_code, answer.json()["files"], answer.json()["database"]) == (503, False, True)


@pytest.fixture
def own_logging() -> Iterator[None]:
    """As in a new process; puts back what `configure` changes. Servers of other tests leave levels behind."""
    loggers = [logging.getLogger(name) for name in (None, logs.QUEUE, "uvicorn.error")]
    kept = [(logger, logger.handlers, logger.level, logger.propagate) for logger in loggers]
    loggers[-1].setLevel(logging.NOTSET)
    yield
    structlog.reset_defaults()
    for logger, logger.handlers, level, logger.propagate in kept:
        logger.setLevel(level)


@pytest.mark.usefixtures("own_logging")
def test_lines_for_programs_are_json_whoever_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_format="json"))
    with structlog.contextvars.bound_contextvars(request_id="abc"):
        structlog.get_logger().warning("disk is short", free=7)
        for name in ("sqlalchemy.pool", "dbos", "uvicorn.error"):
            logging.getLogger(name).warning("from %s", name)
    try:
        secret = "do not tell"
        raise ValueError(f"inside {len(secret)}")
    except ValueError:
        structlog.get_logger().exception("went wrong")
    written = capsys.readouterr().err
    assert "do not tell" not in written
    lines = [json.loads(line) for line in written.splitlines()]
    assert [line["event"] for line in lines] == [
        "disk is short", "from sqlalchemy.pool", "from dbos", "from uvicorn.error", "went wrong",
    ]  # fmt: skip
    assert (lines[0]["free"], lines[0]["level"]) == (7, "warning")
    assert {line.get("request_id") for line in lines[:4]} == {"abc"}
    assert {"timestamp", "level"} <= set(lines[1])
    assert lines[4]["exception"][0]["exc_type"] == "ValueError"


@pytest.mark.usefixtures("own_logging")
def test_lines_for_people_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_level="warning"))
    structlog.get_logger().info("not told")
    structlog.get_logger().warning("disk is short", free=7)
    (line,) = capsys.readouterr().err.splitlines()
    assert "disk is short" in line
    assert "free=7" in line
    assert "\x1b" not in line
