"""Every route by every kind of caller: exactly the status that the table says."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from conftest import Gallery, random_field
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Response
from structlog.testing import capture_logs

from acorn_svc.api import access, signing
from acorn_svc.api.app import create_app
from acorn_svc.settings import Settings
from acorn_svc.store.keys import SECRET_CHARACTERS, KeyStore, Scope

# What a route asks for, and what it answers to whoever has that. The pictures' scene is an image whose fit
# is over, so that some answers say that there is no surface, or nothing to cancel.
ROUTES = {
    "GET /openapi.json": ("nothing", 200),
    "GET /healthz": ("nothing", 200),
    "GET /readyz": ("nothing", 200),
    "GET /session": ("greeting", 200),
    "POST /session": ("greeting", 422),
    "DELETE /session": ("greeting", 204),
    "GET /scenes": ("greeting", 200),
    "GET /iiif/{id}": ("see", 303),
    "GET /iiif/{id}/info.json": ("see", 200),
    "GET /iiif/{id}/{region}/{size}/{rotation}/{file}": ("see", 200),
    "GET /dzi/{id}.dzi": ("see", 200),
    "GET /dzi/{id}_files/{level}/{tile}": ("see", 200),
    "GET /tiles3d/{id}/tileset.json": ("see", 400),
    "GET /tiles3d/{id}/subtrees/{level:int}.{x:int}.{y:int}.{z:int}.subtree": ("see", 400),
    "GET /tiles3d/{id}/content/{level:int}/{x:int}/{y:int}/{z:int}.glb": ("see", 400),
    "GET /scenes/{id}": ("see", 200),
    "GET /scenes/{id}/events": ("see", 200),
    "GET /scenes/{id}/file": ("see", 200),
    "GET /scenes/{id}/tree": ("see", 200),
    "GET /scenes/{id}/region": ("see", 200),
    "GET /scenes/{id}/mesh": ("see", 400),
    "GET /scenes/{id}/thumbnail.webp": ("see", 400),
    "POST /scenes/{id}/query": ("see", 415),
    "GET /scenes/{id}/original": ("read", 200),
    "GET /metrics": ("read", 200),
    "POST /scenes": ("write", 422),
    "POST /uploads": ("write", 412),
    "GET /uploads/{id}": ("upload", 200),
    "PATCH /uploads/{id}": ("upload", 412),
    "DELETE /uploads/{id}": ("upload", 412),
    "PATCH /scenes/{id}": ("change", 200),
    "DELETE /scenes/{id}": ("change", 204),
    "POST /scenes/{id}/cancel": ("change", 409),
    "POST /scenes/{id}/pause": ("change", 409),
    "POST /scenes/{id}/resume": ("change", 409),
    "POST /scenes/{id}/retry": ("change", 409),
    "POST /scenes/{id}/links": ("change", 201),
    "GET /keys": ("admin", 200),
    "POST /keys": ("admin", 201),
    "DELETE /keys/{id}": ("admin", 204),
    "GET /audit": ("admin", 200),
}
NEEDS = ("nothing", "greeting", "see", "read", "write", "upload", "change", "admin")
OK = 0
"""The route's own answer."""
CALLERS = {
    #                            nothing greeting see read write upload change admin
    "nobody":                     (OK, OK, 401, 401, 401, 401, 401, 401),
    "nobody, to a public scene":  (OK, OK, OK, 401, 401, 401, 401, 401),
    "a key in the query":         (OK, OK, 401, 401, 401, 401, 401, 401),
    "a garbled cookie":           (OK, OK, 401, 401, 401, 401, 401, 401),
    "garbage":                    (OK, 401, 401, 401, 401, 401, 401, 401),
    "a wrong secret":             (OK, 401, 401, 401, 401, 401, 401, 401),
    "another kind of proof":      (OK, 401, 401, 401, 401, 401, 401, 401),
    "revoked":                    (OK, 401, 401, 401, 401, 401, 401, 401),
    "expired":                    (OK, 401, 401, 401, 401, 401, 401, 401),
    "garbage, to a public scene": (OK, 401, 401, 401, 401, 401, 401, 401),
    "two keys":                   (OK, 400, 400, 400, 400, 400, 400, 400),
    "read":                       (OK, OK, OK, OK, 403, 403, 403, 403),
    "another one's write":        (OK, OK, OK, OK, OK, 404, 403, 403),
    "write":                      (OK, OK, OK, OK, OK, OK, OK, 403),
    "admin":                      (OK, OK, OK, OK, OK, OK, OK, OK),
    "write, by cookie":           (OK, OK, OK, OK, OK, OK, OK, 403),
    "a link":                     (OK, OK, OK, 403, 403, 403, 403, 403),
    "a link to another scene":    (OK, OK, 404, 403, 403, 403, 403, 403),
    "a forged link":              (OK, 403, 403, 403, 403, 403, 403, 403),
    "an expired link":            (OK, 403, 403, 403, 403, 403, 403, 403),
}  # fmt: skip
PROOFS = ("key", "session")
MANUAL: dict[str, list[dict[str, list[str]]]] = {
    "nothing": [],
    "greeting": [{}, *({proof: []} for proof in PROOFS)],
    "see": [{}, *({proof: []} for proof in PROOFS)],
    "read": [{proof: ["read"]} for proof in PROOFS],
    "write": [{proof: ["write"]} for proof in PROOFS],
    "upload": [{proof: ["write"]} for proof in PROOFS],
    "change": [{proof: ["write"]} for proof in PROOFS],
    "admin": [{proof: ["admin"]} for proof in PROOFS],
}
PARAMETERS = {
    "region": "full",
    "size": "max",
    "rotation": "0",
    "file": "default.jpg",
    "level": "0",
    "tile": "0_0.jpg",
    "{level:int}": "0",
    "{x:int}": "0",
    "{y:int}": "0",
    "{z:int}": "0",
}
BODIES: dict[str, dict[str, Any]] = {
    "POST /scenes": {"params": {"preset": "none"}},
    "PATCH /scenes/{id}": {"json": {"title": "x"}},
    "POST /keys": {"json": {"name": "x", "scope": "read"}},
    "POST /session": {"json": {}},
}
HEADS = {"/uploads/{id}": 412}
"""What HEAD answers where that isn't what GET does: it speaks tus, and asks for its version."""
SETTINGS = {"max_image_pixels": 1_000_000, "max_keys": 10_000}


