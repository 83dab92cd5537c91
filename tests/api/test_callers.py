"""Who may do what, and how they say who they are: keys, sessions, links, proxies, other sites."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import Gallery, random_field
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from structlog.testing import capture_logs

from acorn_svc.api import callers, signing
from acorn_svc.api.app import create_app
from acorn_svc.errors import LimitExceeded
from acorn_svc.jobs.inspection import Inspection
from acorn_svc.settings import Settings
from acorn_svc.store.keys import KeyStore, Scope
from acorn_svc.store.scenes import Status

ADMIN_KEY = "an-admin-key-of-32-characters-or-more"
Make = Callable[..., AbstractContextManager[Gallery]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes services on one data folder, one after the other."""

    @contextmanager
    def service(address: str = "192.0.2.7", **settings: Any) -> Iterator[Gallery]:
        app = create_app(Settings(data=tmp_path, **settings))
        # Whatever is uploaded passes for a small image.
        app.state.inspector.inspect = lambda _path: Inspection("image", "png", 8, 8, 3, 8)
        with TestClient(app, raise_server_exceptions=False, client=(address, 50_000)) as client:
            yield Gallery(client, app.state.store)

    return service


def keys_of(gallery: Gallery) -> KeyStore:
    return gallery.client.app.state.keys  # type: ignore[attr-defined, no-any-return]


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


ADMIN = bearer(ADMIN_KEY)


# Keys


def test_without_any_key_everybody_may_do_everything(make: Make) -> None:
    with make() as gallery:
        assert gallery.client.get("/session").json()["access"] == "open"
        assert gallery.client.get("/keys").json() == {"items": []}
        made = gallery.client.post("/keys", json={"name": "first", "scope": "admin"})
        assert made.status_code == 201
        # From now on, who they are is asked of everybody.
        assert gallery.client.get("/keys").status_code == 401
        listed = gallery.client.get("/keys", headers=bearer(made.json()["key"])).json()["items"]
        assert [key["name"] for key in listed] == ["first"]
        assert "key" not in listed[0]


def test_a_revoked_last_key_does_not_open_the_service_again(make: Make) -> None:
    with make() as gallery:
        key, text = keys_of(gallery).create("first", Scope.ADMIN)
        assert gallery.client.delete(f"/keys/{key.id}", headers=bearer(text)).status_code == 204
        assert gallery.client.get("/keys", headers=bearer(text)).status_code == 401
        assert gallery.client.post("/scenes", content=b"x").status_code == 401
    with make() as gallery:
        assert gallery.client.get("/session").json()["access"] == "keys"


def test_what_another_process_revokes_ends_when_the_server_looks_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(admin_key=ADMIN_KEY) as gallery:
        key, text = keys_of(gallery).create("x", Scope.READ)
        assert gallery.client.get("/session", headers=bearer(text)).status_code == 200
        keys_of(gallery).revoke(key.id)
        monkeypatch.setattr(callers, "KEY_SECONDS", 0.0)
        assert gallery.client.get("/session", headers=bearer(text)).status_code == 401


def test_the_key_of_the_environment_counts_as_long_as_it_is_set(make: Make) -> None:
    with make(admin_key=ADMIN_KEY) as gallery:
        assert gallery.client.get("/audit", headers=ADMIN).status_code == 200
        cookie = gallery.client.post("/session", json={"key": ADMIN_KEY}).cookies[callers.COOKIE]
        assert gallery.client.get("/audit").status_code == 200
    for changed in (f"{ADMIN_KEY}!", None):
        with make(admin_key=changed, host="10.0.0.1") as gallery:
            keys_of(gallery).create("x", Scope.READ)
            assert gallery.client.get("/audit", headers=ADMIN).status_code == 401
            gallery.client.cookies.set(callers.COOKIE, cookie)
            assert gallery.client.get("/audit").status_code == 401


