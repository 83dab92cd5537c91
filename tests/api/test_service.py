"""The service around the scenes: its manual, its settings, its page, its health."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Gallery, random_field
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr, ValidationError
from structlog.testing import capture_logs

import acorn_svc
from acorn_svc import settings as settings_module
from acorn_svc.api import app as app_module
from acorn_svc.api import errors, page
from acorn_svc.errors import AcornError, Conflict
from acorn_svc.settings import Settings, limits_page, settings_page
from acorn_svc.store.scenes import Status

PACKAGE = Path(settings_module.__file__).parent
DOCS = PACKAGE.parent / "docs"


def client_of(folder: Path) -> TestClient:
    """A client of the page and the manual alone, whose files are in `folder`."""
    app = FastAPI(title="Acorn", docs_url=None)
    page.install(app, folder)
    return TestClient(app)


def addresses(html: str) -> list[str]:
    """All that a page names, in order."""
    return re.findall(r"""(?:href=|src=|url: )['"]([^'"]+)['"]""", html)


def test_health(gallery: Gallery) -> None:
    health = gallery.client.get("/healthz").json()
    assert (health["status"], health["worker"]) == ("ok", "none")
    assert health["version"] == acorn_svc.__version__
    assert health["free_disk_bytes"] > 0


def test_health_counts_what_waits_and_what_runs(gallery: Gallery) -> None:
    before = gallery.client.get("/healthz").json()
    gallery.add_empty()
    gallery.add(random_field(8, 8), status=Status.QUEUED)
    gallery.add(random_field(8, 8), status=Status.QUEUED)
    after = gallery.client.get("/healthz").json()
    assert (after["fitting"] - before["fitting"], after["queued"] - before["queued"]) == (1, 2)


def test_the_page_or_how_to_build_it(gallery: Gallery) -> None:
    answer = gallery.client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "Acorn" in answer.text


def test_without_their_files_page_and_manual_say_how_to_build_them(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    assert "make web" in client.get("/").text
    manual = client.get("/docs").text
    assert "make web" in manual
    assert client.get(f"/{addresses(manual)[0]}").json()["info"]["title"] == "Acorn"


def test_the_manual_asks_no_other_host(tmp_path: Path) -> None:
    for name in (page.MANUAL_SCRIPT, page.MANUAL_STYLE, "acorn.svg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    client = client_of(tmp_path)
    answer = client.get("/docs")
    assert "//" not in answer.text
    assert len(addresses(answer.text)) == 4
    for address in addresses(answer.text):
        assert client.get(f"/{address}").status_code == 200, address
    assert "default-src 'self'" in answer.headers["content-security-policy"]


OPEN, PRIVATE = ["0.0.0.0", "::", "acorn.example"], ["127.0.0.1", "::1", "localhost"]
ADMIN_KEY = "an-admin-key-of-32-characters-or-more"


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Starts the service, but for listening; the hosts that it warned of."""
    monkeypatch.setattr(app_module.Server, "run", lambda _: None)
    monkeypatch.setattr(app_module.logs, "configure", lambda _: None)

    def start(**settings: Any) -> list[str]:
        with capture_logs() as logs:
            app_module.serve(Settings(data=tmp_path, **settings))
        return [entry["host"] for entry in logs if "There is no key" in entry["event"]]

    return start


@pytest.mark.parametrize("host", OPEN)
def test_others_are_kept_out_unless_there_is_a_key(serve: Callable[..., list[str]], host: str) -> None:
    with pytest.raises(Conflict, match="acorn keys create"):
        serve(host=host)
    assert serve(host=host, insecure=True) == [host]
    assert serve(host=host, admin_key=ADMIN_KEY) == []
    assert serve(host=host, trusted_proxies="10.0.0.1", proxy_user_header="Remote-User") == []


@pytest.mark.parametrize("host", PRIVATE)
def test_a_service_for_this_machine_alone_needs_no_key(serve: Callable[..., list[str]], host: str) -> None:
    assert serve(host=host) == []


def test_what_the_service_starts_gets_no_key(
    serve: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACORN_ADMIN_KEY", ADMIN_KEY)
    serve(host="0.0.0.0")
    assert ADMIN_KEY not in {**os.environ, **Settings(admin_key=SecretStr(ADMIN_KEY)).environment()}.values()


def test_the_manual_describes_every_operation(gallery: Gallery) -> None:
    manual = gallery.client.get("/openapi.json").json()
    tags = {tag["name"] for tag in manual["tags"]}
    for path, operations in manual["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            assert set(operation["tags"]) <= tags, (method, path)
            if "{id}" in path:
                assert "404" in operation["responses"], (method, path)


def test_every_error_has_a_status_that_says_whose_fault_it_is() -> None:
    def below(kind: type[AcornError]) -> list[type[AcornError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    for kind in below(AcornError):
        status = errors.status_of(kind("x"))
        assert status in errors.DESCRIPTIONS or status == 500


def test_an_unforeseen_error_tells_nothing(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret path /etc/passwd")

    monkeypatch.setattr(gallery.store, "page", broken)
    with capture_logs():  # written for people, it would take seconds
        answer = gallery.client.get("/scenes")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "secret" not in answer.text


def test_every_setting_is_in_the_manual_and_used() -> None:
    assert (DOCS / "settings.md").read_text() == settings_page()
    assert (DOCS / "limits.md").read_text() == limits_page()
    source = "".join(path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "settings.py")
    for name in Settings.model_fields:
        assert re.search(rf"settings\.{name}\b", source), name


MAY_BE_ZERO = {"embedded_workers"}


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - MAY_BE_ZERO))
def test_zero_is_refused(name: str) -> None:
    if Settings.model_fields[name].annotation in (int, float):
        with pytest.raises(ValidationError):
            Settings.model_validate({name: 0})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"decode_memory_bytes": 1}, "decode_memory_bytes"),
        ({"job_memory_bytes": 1}, "job_memory_bytes"),
        ({"max_image_side": 10}, "max_image_side"),
        ({"max_mesh_faces": 10**9}, "max_mesh_faces"),
        ({"min_free_disk_bytes": 1}, "min_free_disk_bytes"),
        ({"job_wall_seconds": 5}, "checkpoint_seconds"),
        ({"heartbeat_seconds": 11}, "heartbeat_seconds"),
        ({"gc_age_seconds": 2047}, "gc_age_seconds"),
        ({"gc_age_seconds": 7199, "checkpoint_seconds": 3600}, "gc_age_seconds"),
        ({"min_body_bytes_per_second": 1}, "gc_age_seconds"),
        ({"max_request_bytes": 1}, "max_request_bytes"),
        ({"admin_key": "short"}, "admin_key"),
        ({"admin_key": "words, and many of them, are no key"}, "admin_key"),
        ({"proxy_user_header": "Remote-User"}, "trusted_proxies"),
        ({"trusted_proxies": "proxy.example"}, "trusted_proxies"),
        ({"cors_origins": "example.org"}, "cors_origins"),
        ({"cors_write_origins": "*"}, "cors_write_origins"),
        ({"frame_ancestors": "*; script-src *"}, "frame_ancestors"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_unsafe_combinations_are_refused_with_the_reason(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Settings.model_validate(values)


def test_settings_survive_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, port=81, checkpoint_seconds=2.5)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_other_sites_may_show_pictures_but_not_change_scenes(gallery: Gallery) -> None:
    client: TestClient = gallery.client
    preflight = {"Origin": "https://example.org", "Access-Control-Request-Method": "DELETE"}
    answer = client.options("/scenes/x", headers=preflight)
    assert "access-control-allow-methods" not in answer.headers
