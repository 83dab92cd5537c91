"""The contract: whatever the manual allows or forbids, the service answers as the manual says.

Schemathesis makes up requests from the manual: good ones, bad ones, and chains of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from conftest import CENTRE, RADIUS, Gallery, random_field
from fastapi.testclient import TestClient
from made_shapes import ball, made_shape
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema

from acorn_svc.api.app import create_app
from acorn_svc.errors import UnsupportedMedia
from acorn_svc.jobs.inspection import Inspection, Inspector
from acorn_svc.settings import MIB, Settings

pytestmark = pytest.mark.torture

# What a file holds, what suits the kind of a scene and which tiles there are, no schema says.
BEYOND_SCHEMAS = [
    {"include-tag": ["IIIF", "Deep Zoom", "3D Tiles", "Region", "Shapes", "Query"]},
    {"include-path": ["/scenes", "/uploads", "/uploads/{id}"], "include-method": ["POST", "PATCH"]},
]
CHECKS = {
    # 503 and 507 are announced: too busy, and full.
    "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 503, 507]},
    "negative_data_rejection": {"expected-statuses": ["4xx", 503, 507]},
    # A scene is there at once, but there is nothing to see of it yet.
    "ensure_resource_availability": {"enabled": False},
    # 412 is what tus has for a client that doesn't name its version.
    "missing_required_header": {"expected-statuses": [412, 422]},
}
KEY = "0123456789abcdef0123456789abcdef"
schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")


def contract(examples: int) -> SchemathesisConfig:
    return SchemathesisConfig.from_dict(
        {
            "seed": 1,
            # Or the first key that is made would keep all further requests out.
            "headers": {"Authorization": f"Bearer {KEY}"},
            "suppress-health-check": ["filter_too_much", "too_slow"],
            "generation": {"max-examples": examples, "deterministic": True, "no-shrink": True},
            "checks": CHECKS,
            "operations": [
                {**which, "checks": {"positive_data_acceptance": {"enabled": False}}}
                for which in BEYOND_SCHEMAS
            ],
        }
    )


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A server with small limits, an image and a shape; what is uploaded is checked without a process."""

    def inspect(_inspector: Inspector, path: Path) -> Inspection:
        if path.read_bytes() == b"":
            raise UnsupportedMedia("There is nothing.")
        return Inspection("image", "png", width=50, height=40, channels=3, bit_depth=8)

    monkeypatch.setattr(Inspector, "inspect", inspect)
    settings = Settings(
        data=tmp_path,
        admin_key=KEY,
        max_upload_bytes=MIB,
        max_request_bytes=2 * MIB,
        max_tile_side=512,
        max_tile_pixels=512 * 512,
        max_region_pixels=10_000,
        max_mesh_resolution=16,
    )
    with TestClient(create_app(settings)) as client:
        gallery = Gallery(client, client.app.state.store)  # type: ignore[attr-defined]
        gallery.add(random_field(40, 30))
        gallery.add(made_shape(ball(CENTRE, RADIUS)))
        # No worker ends the fits of what is uploaded, so their events would be waited for in vain.
        client.app.state.stopping.set()  # type: ignore[attr-defined]
        yield client


def test_every_answer_is_one_that_the_manual_foresees(
    client: TestClient, amount: Callable[[int, int], int], tell: Callable[[str, object], None]
) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app, config=contract(amount(10, 1000)))
    requests: Counter[str] = Counter()
    complaints: dict[str, str] = {}
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            complaints[str(event)] = "the test itself failed"
        if isinstance(event, events.ScenarioFinished):
            requests[event.phase.value] += len(event.recorder.cases)
            complaints |= dict(_complaints(event.recorder))
    for phase, count in requests.items():
        tell(f"requests made up, {phase}", count)
    assert not complaints, "\n\n".join(f"{title}\n{what}" for title, what in complaints.items())
    assert all(requests[phase] > 50 for phase in ("coverage", "fuzzing", "stateful"))


def _complaints(recorder: Any) -> Iterator[tuple[str, str]]:
    for case_id, checks in recorder.checks.items():
        for check in checks:
            if check.status == Status.FAILURE:
                failure = check.failure_info.failure
                request = recorder.cases[case_id].value.as_curl_command()
                yield f"{recorder.label}: {failure.title}", f"{failure.message}\n{request}"