def test_a_key_is_stored_as_its_digest_alone(make: Make, tmp_path: Path) -> None:
    with make() as gallery:
        _, text = keys_of(gallery).create("x", Scope.READ)
        assert gallery.client.get("/session", headers=bearer(text)).json()["scope"] == "read"
    secret = text.rpartition("_")[2].encode()
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or secret not in file.read_bytes(), file


def test_keys_are_bounded_and_their_use_is_noted(make: Make) -> None:
    with make(max_keys=2) as gallery:
        keys = keys_of(gallery)
        first, text = keys.create("x", Scope.READ)
        keys.create("gone", Scope.READ, timedelta(seconds=-1))
        keys.create("y", Scope.READ)
        with pytest.raises(LimitExceeded) as caught:
            keys.create("z", Scope.READ)
        assert (caught.value.limit, caught.value.value) == ("max_keys", 2)
        gallery.client.get("/session", headers=bearer(text))
        assert [key.name for key in keys.all() if key.used_at] == ["x"]
        keys.revoke(first.id)
        keys.create("z", Scope.READ)


def test_a_full_disk_keeps_nobody_out(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise OperationalError("", {}, error)

    with make() as gallery:
        _, text = keys_of(gallery).create("x", Scope.READ)
        monkeypatch.setattr(KeyStore, "note_use", full)
        assert gallery.client.get("/scenes", headers=bearer(text)).status_code == 200
        monkeypatch.setattr(KeyStore, "find", full)
        gallery.client.app.state.callers.ring.forget()  # type: ignore[attr-defined]
        assert gallery.client.get("/scenes", headers=bearer(text)).status_code == 507


# What belongs to whom


def test_lists_show_what_the_caller_may_see(make: Make) -> None:
    with make(admin_key=ADMIN_KEY) as gallery:
        private, public = (gallery.add(random_field(8, 8)) for _ in range(2))
        gallery.client.patch(f"/scenes/{public}", json={"public": True}, headers=ADMIN)
        seen = gallery.client.get("/scenes").json()
        assert ([scene["id"] for scene in seen["items"]], seen["total"]) == ([public], 1)
        assert gallery.client.get("/scenes", headers=ADMIN).json()["total"] == 2
        assert gallery.client.get(f"/scenes/{private}").status_code == 401
        assert gallery.client.get(f"/scenes/{'0' * 26}").status_code == 401


def test_an_upload_belongs_to_its_key_and_is_as_public_as_was_said(make: Make) -> None:
    upload = b"an image"
    with make() as gallery:
        key, text = keys_of(gallery).create("camera", Scope.WRITE)
        for settings, said, expected in ((False, None, False), (False, True, True), (True, False, False)):
            params = {} if said is None else {"public": str(said).lower()}
            made = gallery.client.post("/scenes", content=upload, params=params, headers=bearer(text))
            assert made.json()["public"] is expected, settings
            assert gallery.store.get(made.json()["id"]).owner == f"key:{key.id}"
            again = gallery.client.post("/scenes", data=params, files={"file": upload}, headers=bearer(text))
            assert again.json()["public"] is expected
    with make(scenes_public=True) as gallery:
        made = gallery.client.post("/scenes", content=upload, headers=bearer(text))
        assert made.json()["public"] is True


def test_one_key_may_not_fill_the_queue(make: Make) -> None:
    with make(max_queued_jobs_per_key=2) as gallery:
        texts = [keys_of(gallery).create(name, Scope.WRITE)[1] for name in ("x", "y")]
        post = gallery.client.post
        answers = [post("/scenes", content=b"an image", headers=bearer(texts[0])) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [201, 201, 429]
        error = answers[-1].json()["error"]
        assert (error["limit"], error["value"]) == ("max_queued_jobs_per_key", 2)
        assert post("/scenes", content=b"an image", headers=bearer(texts[1])).status_code == 201


def test_only_public_pictures_are_kept_by_caches_that_others_share(make: Make) -> None:
    with make(admin_key=ADMIN_KEY) as gallery:
        scene = gallery.add(random_field(8, 8))
        gallery.store.update(scene, public=True)
        for name in (scene, f"{scene}-1"):
            url = f"/iiif/{name}/full/max/0/default.jpg"
            assert "public" in gallery.client.get(url).headers["cache-control"]
            known = gallery.client.get(url, headers=ADMIN).headers["cache-control"]
            assert "private" in known
            assert "public" not in known
        assert gallery.client.get("/scenes", headers=ADMIN).headers["cache-control"] == "no-store"


# The page's session


def test_a_session_is_a_cookie_that_scripts_and_other_sites_cannot_use(make: Make) -> None:
    with make(admin_key=ADMIN_KEY, session_seconds=600) as gallery:
        client = gallery.client
        assert client.post("/session", json={"key": "wrong"}).status_code == 401
        answer = client.post("/session", json={"key": ADMIN_KEY})
        told = answer.json()
        assert (told["access"], told["name"], told["scope"]) == ("keys", "ACORN_ADMIN_KEY", "admin")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "max-age=600" in cookie
        assert "secure" not in cookie
        assert ADMIN_KEY not in cookie
        assert client.get("/session").json()["expires_at"] == told["expires_at"]
        assert client.delete("/session").status_code == 204
        assert client.get("/session").json()["scope"] is None


def test_over_https_the_cookie_is_for_https_alone(make: Make) -> None:
    with make(admin_key=ADMIN_KEY) as gallery:
        answer = gallery.client.post("https://testserver/session", json={"key": ADMIN_KEY})
        assert "secure" in answer.headers["set-cookie"].lower()


def test_a_session_ends_in_time_with_its_key_and_when_all_are_ended(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "KEY_SECONDS", 0.0)
    with make() as gallery:
        keys, client = keys_of(gallery), gallery.client
        key, text = keys.create("x", Scope.READ, timedelta(seconds=100))
        signed_in = client.post("/session", json={"key": text})
        assert int(signed_in.headers["set-cookie"].partition("Max-Age=")[2].partition(";")[0]) <= 100
        assert client.get("/session").json()["name"] == "x"
        ended = signing.sign(keys.signing_secret(), f"session {key.digest}", key.id, -1)
        answer = client.get("/session", headers={"Cookie": f"{callers.COOKIE}={ended}"})
        assert answer.json()["name"] is None
        client.post("/session", json={"key": text})
        keys.renew_signing_secret()
        assert client.get("/session").json()["name"] is None
        client.post("/session", json={"key": text})
        keys.revoke(key.id)
        assert client.get("/session").json()["name"] is None


SITES: list[tuple[dict[str, str], bool]] = [
    ({}, True),
    ({"Sec-Fetch-Site": "same-origin"}, True),
    ({"Sec-Fetch-Site": "none"}, True),
    ({"Origin": "http://testserver"}, True),
    ({"Sec-Fetch-Site": "same-site"}, False),
    ({"Sec-Fetch-Site": "cross-site"}, False),
    ({"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"}, False),
    ({"Origin": "http://evil.example"}, False),
    ({"Origin": "null"}, False),
    ({"Origin": "http://testserver:81"}, False),
]
"""What a browser says of the site that makes it ask, and whether that is the page's own."""


def test_where_there_is_no_key_other_sites_change_nothing(make: Make) -> None:
    with make() as gallery:
        scene = gallery.add(random_field(8, 8))
        for headers, own in SITES:
            change = gallery.client.patch(f"/scenes/{scene}", json={"title": "x"}, headers=headers)
            assert change.status_code == (200 if own else 403), headers
            upload = gallery.client.post("/scenes", content=b"an image", headers=headers)
            assert upload.status_code == (201 if own else 403), headers


def test_other_sites_cannot_use_a_session(make: Make) -> None:
    with make(admin_key=ADMIN_KEY) as gallery:
        scene, client = gallery.add(random_field(8, 8)), gallery.client
        for headers, own in SITES:
            client.cookies.clear()
            signed_in = client.post("/session", json={"key": ADMIN_KEY}, headers=headers)
            assert signed_in.status_code == (200 if own else 403), headers
            client.post("/session", json={"key": ADMIN_KEY})
            change = client.patch(f"/scenes/{scene}", json={"title": "x"}, headers=headers)
            assert change.status_code == (200 if own else 403), headers
            # Asking for values changes nothing.
            assert client.post(f"/scenes/{scene}/query", headers=headers).status_code == 415
            # A key in a header is never sent by a browser by itself.
            client.cookies.clear()
            change = client.patch(f"/scenes/{scene}", json={"title": "x"}, headers={**headers, **ADMIN})
            assert change.status_code == 200, headers


def test_without_a_key_no_name_of_another_leads_here(make: Make) -> None:
    own = ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "acorn", "acorn.localhost"]
    others = ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "evil.example."]
    with make() as gallery:
        for host in own:
            assert gallery.client.get("/scenes", headers={"Host": host}).status_code == 200, host
        for host in others:
            assert gallery.client.get("/scenes", headers={"Host": host}).status_code == 421, host
    with make(insecure=True, host_names="maps.example, Evil.example") as gallery:
        assert gallery.client.get("/scenes", headers={"Host": others[0]}).status_code == 200
        assert gallery.client.get("/scenes", headers={"Host": others[2]}).status_code == 421
    with make(admin_key=ADMIN_KEY) as gallery:
        assert gallery.client.get("/scenes", headers={"Host": others[0], **ADMIN}).status_code == 200


