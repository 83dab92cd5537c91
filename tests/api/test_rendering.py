"""The bounds of the renderer: memory, places, waiting."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from conftest import Gallery, random_field
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from acorn_svc.api import rendering
from acorn_svc.api.rendering import OPEN_ATTEMPTS, Cache, Renderer
from acorn_svc.errors import NotFound
from acorn_svc.formats.container import read_field
from acorn_svc.settings import Settings
from acorn_svc.store.database import SAFE_WAL
from acorn_svc.store.scenes import KEPT_SNAPSHOTS, SceneHead, SceneStore, Snapshot, Status

CAPACITY = 100


async def nothing(*_: Any) -> Any:
    """Send, or receive, nothing."""


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 150))))
def test_a_cache_keeps_the_newest_that_fit(steps: list[tuple[int, int]]) -> None:
    cache: Cache[int, int] = Cache(CAPACITY)
    for key, size in steps:
        cache.put(key, size, size)
        assert cache.used <= CAPACITY
        assert cache.get(key) == (size if size <= CAPACITY else None)
    kept = [size for key in range(10) if (size := cache.get(key)) is not None]
    assert sum(kept) == cache.used


def test_a_cache_drops_what_was_used_longest_ago() -> None:
    cache: Cache[str, str] = Cache(2)
    cache.put("a", "A", 1)
    cache.put("b", "B", 1)
    assert cache.get("a") == "A"
    cache.put("c", "C", 1)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == ("A", None, "C")


def test_what_is_too_large_for_a_cache_drives_nothing_out() -> None:
    cache: Cache[str, str] = Cache(2)
    cache.put("a", "A", 2)
    cache.put("b", "B", 3)
    assert (cache.get("a"), cache.get("b")) == ("A", None)


def test_the_newest_may_be_larger_than_a_cache_until_the_next_one_comes() -> None:
    cache: Cache[str, str] = Cache(2, keeps_newest=True)
    cache.put("a", "A", 2)
    cache.put("b", "B", 3)
    assert (cache.get("a"), cache.get("b"), cache.used) == (None, "B", 3)
    cache.put("c", "C", 1)
    assert (cache.get("b"), cache.get("c"), cache.used) == (None, "C", 1)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that fields have been read from."""
    paths: list[Path] = []
    monkeypatch.setattr(
        rendering, "read_field", lambda path, limits: (paths.append(path), read_field(path, limits))[1]
    )
    return paths


def test_a_field_in_use_is_in_memory_once_however_large_it_is(gallery: Gallery, reads: list[Path]) -> None:
    renderer = Renderer(gallery.store, Settings(data=Path("unused"), field_cache_bytes=1))
    one, other = (anyio.run(renderer.view, gallery.add(random_field(16, 16, seed=seed))) for seed in (1, 2))
    _, in_use = renderer.open(one)
    renderer.open(other)  # the cache holds this one alone now
    assert renderer.open(one)[1] is in_use
    assert len(reads) == 2
    del in_use
    renderer.open(one)  # the newest, which the cache keeps
    assert len(reads) == 2
    renderer.open(other)
    renderer.open(one)  # what neither the cache nor anybody else holds is gone
    assert len(reads) == 4


def test_those_on_their_way_are_counted(tmp_path: Path) -> None:
    renderer = Renderer(
        SceneStore(Settings(data=tmp_path)),
        Settings(data=tmp_path, max_in_flight_renders=1, render_queue=1),
    )
    first, second, third = (
        renderer.unknown_picture(b"/iiif/scene/%d,0,8,8/max/0/default.jpg?query" % number)
        for number in range(3)
    )
    assert first is not None
    assert second is not None
    assert third is not None
    seen = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(renderer.refuses(third))
        if scope["fails"]:
            raise NotFound("There is no such scene.")

    async def main() -> None:
        coming = [
            renderer.expecting(first, app),
            renderer.expecting(first, app),
            renderer.expecting(second, app),
        ]
        assert renderer.refuses(third)
        assert not renderer.refuses(first)  # the same render, so it takes no further place
        for number, counted in enumerate(coming):
            with pytest.raises(NotFound) if number == 0 else nullcontext():
                await counted({"state": {}, "fails": number == 0}, nothing, nothing)

    anyio.run(main)
    assert seen == [True, True, False]
    assert not renderer.refuses(third)


def test_a_picture_that_has_left_the_cache_is_unknown(gallery: Gallery) -> None:
    renderer = gallery.client.app.state.renderer  # type: ignore[attr-defined]
    path = f"/iiif/{gallery.add(random_field(16, 16))}/full/8,8/0/default.png"
    assert renderer.unknown_picture(path.encode()) == path.encode()
    gallery.client.get(path).raise_for_status()
    assert renderer.unknown_picture(path.encode()) is None
    tiles = renderer.caches["tiles"]
    tiles.put("all the room", b"", tiles.capacity)
    assert renderer.unknown_picture(path.encode()) == path.encode()