@dataclass(frozen=True)
class Site:
    """A service with keys, and a scene that one of them has made."""

    app: FastAPI
    client: TestClient
    gallery: Gallery
    texts: dict[str, str]
    owner: str

    def scene(self, *, public: bool = False) -> str:
        """A new scene of the key `write`."""
        scene_id = self.gallery.add(random_field(8, 8))
        self.gallery.store.update(scene_id, owner=self.owner, public=public)
        return scene_id

    def upload(self) -> str:
        """A new upload that the key `write` has begun."""
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "9", **bearer(self.texts["write"])}
        answer = self.client.post("/uploads", headers=headers)
        return str(answer.headers["location"]).rpartition("/")[2]

    def disposable_key(self) -> str:
        keys: KeyStore = self.app.state.keys
        return keys.create("x", Scope.READ)[0].id


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    app = create_app(Settings(data=tmp_path_factory.mktemp("data"), **SETTINGS))
    keys: KeyStore = app.state.keys
    made = {name: keys.create(name, scope) for name, scope in {
        "read": Scope.READ, "write": Scope.WRITE, "other": Scope.WRITE, "admin": Scope.ADMIN,
        "revoked": Scope.ADMIN,
    }.items()}  # fmt: skip
    made["expired"] = keys.create("expired", Scope.ADMIN, timedelta(seconds=-1))
    keys.revoke(made["revoked"][0].id)
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        yield Site(
            app,
            client,
            Gallery(client, app.state.store),
            {name: text for name, (_, text) in made.items()},
            f"key:{made['write'][0].id}",
        )