def test_a_database_without_a_free_connection_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(_scene_id: str) -> None:
        raise BlockingIOError

    def in_vain(_scene_id: str) -> None:
        raise PoolTimeout("QueuePool limit of size 5 overflow 20 reached")

    with make(admin_key=ADMIN_KEY) as gallery:
        scene = gallery.add_empty()
        monkeypatch.setattr(gallery.store, "head_now", waits)
        monkeypatch.setattr(gallery.store, "head", in_vain)
        answer = gallery.client.get(f"/scenes/{scene}/tree")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_servers_that_begin_at_once_sign_with_one_secret(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with make() as gallery:
        first, second = keys_of(gallery), KeyStore(gallery.store.database, 10)
        make_one = second._first_signing_secret
        # Between the second's look and its writing, the first one makes a secret.
        made: list[bytes] = []
        monkeypatch.setattr(
            second, "_first_signing_secret", lambda: (made.append(first.signing_secret()), make_one())[1]
        )
        assert second.signing_secret() == made[0] == first.signing_secret()


# Links


def test_everything_about_a_scene_is_found_below_its_link(make: Make) -> None:
    with make(admin_key=ADMIN_KEY) as gallery:
        client, scene, other = gallery.client, *(gallery.add(random_field(600, 300)) for _ in range(2))
        made = client.post(f"/scenes/{scene}/links", json={"expires_in": 60}, headers=ADMIN).json()
        base = made["base"]
        assert base.startswith("http://testserver/s/")
        assert all(link is None or link.startswith(base) for link in made["links"].values())
        for name in ("self", "iiif", "dzi", "thumbnail", "region", "file", "tree"):
            assert client.get(made["links"][name]).status_code == 200, name
        info = client.get(made["links"]["iiif"]).json()
        assert info["id"] == f"{base}iiif/{scene}-1"
        tile = client.get(f"{info['id']}/0,0,512,300/512,/0/default.jpg")
        assert tile.headers["content-type"] == "image/jpeg"
        assert f"<{base}iiif/" in tile.headers["link"]
        assert client.get(f"{base}dzi/{scene}_files/9/0_0.jpg").status_code == 200
        redirect = client.get(f"{base}iiif/{scene}", follow_redirects=False)
        assert redirect.headers["location"] == f"{base}iiif/{scene}/info.json"
        # Nothing else is.
        for name in (other, f"{other}-1", f"{other}-{scene}", "0" * 26):
            assert client.get(f"{base}iiif/{name}/info.json").status_code == 404, name
        assert client.get(f"{base}scenes").json()["total"] == 0
        assert client.delete(f"{base}scenes/{scene}").status_code == 403
        assert client.get(f"{base}keys").status_code == 403
        assert client.get(f"{base}{base.removeprefix('http://testserver/')}keys").status_code == 403
        longer = base.replace(".", ".9", 1)
        assert client.get(f"{longer}iiif/{scene}/info.json").status_code == 403


def test_a_tileset_is_found_below_its_link(make: Make, ball_field: Any) -> None:
    with make(admin_key=ADMIN_KEY) as gallery:
        scene = gallery.add(ball_field)
        links = gallery.client.post(f"/scenes/{scene}/links", headers=ADMIN).json()["links"]
        tileset = gallery.client.get(links["tiles3d"]).json()
        content = tileset["root"]["content"]["uri"]
        assert not content.startswith(("/", "http"))
        address = links["tiles3d"].replace("tileset.json", content.format(level=0, x=0, y=0, z=0))
        assert gallery.client.get(address).content.startswith(b"glTF")


def test_links_are_bounded_and_end(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "KEY_SECONDS", 0.0)
    with make(admin_key=ADMIN_KEY, max_link_seconds=100) as gallery:
        scene = gallery.add(random_field(8, 8))
        url = f"/scenes/{scene}/links"
        error = gallery.client.post(url, json={"expires_in": 101}, headers=ADMIN).json()["error"]
        assert (error["limit"], error["value"]) == ("max_link_seconds", 100)
        link = gallery.client.post(url, json={"expires_in": 100}, headers=ADMIN).json()["links"]["iiif"]
        assert gallery.client.get(link).status_code == 200
        keys_of(gallery).renew_signing_secret()
        assert gallery.client.get(link).status_code == 403


# Proxies

SIGN_ON = {
    "trusted_proxies": "10.0.0.0/8, fd00::/8",
    "proxy_user_header": "Remote-User",
    "proxy_groups_header": "Remote-Groups",
    "proxy_write": "ben, @editors",
    "proxy_admin": "@staff",
}


SIGNED_IN: list[tuple[list[tuple[str, str]], str | None, str | None]] = [
    ([("Remote-User", "anna")], "anna", "read"),
    ([("Remote-User", "ben")], "ben", "write"),
    ([("Remote-User", "anna"), ("Remote-Groups", "x, editors")], "anna", "write"),
    ([("Remote-User", "anna"), ("Remote-Groups", "editors,staff")], "anna", "admin"),
    ([("Remote-User", "@staff")], "@staff", "read"),
    ([("Remote-User", "staff")], "staff", "read"),
    ([("Remote-User", "anna"), ("Remote-Groups", "ben")], "anna", "read"),
    ([("Remote-User", "anna"), ("Remote-User", "ben")], None, None),
    ([("Remote-User", "")], None, None),
    ([("Remote-Groups", "staff")], None, None),
]


def test_a_trusted_proxy_says_who_has_signed_in(make: Make) -> None:
    for address in ("10.1.2.3", "fd00::1"):
        with make(address, **SIGN_ON) as gallery:
            for headers, name, scope in SIGNED_IN:
                told = gallery.client.get("/session", headers=headers).json()
                assert (told["access"], told["name"], told["scope"]) == ("keys", name, scope), headers


def test_nobody_else_is_believed(make: Make) -> None:
    headers = {
        "Remote-User": "ben", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "10.0.0.1",
    }  # fmt: skip
    with make("192.0.2.7", **SIGN_ON) as gallery:
        assert gallery.client.get("/session", headers=headers).json()["name"] is None
    with make("127.0.0.1") as gallery:
        scene = gallery.add(random_field(8, 8))
        links = gallery.client.get(f"/scenes/{scene}", headers=headers).json()["links"]
        assert links["self"].startswith("http://testserver/")


def test_a_trusted_proxy_says_how_it_was_reached_and_from_where(make: Make) -> None:
    forwarded = {
        "Remote-User": "ben", "X-Forwarded-Host": "acorn.example", "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "198.51.100.9",
    }  # fmt: skip
    with make("10.0.0.1", **SIGN_ON) as gallery:
        answer = gallery.client.post("/scenes", content=b"an image", headers=forwarded)
        scene = answer.json()
        assert scene["links"]["self"].startswith("https://acorn.example/scenes/")
        assert gallery.store.get(scene["id"]).owner == "user:ben"
        entry = gallery.client.app.state.audit.newest(1)[0]  # type: ignore[attr-defined]
        assert (entry.caller, entry.address) == ("user:ben", "198.51.100.9")
        # The proxy's users too are asked by which site.
        headers = {**forwarded, "Origin": "https://evil.example"}
        assert gallery.client.delete(f"/scenes/{scene['id']}", headers=headers).status_code == 403
        headers = {**forwarded, "Origin": "https://acorn.example"}
        assert gallery.client.delete(f"/scenes/{scene['id']}", headers=headers).status_code == 204


# Other sites


def test_by_default_other_sites_may_read_and_not_write(make: Make) -> None:
    with make() as gallery:
        scene = gallery.add(random_field(8, 8))
        origin = {"Origin": "https://viewer.example"}
        read = gallery.client.get(f"/iiif/{scene}/info.json", headers=origin)
        assert read.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in read.headers
        ask = {**origin, "Access-Control-Request-Method": "DELETE"}
        refused = gallery.client.options("/scenes/x", headers=ask)
        assert refused.status_code == 405
        assert "access-control-allow-methods" not in refused.headers


def test_reading_can_be_kept_to_some_sites(make: Make) -> None:
    with make(cors_origins="https://one.example, https://two.example") as gallery:
        url = f"/iiif/{gallery.add(random_field(8, 8))}/info.json"

        def allowed(origin: str | None) -> str | None:
            answer = gallery.client.get(url, headers={"Origin": origin} if origin else {})
            assert "Origin" in answer.headers["vary"]
            return answer.headers.get("access-control-allow-origin")

        assert [allowed(f"https://{name}.example") for name in ("one", "two", "three")] == [
            "https://one.example",
            "https://two.example",
            None,
        ]
        assert allowed(None) is None


def test_writing_can_be_allowed_to_some_sites(make: Make) -> None:
    with make(cors_write_origins="https://app.example", admin_key=ADMIN_KEY) as gallery:
        scene = gallery.add(random_field(8, 8))
        origin = {"Origin": "https://app.example"}
        ask = {**origin, "Access-Control-Request-Method": "PATCH"}
        preflight = gallery.client.options(f"/scenes/{scene}", headers=ask)
        assert preflight.status_code == 204
        assert "PATCH" in preflight.headers["access-control-allow-methods"]
        assert "Authorization" in preflight.headers["access-control-allow-headers"]
        url, body = f"/scenes/{scene}", {"title": "x"}
        answer = gallery.client.patch(url, json=body, headers={**origin, **ADMIN})
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert answer.status_code == 200
        # With a key alone: the page's session is for the page.
        gallery.client.post("/session", json={"key": ADMIN_KEY})
        assert gallery.client.patch(url, json=body, headers=origin).status_code == 403


def test_browsers_are_told_what_not_to_do(make: Make) -> None:
    with make(frame_ancestors="https://museum.example") as gallery:
        scene = gallery.add(random_field(8, 8))
        for path in ("/", "/scenes", "/nothing", f"/scenes/{scene}/original", f"/iiif/{scene}/info.json"):
            headers = gallery.client.get(path).headers
            assert headers["x-content-type-options"] == "nosniff", path
            assert headers["referrer-policy"] == "same-origin", path
            policy = headers["content-security-policy"]
            assert policy.endswith("frame-ancestors https://museum.example"), path
            assert policy.startswith("default-src 'none'") == (path != "/"), path
        upload = gallery.client.get(f"/scenes/{scene}/original").headers
        assert upload["content-disposition"].startswith("attachment")
        assert upload["content-type"] == "application/octet-stream"


# The audit log


def test_what_is_changed_is_written_down(make: Make) -> None:
    with make(admin_key=ADMIN_KEY) as gallery:
        client = gallery.client
        _, text = keys_of(gallery).create("camera", Scope.WRITE)
        with capture_logs() as logs:
            scene = client.post("/scenes", content=b"an image", headers=bearer(text)).json()["id"]
            client.get(f"/scenes/{scene}", headers=bearer(text))
            client.patch(f"/scenes/{scene}", json={"public": True}, headers=ADMIN)
            client.delete(f"/scenes/{scene}", headers=bearer("garbage"))
            client.delete(f"/scenes/{scene}", headers=bearer(text))
            client.post("/session", json={"key": text})
        entries = client.get("/audit", headers=ADMIN).json()["items"]
        told = [(entry["name"], entry["action"], entry["target"], entry["status"]) for entry in entries]
        assert told == [
            ("camera", "POST /session", None, 200),
            ("camera", "DELETE /scenes/{id}", scene, 204),
            ("ACORN_ADMIN_KEY", "PATCH /scenes/{id}", scene, 200),
            ("camera", "POST /scenes", scene, 201),
        ]
        assert {entry["address"] for entry in entries} == {"192.0.2.7"}
        # What nobody with a name tried is in the log alone, or anybody could push others out of the table.
        audited = [(entry["caller"], entry["status"]) for entry in logs if entry["event"] == "audit"]
        assert ("anyone", 401) in audited
        assert len(audited) == 5
        first = client.get("/audit", params={"limit": 3}, headers=ADMIN).json()
        rest = client.get("/audit", params={"limit": 3, "cursor": first["next"]}, headers=ADMIN).json()
        assert ([entry["action"] for entry in rest["items"]], rest["next"]) == (["POST /scenes"], None)


def test_the_audit_log_is_bounded_and_holds_nothing_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(max_audit_entries=3) as gallery:
        scene = gallery.add(random_field(8, 8))
        for number in range(5):
            gallery.client.patch(f"/scenes/{scene}", json={"title": str(number)})
        assert len(gallery.client.get("/audit").json()["items"]) == 3

        def full(*_: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(gallery.client.app.state.audit, "add", full)  # type: ignore[attr-defined]
        assert gallery.client.delete(f"/scenes/{scene}").status_code == 204


def test_an_unforeseen_error_is_written_down(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("x")

    with make() as gallery:
        monkeypatch.setattr(gallery.store, "update", broken)
        with capture_logs():
            assert gallery.client.patch("/scenes/x", json={"title": "x"}).status_code == 500
        assert gallery.client.get("/audit").json()["items"][0]["status"] == 500


def test_an_old_scene_belongs_to_nobody(make: Make) -> None:
    with make() as gallery:
        scene = gallery.add(random_field(8, 8), status=Status.READY)
        _, text = keys_of(gallery).create("x", Scope.WRITE)
        assert gallery.client.delete(f"/scenes/{scene}", headers=bearer(text)).status_code == 403


def test_the_page_and_its_manual_are_for_everybody(make: Make) -> None:
    with make(admin_key=ADMIN_KEY) as gallery:
        for path in ("/", "/docs", "/openapi.json", "/healthz"):
            assert gallery.client.get(path, headers=bearer("garbage")).status_code == 200, path