READERS = [
    ("GET", "/iiif/{id}/full/8,8/0/default.png"),
    ("GET", "/dzi/{id}_files/4/0_0.png"),
    ("GET", "/scenes/{id}/region"),
    ("GET", "/scenes/{id}/tree"),
    ("POST", "/scenes/{id}/query"),
]


def read(gallery: Gallery, method: str, path: str, scene_id: str) -> httpx2.Response:
    body = {"points": [[3, 4]]} if method == "POST" else None
    return gallery.client.request(method, path.format(id=scene_id), json=body)


def overtake(gallery: Gallery, patch: pytest.MonkeyPatch, times: int) -> None:
    """Let the next snapshots that are looked up be replaced at that moment, before they can be read."""
    look_up, left = gallery.store.snapshot_of, iter(range(times))

    def overtaken(scene: SceneHead) -> Snapshot:
        snapshot = look_up(scene)
        if next(left, None) is not None:
            for _ in range(KEPT_SNAPSHOTS):
                gallery.publish(scene.id, random_field(16, 16, seed=snapshot.version))
        return snapshot

    patch.setattr(gallery.store, "snapshot_of", overtaken)


@pytest.mark.parametrize(("method", "path"), READERS)
def test_whoever_is_overtaken_by_the_fit_gets_the_newest_snapshot(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    scene_id = gallery.add(random_field(16, 16), status=Status.FITTING)
    gallery.publish(scene_id, random_field(16, 16))  # the first was also the original, which stays
    with monkeypatch.context() as patch:
        overtake(gallery, patch, times=2)
        overtaken = read(gallery, method, path, scene_id)
    calm = read(gallery, method, path, scene_id)
    assert overtaken.status_code == 200, overtaken.text
    assert overtaken.content == calm.content
    assert overtaken.headers.get("etag") == calm.headers.get("etag")


def test_whoever_is_overtaken_again_and_again_is_asked_to_come_back(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene_id = gallery.add(random_field(16, 16), status=Status.FITTING)
    gallery.publish(scene_id, random_field(16, 16))
    overtake(gallery, monkeypatch, times=OPEN_ATTEMPTS)
    answer = read(gallery, *READERS[0], scene_id)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_a_scene_that_is_deleted_before_it_is_read_is_not_found(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene_id = gallery.add(random_field(16, 16, seed=7))  # no other scene has the same file
    snapshot = gallery.store.snapshot(scene_id)
    monkeypatch.setattr(gallery.store, "snapshot_of", lambda _: (gallery.store.delete(scene_id), snapshot)[1])
    assert read(gallery, *READERS[0], scene_id).status_code == 404


# Looking scenes up without waiting


def test_both_ways_of_looking_a_scene_up_see_the_same(gallery: Gallery) -> None:
    for scene_id in (
        gallery.add(random_field(24, 16, channels=1), rights="https://example.org/rights"),
        gallery.add(random_field(16, 24, channels=4), status=Status.FITTING),
        gallery.add_empty(),
    ):
        assert gallery.store.head_now(scene_id) == gallery.store.head(scene_id)
        scene = gallery.store.get(scene_id)
        head = gallery.store.head_now(scene_id)
        assert all(getattr(head, field.name) == getattr(scene, field.name) for field in fields(head))
        assert head.status is scene.status


def test_looking_up_sees_each_change_at_once(gallery: Gallery) -> None:
    scene_id = gallery.add(random_field(16, 16), status=Status.FITTING)
    for version in range(2, 5):
        gallery.publish(scene_id, random_field(16, 16, seed=version))
        assert gallery.store.head_now(scene_id).version == version
    gallery.store.update(scene_id, rights="mine")
    assert gallery.store.head_now(scene_id).rights == "mine"
    gallery.store.delete(scene_id)
    for look_up in (gallery.store.head_now, gallery.store.head):
        with pytest.raises(NotFound):
            look_up(scene_id)


def test_whoever_looks_while_someone_commits_waits_outside_the_event_loop(gallery: Gallery) -> None:
    scene_id = gallery.add(random_field(16, 16))
    path = f"/iiif/{scene_id}/full/max/0/default.jpg"
    with locked_out(gallery) as let_go:
        # Readers of a write-ahead log never wait.
        waits = sqlite3.sqlite_version_info < SAFE_WAL
        with pytest.raises(BlockingIOError) if waits else nullcontext():
            gallery.store.head_now(scene_id)
        timer = threading.Timer(0.2, let_go)
        timer.start()
        answer = gallery.client.get(path)
        timer.join()
    assert answer.status_code == 200, answer.text
    assert gallery.store.head_now(scene_id).version == 1


@contextmanager
def locked_out(gallery: Gallery) -> Iterator[Callable[[], None]]:
    """Nobody can read the database until what is yielded is called, as during a commit."""
    path = gallery.store.database.engine.url.database
    assert path is not None
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN EXCLUSIVE")
    try:
        yield lambda: writer.execute("ROLLBACK").close()
    finally:
        writer.close()