@pytest.fixture(scope="module")
def scenes(site: Site) -> dict[bool, str]:
    """A private scene and a public one."""
    return {public: site.scene(public=public) for public in (False, True)}


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def asking(site: Site, caller: str, scene_id: str) -> tuple[str, dict[str, Any]]:
    """What `caller` puts before the path, and what else the request has."""
    texts, secret = site.texts, site.app.state.keys.signing_secret()
    wrong = f"{texts['admin'][:-1]}{'0' if texts['admin'][-1] != '0' else '1'}"
    headers = {
        "garbage": bearer("garbage"),
        "garbage, to a public scene": bearer("garbage"),
        "a wrong secret": bearer(wrong),
        "another kind of proof": {"Authorization": "Basic YWRtaW46YWRtaW4="},
        "a garbled cookie": {"Cookie": "acorn_session=0.0.0"},
        "another one's write": bearer(texts["other"]),
    }
    links = {
        "a link": (scene_id, 60),
        "a link to another scene": ("0" * 26, 60),
        "an expired link": (scene_id, -1),
        "a forged link": (scene_id, 60),
    }
    if caller in headers:
        return "", {"headers": headers[caller]}
    if caller == "a key in the query":
        return "", {
            "params": {"token": texts["admin"], "key": texts["admin"], "access_token": texts["admin"]}
        }
    if caller == "two keys":
        return "", {"headers": [*bearer(texts["read"]).items(), *bearer(texts["admin"]).items()]}
    if caller == "write, by cookie":
        key = site.app.state.keys.get(site.owner.removeprefix("key:"))
        signed = signing.sign(secret, f"session {key.digest}", key.id, 60)
        return "", {"headers": {"Cookie": f"acorn_session={signed}", "Sec-Fetch-Site": "same-origin"}}
    if caller in links:
        subject, seconds = links[caller]
        signing_secret = b"x" if caller == "a forged link" else secret
        return f"/s/{signing.sign(signing_secret, 'link', subject, seconds)}", {}
    return "", {"headers": bearer(texts[caller])} if caller in texts else {}


def address(path: str, scene_id: str) -> str:
    for name, value in {**PARAMETERS, "id": scene_id}.items():
        path = path.replace(name if name.startswith("{") else f"{{{name}}}", value)
    return path


def check_body(answer: Response, secrets: list[str]) -> None:
    """An error has the one shape, and tells nothing that it shouldn't."""
    if answer.request.method != "HEAD":
        assert set(answer.json()["error"]) == {"code", "message", "limit", "value"}
    for secret in ("/tmp", "Traceback", "acorn_svc", "SELECT ", *secrets):
        assert secret not in answer.text
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")


def expected(caller: str, need: str, answer: int) -> int:
    return CALLERS[caller][NEEDS.index(need)] or answer


def test_the_table_knows_every_route(site: Site) -> None:
    routes = {
        f"{method} {path}"
        for path, methods in access.routes_of(site.app)
        for method in methods - {"HEAD", "OPTIONS"}
    }
    page = {route for route in routes if route not in access.RULES}
    assert routes - page == set(ROUTES)
    # What needs no rule is the page, its manual and their files.
    assert {"GET /", "GET /docs"} <= page
    assert all(route.startswith("GET /") and "{" not in route for route in page)
    assert set(access.RULES) == set(ROUTES)


def test_a_route_without_a_rule_stops_the_service() -> None:
    app = FastAPI(docs_url=None, redoc_url=None)
    app.get("/new")(lambda: None)
    with pytest.raises(KeyError, match="GET /new"):
        access.rules_of(app)


def test_the_manual_says_what_every_route_needs(site: Site) -> None:
    manual = site.client.get("/openapi.json").json()
    schemes = manual["components"]["securitySchemes"]
    assert set(schemes) == set(PROOFS)
    assert (schemes["key"]["scheme"], schemes["session"]["name"]) == ("bearer", "acorn_session")
    needs = {re.sub(r":int\b", "", route): MANUAL[need] for route, (need, _) in ROUTES.items()}
    for path, operations in manual["paths"].items():
        for method, operation in operations.items():
            name = f"{method.upper().replace('HEAD', 'GET')} {path}"
            assert operation["security"] == ([] if method == "options" else needs[name]), name


