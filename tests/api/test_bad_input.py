"""Hostile and broken requests: a clear 4xx of one shape, nothing kept, and the service goes on."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_field
from fastapi.testclient import TestClient
from httpx2 import Response
from test_scenes import image_bytes

from acorn_svc.api.app import create_app
from acorn_svc.errors import LimitExceeded
from acorn_svc.formats.container import field_to_bytes
from acorn_svc.formats.images import encode_image
from acorn_svc.jobs.inspection import Inspector
from acorn_svc.settings import Settings

MAX_UPLOAD = 200_000


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(
        data=tmp_path_factory.mktemp("data"), max_upload_bytes=MAX_UPLOAD, max_request_bytes=1_200_000
    )
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_is_kept(client: TestClient) -> Iterator[None]:
    data = client.app.state.settings.data  # type: ignore[attr-defined]
    before = client.get("/scenes").json()["total"]
    yield
    assert client.get("/scenes").json()["total"] == before
    assert not list((data / "blobs" / "spool").iterdir())
    assert client.get("/healthz").status_code == 200


def refused(answer: Response, status: int, code: str) -> dict[str, Any]:
    """The error, after checking its one shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"code", "message", "limit", "value"}
    assert error["code"] == code
    assert error["message"].endswith(".")
    for secret in ("/tmp", "Traceback", "acorn_svc", "select ", "SELECT "):
        assert secret not in error["message"]
    return dict(error)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_what_is_not_an_image(client: TestClient) -> None:
    refused(client.post("/scenes", content=b"just some words"), 415, "unsupported_media")


def test_a_wrong_type_of_content(client: TestClient) -> None:
    answer = client.post("/scenes", json={"url": "http://example.org/x.png"})
    refused(answer, 415, "unsupported_media")


def test_nothing_at_all(client: TestClient) -> None:
    refused(client.post("/scenes", content=b""), 422, "bad_image")
    refused(client.post("/scenes", files={"file": ("x.png", b"")}), 422, "bad_image")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_truncated_image(client: TestClient, kind: str) -> None:
    whole = image_bytes(kind, (64, 48))
    for share in (0.3, 0.9):
        answer = client.post("/scenes", content=whole[: int(len(whole) * share)])
        refused(answer, 422, "bad_image")


def test_a_bomb_is_refused_by_its_header(client: TestClient) -> None:
    zeros = zlib.compress(b"\0" * 100_000)
    error = refused(client.post("/scenes", content=png(50_000, 50_000, zeros)), 422, "limit_exceeded")
    assert error["limit"] in ("max_image_pixels", "max_image_side")
    assert error["value"] > 0


def test_an_acorn_file_cut_anywhere(client: TestClient) -> None:
    whole = field_to_bytes(random_field(16, 16))
    for length in (1, 9, len(whole) // 2):
        answer = client.post("/scenes", content=whole[:length])
        assert answer.status_code in (415, 422), (length, answer.text)
        refused(answer, answer.status_code, answer.json()["error"]["code"])
    refused(client.post("/scenes", content=whole + b"\0"), 422, "bad_model")


@pytest.mark.parametrize("place", [0, 0.4, -1])
def test_an_acorn_file_with_a_byte_changed(client: TestClient, place: float) -> None:
    changed = bytearray(field_to_bytes(random_field(16, 16)))
    position = int(place * len(changed)) if isinstance(place, float) else place
    changed[position] ^= 0x55
    answer = client.post("/scenes", content=bytes(changed))
    assert answer.status_code in (415, 422), answer.text


def _chunks(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b"x" * 50_000


def test_too_many_bytes_announced_or_not(client: TestClient) -> None:
    announced = client.post("/scenes", content=b"x" * (MAX_UPLOAD + 1))
    streamed = client.post("/scenes", content=_chunks(5))
    form = client.post("/scenes", files={"file": ("x.png", b"x" * (MAX_UPLOAD + 1))})
    for answer in (announced, streamed, form):
        error = refused(answer, 413, "too_large")
        assert (error["limit"], error["value"]) == ("max_upload_bytes", MAX_UPLOAD)


def test_a_form_without_a_file(client: TestClient) -> None:
    refused(client.post("/scenes", files={"other": ("x", b"1")}), 400, "bad_request")
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    refused(client.post("/scenes", content=b"--y\r\n", headers=broken), 400, "bad_request")
    refused(client.post("/scenes", content=b"", headers=broken), 400, "bad_request")
    refused(
        client.post("/scenes", content=b"x", headers={"Content-Type": "multipart/form-data"}),
        400,
        "bad_request",
    )


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "best"},
        {"encoder": "hash"},
        {"seconds": "nan"},
        {"seconds": "1e-9"},
        {"psnr": "inf"},
        {"blocks": "0"},
        {"blocks": "1e99"},
        {"seconds": "3", "steps": "3"},
        {"rights": "javascript:alert(1)"},
        {"title": "x" * 501},
        {"unknown": "1"},
    ],
)
def test_options_without_meaning(client: TestClient, options: dict[str, str]) -> None:
    refused(client.post("/scenes", content=image_bytes(), params=options), 422, "bad_input")
    form = client.post("/scenes", data=options, files={"file": ("x", image_bytes())})
    refused(form, 422, "bad_input")


