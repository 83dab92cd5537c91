"""Uploads that go on where they broke off: tus 1.0.0, as far as one client at a time can tell."""

from __future__ import annotations

import base64
import errno
import hashlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import numpy as np
import pytest
from conftest import Gallery
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import delete, select
from structlog.testing import capture_logs
from tus_client import PART, TUS, Tus, address, labels

from acorn_svc.api import tus
from acorn_svc.api import uploads as api_uploads
from acorn_svc.api.app import create_app
from acorn_svc.errors import Conflict, NotFound, Unavailable, UnsupportedMedia, WrongOffset
from acorn_svc.jobs.inspection import Inspection, Inspector
from acorn_svc.settings import MIB, Settings
from acorn_svc.store import database, promises
from acorn_svc.store import uploads as uploads_module
from acorn_svc.store.uploads import Upload, UploadStore


def picture(seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    content = BytesIO()
    Image.fromarray(noise).save(content, "PNG")
    return content.getvalue()


def in_base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


@pytest.fixture
def quick_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes whatever begins like a PNG for an image, without a process of its own."""

    def inspect(_inspector: Inspector, path: Path) -> Inspection:
        if not path.read_bytes().startswith(b"\x89PNG"):
            raise UnsupportedMedia("This isn't an image.")
        return Inspection("image", "png", width=50, height=40, channels=3, bit_depth=8)

    monkeypatch.setattr(Inspector, "inspect", inspect)


@pytest.fixture
def client(gallery: Gallery, quick_check: None) -> Tus:
    return Tus(gallery.client)


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(
        data=tmp_path_factory.mktemp("small"),
        max_upload_bytes=MIB,
        max_unfinished_bytes=2 * MIB,
        max_unfinished_uploads=3,
        upload_ttl_seconds=3600,
    )
    with TestClient(create_app(settings), raise_server_exceptions=False) as running:
        yield running


@pytest.fixture
def own(small_server: TestClient, quick_check: None) -> Iterator[Tus]:
    """A client of a server whose limits are small, and which has neither scenes nor uploads."""
    client = Tus(small_server)
    yield client
    state = app_state(client)
    for scene in state.store.page(100).items:
        state.store.delete(scene.id)
    with state.store.database.write() as session:
        session.execute(delete(Upload))
    state.uploads.sweep()


def files_of(client: Tus) -> list[str]:
    return sorted(path.name for path in (app_state(client).settings.data / "uploads").iterdir())


def app_state(client: Tus) -> Any:
    assert isinstance(client.client, TestClient)
    return client.client.app.state  # type: ignore[attr-defined]


def test_what_is_spoken_is_told_to_everybody(client: Tus) -> None:
    answer = client.client.options("/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == answer.headers["tus-resumable"] == "1.0.0"
    assert set(answer.headers["tus-extension"].split(",")) == {
        "creation", "creation-with-upload", "expiration", "checksum", "termination",
    }  # fmt: skip
    assert int(answer.headers["tus-max-size"]) == Settings().max_upload_bytes
    assert answer.headers["tus-checksum-algorithm"] == "sha1,sha256"


def test_it_is_checked_as_every_upload(gallery: Gallery) -> None:
    client, content = Tus(gallery.client), picture()
    assert client.begin(len(content), content).headers["acorn-scene"]
    assert client.begin(8, b"no image").status_code == 415


@pytest.mark.parametrize("cuts", [(), (1,), (100, 200, 300), (0,)])
def test_an_upload_in_parts_becomes_a_scene(gallery: Gallery, client: Tus, cuts: Sequence[int]) -> None:
    content = picture()
    path = client.new(len(content), Upload_Metadata=labels(title="Noise", preset="draft", filename="n.png"))
    for begin, end in zip((0, *cuts), (*cuts, len(content)), strict=True):
        assert client.offset(path) == begin
        answer = client.append(path, begin, content[begin:end])
        assert answer.status_code == 204, answer.text
        assert int(answer.headers["upload-offset"]) == end
    scene = client.client.get(answer.headers["acorn-scene"]).json()
    assert (scene["title"], scene["preset"], scene["status"]) == ("Noise", "draft", "queued")
    assert scene["bytes_original"] == len(content)
    assert gallery.client.get(f"/scenes/{scene['id']}/original").content == content
    outcome = client.outcome(path)
    assert (outcome["status"], outcome["scene_id"], outcome["error"]) == ("done", scene["id"], None)
    assert outcome["scene"] == scene["links"]["self"]


def test_the_first_part_may_come_with_the_creation(client: Tus) -> None:
    content = picture()
    answer = client.begin(len(content), content[:99])
    assert (answer.status_code, answer.headers["upload-offset"]) == (201, "99")
    path = address(answer)
    assert client.append(path, 99, content[99:]).headers["acorn-scene"]
    whole = client.begin(len(content), content)
    assert (whole.status_code, whole.headers["upload-offset"]) == (201, str(len(content)))
    assert client.outcome(address(whole))["scene"] == whole.headers["acorn-scene"]


def test_a_wrong_offset_is_answered_with_the_right_one(client: Tus) -> None:
    content = picture()
    path = client.new(len(content))
    client.append(path, 0, content[:500])
    for wrong in (0, 499, 501, len(content)):
        answer = client.append(path, wrong, content[wrong:])
        assert (answer.status_code, answer.headers["upload-offset"]) == (409, "500")
        assert answer.json()["error"]["code"] == "wrong_offset"
    assert client.append(path, 500, content[500:]).headers["acorn-scene"]


def test_the_last_part_sent_again_makes_no_second_scene(gallery: Gallery, client: Tus) -> None:
    content = picture()
    path = client.new(len(content))
    first = client.append(path, 0, content)
    scenes = gallery.client.get("/scenes").json()["total"]
    again = client.append(path, len(content), b"")
    assert again.headers["acorn-scene"] == first.headers["acorn-scene"]
    assert client.append(path, 0, content).status_code == 409
    assert gallery.client.get("/scenes").json()["total"] == scenes


def test_what_cannot_be_a_scene_is_refused_and_remembered(own: Tus) -> None:
    path = own.new(9)
    answer = own.append(path, 0, b"no image!")
    assert answer.status_code == 415
    outcome = own.outcome(path)
    assert (outcome["status"], outcome["scene"]) == ("failed", None)
    assert outcome["error"] == answer.json()["error"]
    assert own.append(path, 9, b"").status_code == 409
    assert own.offset(path) == 9
    assert files_of(own) == []


def test_an_empty_upload_is_complete_at_once(own: Tus) -> None:
    assert own.begin(0).status_code == 415
    assert files_of(own) == []


def test_labels_are_told_back_and_bad_ones_refused(client: Tus) -> None:
    said = labels(title="Ä name", flavour="sweet") + ",is_confidential"
    path = client.new(10, Upload_Metadata=said)
    assert client.client.head(path, headers=TUS).headers["upload-metadata"] == said
    for wrong in ("title !!!", "title eA==,title eA==", ",title eA=="):
        assert client.begin(10, Upload_Metadata=wrong).status_code == 400, wrong
    for wrong in (labels(preset="best"), labels(seconds="x"), labels(seconds="1", steps="1")):
        assert client.begin(10, Upload_Metadata=wrong).status_code == 422, wrong


@pytest.mark.parametrize("name", ["sha1", "sha256"])
def test_a_part_is_held_against_its_checksum(client: Tus, name: str) -> None:
    content = picture()
    path = client.new(len(content))

    def checksum(part: bytes) -> str:
        return f"{name} {in_base64(hashlib.new(name, part).digest())}"

    answer = client.append(path, 0, content[:300], Upload_Checksum=checksum(b"something else"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (460, "checksum_mismatch")
    assert client.offset(path) == 0
    assert client.append(path, 0, content[:200], Upload_Checksum=checksum(content[:200])).status_code == 204
    wrong = client.append(path, 200, content[200:], Upload_Checksum=checksum(content))
    assert wrong.status_code == 460
    assert client.offset(path) == 200
    last = client.append(path, 200, content[200:], Upload_Checksum=checksum(content[200:]))
    assert last.headers["acorn-scene"]


@pytest.mark.parametrize("checksum", ["md5 eA==", "sha1", "sha1 eA==", "sha256 !", ""])
def test_a_checksum_that_cannot_be_checked_is_refused(client: Tus, checksum: str) -> None:
    path = client.new(4)
    assert client.append(path, 0, b"x", Upload_Checksum=checksum).status_code == 400
    assert client.offset(path) == 0


def test_a_part_may_have_a_content_digest(client: Tus) -> None:
    path = client.new(10)
    digest = f"sha-256=:{in_base64(hashlib.sha256(b'abc').digest())}:"
    assert client.append(path, 0, b"abd", Content_Digest=digest).status_code == 460
    assert client.append(path, 0, b"abc", Content_Digest=digest).status_code == 204


def test_the_whole_is_held_against_the_digest_announced_at_first(client: Tus) -> None:
    content = picture()
    digest = f"sha-256=:{in_base64(hashlib.sha256(content).digest())}:"
    path = client.new(len(content), Repr_Digest=digest)
    client.append(path, 0, content[:100])
    assert client.append(path, 100, content[100:]).headers["acorn-scene"]
    other = picture(1)[: len(content)].ljust(len(content), b"x")
    path = client.new(len(content), Repr_Digest=digest)
    assert client.append(path, 0, other).status_code == 422
    assert client.outcome(path)["error"]["code"] == "digest_mismatch"


def test_more_bytes_than_announced_are_refused(client: Tus) -> None:
    path = client.new(10)
    assert client.append(path, 0, b"x" * 11).status_code == 400
    assert client.client.patch(
        path, content=iter([b"x" * 6, b"y" * 6]), headers={**PART, "Upload-Offset": "0"}
    ).status_code == 400  # fmt: skip
    assert client.offset(path) == 0


def test_an_upload_can_be_given_up(own: Tus) -> None:
    path = own.new(10)
    own.append(path, 0, b"12345")
    assert len(files_of(own)) == 1
    assert own.client.delete(path, headers=TUS).status_code == 204
    assert files_of(own) == []
    assert own.client.head(path, headers=TUS).status_code == 404
    assert own.append(path, 5, b"67890").status_code == 404
    assert own.client.delete(path, headers=TUS).status_code == 404
    assert own.client.get(path).status_code == 404


def test_a_scene_outlives_its_upload(client: Tus) -> None:
    content = picture()
    answer = client.begin(len(content), content)
    assert client.client.delete(address(answer), headers=TUS).status_code == 204
    assert client.client.get(answer.headers["acorn-scene"]).status_code == 200


@pytest.mark.parametrize("version", [None, "0.2.2", "1.0"])
@pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH", "DELETE"])
def test_another_version_is_not_spoken(client: Tus, method: str, version: str | None) -> None:
    path = "/uploads" if method == "POST" else client.new(10)
    headers = {**PART, "Upload-Offset": "0", "Upload-Length": "1"}
    headers = {**headers, "Tus-Resumable": version} if version else _without_version(headers)
    answer = client.client.request(method, path, headers=headers)
    assert answer.status_code == 412
    assert answer.headers["tus-version"] == "1.0.0"


def _without_version(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in TUS}


def test_every_answer_names_the_version(client: Tus) -> None:
    path = client.new(10)
    answers = [
        client.begin(10),
        client.begin(10**15),
        client.begin(10, Upload_Metadata="title ?"),
        client.client.head(path, headers=TUS),
        client.append(path, 5, b"x"),
        client.append(path, -1, b"x"),
        client.append(path, 0, b"x"),
        client.client.patch(path, content=b"x", headers={**TUS, "Upload-Offset": "1"}),
        client.client.get("/uploads/nothing"),
        client.client.delete(path, headers=TUS),
    ]
    assert [answer.status_code for answer in answers] == [201, 413, 400, 200, 409, 422, 204, 415, 404, 204]
    assert {answer.headers["tus-resumable"] for answer in answers} == {"1.0.0"}


def test_methods_may_come_in_disguise(client: Tus) -> None:
    path = client.new(10)
    patch = {**PART, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    answer = client.client.post(path, content=b"12345", headers=patch)
    assert (answer.status_code, answer.headers["upload-offset"]) == (204, "5")
    delete = {**TUS, "X-HTTP-Method-Override": "delete"}
    assert client.client.post(path, headers=delete).status_code == 204
    assert client.client.post(path, headers=TUS).status_code == 405


def test_other_sites_may_not_upload(client: Tus) -> None:
    preflight = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-methods" not in client.client.options("/uploads", headers=preflight).headers


def test_limits_are_named(own: Tus) -> None:
    answer = own.begin(MIB + 1)
    assert (answer.status_code, answer.json()["error"]["limit"]) == (413, "max_upload_bytes")
    own.new(MIB), own.new(MIB - 5)
    answer = own.begin(6)
    assert (answer.status_code, answer.json()["error"]["limit"]) == (507, "max_unfinished_bytes")
    path = own.new(5)
    answer = own.begin(0)
    assert (answer.status_code, answer.json()["error"]["limit"]) == (503, "max_unfinished_uploads")
    assert int(answer.headers["retry-after"]) > 0
    own.client.delete(path, headers=TUS)
    assert own.new(5)


def test_room_on_the_disk_is_promised_only_once(own: Tus, monkeypatch: pytest.MonkeyPatch) -> None:
    state = app_state(own)
    free = state.settings.min_free_disk_bytes + 1000
    usage = type("Usage", (), {"free": free})()
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    first = own.new(600)
    own.append(first, 0, b"x" * 100)
    answer = own.begin(501)
    assert (answer.status_code, answer.json()["error"]["limit"]) == (507, "min_free_disk_bytes")
    assert own.new(500)
    for content in (b"x", iter([b"x"])):
        answer = own.client.post("/scenes", content=content)
        assert (answer.status_code, answer.json()["error"]["limit"]) == (507, "min_free_disk_bytes")


def test_unfinished_uploads_expire(own: Tus, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own.new(10)
    answer = own.append(path, 0, b"12345")
    expires = parsedate_to_datetime(answer.headers["upload-expires"])
    assert expires - database.now() > timedelta(minutes=59)
    assert len(files_of(own)) == 1
    later = database.now() + timedelta(minutes=61)
    monkeypatch.setattr(promises, "now", lambda: later)
    assert own.client.head(path, headers=TUS).status_code == 404
    assert own.append(path, 5, b"67890").status_code == 404
    own.new(MIB), own.new(MIB)
    app_state(own).uploads.sweep()
    assert files_of(own) == []


def test_requests_without_a_byte_keep_no_upload(own: Tus, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = own.new(10), own.new(10)
    assert own.append(path, 0, b"").status_code == 204
    assert own.append(other, 0, b"1").status_code == 204
    later = database.now() + timedelta(minutes=11)
    monkeypatch.setattr(promises, "now", lambda: later)
    assert own.client.head(path, headers=TUS).status_code == 404
    assert own.append(other, 1, b"23456789").status_code == 204


def test_bytes_without_a_row_are_swept_away(own: Tus) -> None:
    path = own.new(10)
    own.append(path, 0, b"12345")
    (app_state(own).settings.data / "uploads" / "left").write_bytes(b"by a crash")
    app_state(own).uploads.sweep()
    assert files_of(own) == [path.split("/")[-1]]
    assert own.offset(path) == 5


def test_results_are_kept_up_to_a_number(own: Tus) -> None:
    paths = []
    for number in range(5):
        paths.append(own.new(1))
        assert own.append(paths[-1], 0, bytes([number])).status_code == 415
    app_state(own).uploads.sweep()
    assert [own.client.get(path).status_code for path in paths] == [404, 404, 200, 200, 200]


def test_an_upload_that_found_no_place_in_the_queue_is_finished_later(
    own: Tus, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, content = app_state(own), picture()
    path = own.new(len(content))
    with monkeypatch.context() as patched:
        patched.setattr(state.jobs, "_limit", 0)
        assert own.append(path, 0, content).status_code == 503
        assert own.outcome(path)["status"] == "checking"
        anyio.run(tus.tend, state.uploads, state.intake)
        assert own.outcome(path)["status"] == "checking"
    anyio.run(tus.tend, state.uploads, state.intake)
    outcome = own.outcome(path)
    assert outcome["status"] == "done"
    assert own.client.get(f"/scenes/{outcome['scene_id']}/original").content == content
    assert files_of(own) == []
    assert own.client.get("/scenes").json()["total"] == 1


def test_a_first_part_that_fails_leaves_nothing(own: Tus, monkeypatch: pytest.MonkeyPatch) -> None:
    content = picture()
    with monkeypatch.context() as patched:
        patched.setattr(app_state(own).jobs, "_limit", 0)
        assert own.begin(len(content), content).status_code == 503
    assert own.begin(5, b"wrong").status_code == 415
    assert own.begin(5, b"wrong", Upload_Checksum=f"sha1 {in_base64(bytes(20))}").status_code == 460
    assert files_of(own) == []
    assert list(app_state(own).uploads.left_over()) == []


def test_a_first_part_that_breaks_off_leaves_nothing(live_gallery: Gallery) -> None:
    def has_uploads() -> bool:
        with live_gallery.store.database.read() as session:
            return session.scalars(select(Upload.id).where(Upload.length == 1001)).first() is not None

    url = urlsplit(str(live_gallery.client.base_url))
    lines = [f"{name}: {value}" for name, value in {**PART, "Host": "x", "Upload-Length": 1001}.items()]
    head = "\r\n".join(["POST /uploads HTTP/1.1", *lines, "Content-Length: 1001"])
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(f"{head}\r\n\r\nthe first of them".encode())
        wait_for(has_uploads)
    wait_for(lambda: not has_uploads())


def test_what_a_slow_client_has_sent_counts_while_it_sends(
    live_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_uploads, "PIECE_SECONDS", 0)
    client = Tus(live_gallery.client)
    url = urlsplit(client.new(100))
    lines = [f"{name}: {value}" for name, value in {**PART, "Host": "x", "Upload-Offset": 0}.items()]
    head = "\r\n".join([f"PATCH {url.path} HTTP/1.1", *lines, "Content-Length: 100"])
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode())
        for sent in (10, 20, 30):
            connection.sendall(bytes(10))
            wait_for(lambda: client.offset(url.geturl()) == sent)  # noqa: B023 - called at once
    client.client.delete(url.geturl(), headers=TUS)


def test_what_finds_no_place_is_not_even_checked(own: Tus, monkeypatch: pytest.MonkeyPatch) -> None:
    state, content = app_state(own), picture()
    checked: list[str] = []

    def inspect(_inspector: Inspector, path: Path) -> Inspection:
        checked.append(path.read_bytes()[8:9].decode(errors="replace"))
        raise UnsupportedMedia("seen")

    monkeypatch.setattr(Inspector, "inspect", inspect)
    path = own.new(len(content))
    with monkeypatch.context() as patched:
        patched.setattr(state.jobs, "_limit", 0)
        assert own.append(path, 0, content).status_code == 503
        assert own.client.post("/scenes", content=content).status_code == 503
        assert checked == []
        field = (16).to_bytes(8, "little") + b"{fitted already}"
        assert own.client.post("/scenes", content=field).status_code == 415
        assert checked == ["{"], "what needs no job is checked"
    with monkeypatch.context() as patched:
        patched.setattr(state.store, "bytes_used", lambda: 0)
        patched.setattr("acorn_svc.store.scenes._bytes_used", lambda _session: 1 << 60)
        refused = own.client.post("/scenes", content=field)
        assert (refused.status_code, refused.json()["error"]["limit"]) == (507, "store_quota_bytes")
    assert checked == ["{"]


def test_one_bad_upload_does_not_stop_the_others(own: Tus, monkeypatch: pytest.MonkeyPatch) -> None:
    state, contents = app_state(own), [picture(1), picture(2)]
    paths = [own.new(len(content)) for content in contents]
    finish = UploadStore.finish

    def broken(store: UploadStore, upload_id: str, *rest: Any) -> Upload:
        if paths[0].endswith(upload_id):
            raise PermissionError(errno.EACCES, "Permission denied")
        return finish(store, upload_id, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(state.jobs, "_limit", 0)
        for path, content in zip(paths, contents, strict=True):
            assert own.append(path, 0, content).status_code == 503
    monkeypatch.setattr(UploadStore, "finish", broken)
    with capture_logs() as logs:
        anyio.run(tus.tend, state.uploads, state.intake)
    assert [own.outcome(path)["status"] for path in paths] == ["checking", "done"]
    assert [log["event"] for log in logs if log["log_level"] == "error"] == [
        "an upload could not be finished"
    ]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_scene_and_the_end_of_its_upload_are_one_step(own: Tus, monkeypatch: pytest.MonkeyPatch) -> None:
    state, content = app_state(own), picture()
    path = own.new(len(content))

    def broken(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(UploadStore, "_note_scene", broken)
        assert own.append(path, 0, content).status_code == 507
    assert own.client.get("/scenes").json()["total"] == 0
    assert own.offset(path) == len(content)
    anyio.run(tus.tend, state.uploads, state.intake)
    assert own.client.get("/scenes").json()["total"] == 1


def test_an_upload_whose_bytes_are_lost_is_not_there(own: Tus) -> None:
    path = own.new(10)
    own.append(path, 0, b"12345")
    (file,) = (app_state(own).settings.data / "uploads").iterdir()
    file.write_bytes(b"1234")
    assert own.client.head(path, headers=TUS).status_code == 404
    file.unlink()
    assert own.append(path, 5, b"67890").status_code == 404


def test_an_upload_that_is_finished_just_now_is_there(own: Tus, monkeypatch: pytest.MonkeyPatch) -> None:
    content = picture()
    path = own.new(len(content))
    own.append(path, 0, content[:100])
    has_bytes = UploadStore._has_bytes

    def finish_first(store: UploadStore, upload: Upload) -> bool:
        monkeypatch.setattr(UploadStore, "_has_bytes", has_bytes)
        assert own.append(path, 100, content[100:]).status_code == 204
        return has_bytes(store, upload)

    monkeypatch.setattr(UploadStore, "_has_bytes", finish_first)
    assert own.outcome(path)["status"] == "done"


def test_a_writer_is_not_disturbed_by_one_that_knows_less(own: Tus) -> None:
    uploads: UploadStore = app_state(own).uploads
    upload = uploads.create(10, "", {}, None)
    older = uploads.take_over(upload.id, 0)
    older.write(b"abc")
    with pytest.raises(WrongOffset) as caught:
        uploads.take_over(upload.id, 0)
    assert caught.value.offset == 3
    older.write(b"de")
    newer = uploads.take_over(upload.id, 5)
    with pytest.raises(Conflict):
        older.write(b"f")
    newer.close()
    uploads.settle(upload.id)
    older.close()


def test_the_newer_of_two_writers_goes_on(own: Tus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads_module, "STEP_SECONDS", 0)
    uploads: UploadStore = app_state(own).uploads
    upload = uploads.create(10, "", {}, None)
    older = uploads.take_over(upload.id, 0, as_a_whole=True)
    older.write(b"abc")
    newer = uploads.take_over(upload.id, 0)
    newer.write(b"12345")
    for step in (lambda: older.write(b"d"), older.keep):
        with pytest.raises(Conflict):
            step()
    newer.keep()
    older.close(), newer.close()
    last = uploads.take_over(upload.id, 5)
    last.write(b"67890")
    last.keep()
    last.close()
    seen: list[bytes] = []

    def look(_upload: Upload, path: Path, sha256: str, _also: object) -> None:
        seen.append(path.read_bytes())
        assert sha256 == hashlib.sha256(b"1234567890").hexdigest()
        with pytest.raises(Unavailable, match="another request"):
            uploads.finish(upload.id, None, look)
        uploads.delete(upload.id)

    with pytest.raises(NotFound):
        uploads.finish(upload.id, last.sha256, look)
    assert seen == [b"1234567890"]