@pytest.mark.parametrize("route", ROUTES)
def test_every_caller_gets_what_the_table_says(
    site: Site, scenes: dict[bool, str], route: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    method, path = route.split(" ")
    need, success = ROUTES[route]
    with capture_logs() as logs:
        for caller in CALLERS:
            scene_id = scenes["public" in caller]
            if route == "DELETE /scenes/{id}":
                scene_id = site.scene(public="public" in caller)
            prefix, more = asking(site, caller, scene_id)
            subject = scene_id
            if path.startswith("/keys/"):
                subject = site.disposable_key()
            elif path.startswith("/uploads/"):
                subject = site.upload()
            sent = [*site.texts.values(), *([prefix.removeprefix("/s/")] if prefix else [])]
            answer = site.client.request(
                method, prefix + address(path, subject), **{**BODIES.get(route, {}), **more}
            )
            assert answer.status_code == expected(caller, need, success), (caller, answer.text)
            if answer.status_code >= 400:
                check_body(answer, sent)
    # The client tells of its own requests.
    told = f"{logs} {[r.getMessage() for r in caplog.records if not r.name.startswith('httpx2')]}"
    assert not [secret for secret in site.texts.values() if secret in told or secret[-52:] in told]
    assert "/s/" not in told


def strictest(app: FastAPI, path: str) -> str:
    needs = [need for route, (need, _) in ROUTES.items() if route.endswith(f" {path}")]
    return max(needs, key=NEEDS.index)


def methods_of(app: FastAPI, path: str) -> set[str]:
    return {method for other, methods in access.routes_of(app) if other == path for method in methods}


@pytest.mark.parametrize("path", sorted({route.split(" ")[1] for route in ROUTES}))
def test_other_methods_open_nothing(site: Site, scenes: dict[bool, str], path: str) -> None:
    """HEAD is as GET, OPTIONS for everybody; a method that there isn't needs what the strictest one does."""
    there = methods_of(site.app, path)
    for caller in ("nobody", "nobody, to a public scene", "revoked", "read", "write", "admin", "a link"):
        scene_id = scenes["public" in caller]
        prefix, more = asking(site, caller, scene_id)
        url = prefix + address(path, site.upload() if path.startswith("/uploads/") else scene_id)
        options = site.client.options(url, **more).status_code
        assert options == (204 if "OPTIONS" in there else 405), caller
        if "HEAD" in there:
            need, success = ROUTES[f"GET {path}"]
            success = HEADS.get(path, success)
        else:
            need, success = strictest(site.app, path), 405
        answer = site.client.head(url, **more)
        assert answer.status_code == expected(caller, need, success), caller
        answer = site.client.request("PUT", url, **more)
        assert answer.status_code == expected(caller, strictest(site.app, path), 405), caller


def test_a_disguised_method_needs_what_the_strictest_one_does(site: Site, scenes: dict[bool, str]) -> None:
    disguise = {"X-HTTP-Method-Override": "DELETE", **bearer(site.texts["read"])}
    for method in ("GET", "POST", "OPTIONS"):
        answer = site.client.request(method, f"/scenes/{scenes[False]}", headers=disguise)
        assert answer.status_code == 403, method


@pytest.mark.torture
def test_how_long_a_wrong_key_takes_says_nothing(
    site: Site, amount: Callable[[int, int], int], tell: Callable[[str, object], None]
) -> None:
    """The time for a key that begins as a right one does is that for any other: no correlation."""
    right = site.texts["admin"]
    samples: list[tuple[int, float]] = []
    for number in range(amount(200, 10_000)):
        # The form of a key is no secret; what isn't of it is refused without a look.
        shared = len(right) - SECRET_CHARACTERS + number * 7919 % SECRET_CHARACTERS
        wrong = right[:shared] + ("0" if right[shared] != "0" else "1") * (len(right) - shared)
        site.app.state.callers.ring.forget()
        start = time.perf_counter()
        answer = site.client.get("/session", headers=bearer(wrong))
        samples.append((shared, time.perf_counter() - start))
        assert answer.status_code == 401
    correlation = abs(rank_correlation(samples))
    tell("wrong keys tried", len(samples))
    tell("correlation of their time with the right part", f"{correlation:.3f}")
    if amount(0, 1):  # a few samples prove nothing; of 10,000 without any, one in a million is above 0.05
        assert correlation < 0.06


def rank_correlation(samples: list[tuple[int, float]]) -> float:
    """Spearman's, which a few slow answers do not sway."""

    def ranks(values: list[float]) -> list[float]:
        order = sorted(range(len(values)), key=values.__getitem__)
        ranked = [0.0] * len(values)
        for rank, index in enumerate(order):
            ranked[index] = float(rank)
        return ranked

    first, second = ranks([float(shared) for shared, _ in samples]), ranks([took for _, took in samples])
    mean = (len(samples) - 1) / 2
    above = sum((a - mean) * (b - mean) for a, b in zip(first, second, strict=True))
    return above / sum((a - mean) ** 2 for a in first)