def test_a_body_that_is_too_large_for_json(client: TestClient) -> None:
    answer = client.patch("/scenes/x", content=b'{"title": "' + b"x" * 1_200_000 + b'"}')
    refused(answer, 413, "too_large")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"status": "ready"}', b'{"title": 1}'])
def test_a_patch_without_meaning(client: TestClient, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    refused(client.patch("/scenes/x", content=body, headers=headers), 422, "bad_input")


def test_a_patch_that_is_not_text(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    refused(client.patch("/scenes/x", content=b"\xff", headers=headers), 400, "bad_request")


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "cursor=" + "x" * 65])
def test_a_list_without_meaning(client: TestClient, query: str) -> None:
    refused(client.get(f"/scenes?{query}"), 422, "bad_input")


@pytest.mark.parametrize(
    "path", ["/nothing", "/scenes/nothing", "/scenes/x/file", "/scenes/..%2f..%2fetc", "/iiif/x/info.json"]
)
def test_unknown_addresses(client: TestClient, path: str) -> None:
    refused(client.get(path), 404, "not_found")


@pytest.mark.parametrize(("method", "path"), [("PUT", "/scenes"), ("GET", "/scenes/x/cancel")])
def test_wrong_methods(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path)
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"]


def test_decoding_is_bounded_in_memory(tmp_path: Path) -> None:
    settings = Settings(
        data=tmp_path, decode_memory_bytes=140 << 20, max_image_pixels=16_000_000,
        max_mesh_vertices=1_000_000, max_mesh_faces=2_000_000,
    )  # fmt: skip
    large = encode_image(np.zeros((4000, 4000, 3), np.uint16), "png")
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        error = refused(client.post("/scenes", content=large), 422, "limit_exceeded")
        assert error["limit"] == "decode_memory_bytes"
        assert client.post("/scenes", content=image_bytes()).status_code == 201


def test_decoding_is_bounded_in_time(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(image_bytes())
    # Shorter than any process takes to start; the settings themselves allow no less than a second.
    settings = Settings().model_copy(update={"decode_wall_seconds": 0.001})
    with pytest.raises(LimitExceeded) as caught:
        Inspector(settings).inspect(tmp_path / "image.png")
    assert caught.value.limit == "decode_wall_seconds"


def test_a_full_queue_and_a_full_disk_refuse_uploads(tmp_path: Path) -> None:
    with TestClient(create_app(Settings(data=tmp_path / "a", max_queued_jobs=1))) as client:
        assert client.post("/scenes", content=image_bytes()).status_code == 201
        answer = client.post("/scenes", content=image_bytes())
        refused(answer, 503, "unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert client.get("/scenes").json()["total"] == 1
    with TestClient(create_app(Settings(data=tmp_path / "b", min_free_disk_bytes=1 << 40))) as client:
        refused(client.post("/scenes", content=image_bytes()), 507, "insufficient_storage")
