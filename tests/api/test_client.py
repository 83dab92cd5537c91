"""The client sees what the service has, and raises what the service refuses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import Gallery, random_field

from acorn_svc import client as client_module
from acorn_svc.client import Client
from acorn_svc.errors import (
    AcornError,
    BadRequest,
    Conflict,
    FitFailed,
    NotFound,
    Unavailable,
    UnsupportedMedia,
)
from acorn_svc.field.kinds import as_image
from acorn_svc.field.shape import ShapeField
from acorn_svc.formats.container import field_to_bytes, read_field
from acorn_svc.store.scenes import Status

WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module")
def client(live_gallery: Gallery) -> Client:
    return Client(str(live_gallery.client.base_url))


def test_a_file_goes_up_with_progress_and_comes_back(client: Client, tmp_path: Path) -> None:
    content = field_to_bytes(random_field(WIDTH, HEIGHT))
    (tmp_path / "sent.acorn").write_bytes(content)
    told: list[tuple[int, int]] = []
    scene = client.upload(
        tmp_path / "sent.acorn", lambda sent, total: told.append((sent, total)), title="Noise"
    )
    assert (scene.status, scene.title, scene.width, scene.height) == ("ready", "Noise", WIDTH, HEIGHT)
    assert told[-1] == (len(content), len(content))
    assert told == sorted(told)
    client.download(scene.id, tmp_path / "back.acorn")
    assert (tmp_path / "back.acorn").read_bytes() == content


def test_pictures_and_values_are_those_of_the_field(client: Client, live_gallery: Gallery) -> None:
    field = as_image(read_field(field_to_bytes(random_field(WIDTH, HEIGHT))))
    scene_id = live_gallery.add(field)
    box, size = (10.5, 8.0, 32.0, 16.0), (64, 32)
    assert np.array_equal(client.render(scene_id), field.render(None, (WIDTH, HEIGHT)))
    assert np.array_equal(client.render(scene_id, box, size), field.render(box, size))
    points = np.array([[0.5, 0.5], [40.25, 20.0]])
    assert np.array_equal(client.query(scene_id, points, pixel_size=2), field.query(points, 2))


@pytest.mark.parametrize(("channels", "bit_depth"), [(1, 8), (4, 8), (3, 16)])
def test_pictures_have_the_channels_and_depth_of_the_image(
    client: Client, live_gallery: Gallery, channels: int, bit_depth: int
) -> None:
    field = random_field(WIDTH, HEIGHT, channels, bit_depth)
    picture = client.render(live_gallery.add(field))
    assert picture.shape == (HEIGHT, WIDTH, channels)
    assert picture.dtype == np.dtype(f"u{bit_depth // 8}")


def test_a_shape_is_queried_and_its_mesh_written(
    client: Client, live_gallery: Gallery, ball_field: ShapeField, tmp_path: Path
) -> None:
    scene_id = live_gallery.add(ball_field)
    values = client.query(scene_id, [[116.5, -6.0, 18.0]])
    assert values.shape == (1, 4)
    assert values[0, 0] < 0
    client.mesh(scene_id, tmp_path / "ball.ply", resolution=32)
    assert (tmp_path / "ball.ply").read_bytes().startswith(b"ply")


def test_all_scenes_are_listed_over_many_pages(
    client: Client, live_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MAX_PAGE", 2)
    field = random_field(8, 8)
    added = [live_gallery.add(field) for _ in range(5)]
    listed = [scene.id for scene in client.scenes()]
    assert listed[: len(added)] == added[::-1]
    client.delete(added[0])
    with pytest.raises(NotFound, match="no scene"):
        client.scene(added[0])


def test_refusals_are_the_errors_of_the_service(client: Client, live_gallery: Gallery) -> None:
    scene_id = live_gallery.add(random_field(WIDTH, HEIGHT))
    with pytest.raises(UnsupportedMedia):
        client.upload(b"not a picture at all")
    with pytest.raises(BadRequest, match="image"):
        client.render(scene_id, (0, 0, 1e6, 10))
    with pytest.raises(AcornError) as refused:
        client.query(scene_id, np.zeros((100_001, 2)))
    assert (refused.value.limit, refused.value.value) == ("max_query_points", 100_000)


def test_waiting_ends_as_the_fit_does(client: Client, live_gallery: Gallery) -> None:
    field = random_field(8, 8)
    told: list[str] = []
    ready = live_gallery.add(field)
    assert client.wait(ready, lambda scene: told.append(scene.status)).id == ready
    assert told == ["ready"]
    with pytest.raises(FitFailed):
        client.wait(live_gallery.add(field, status=Status.FAILED))
    with pytest.raises(Conflict, match="cancelled"):
        client.wait(live_gallery.add(field, status=Status.CANCELLED))
    with pytest.raises(TimeoutError, match="fitting"):
        client.wait(live_gallery.add_empty(), seconds=0)


@contextmanager
def answering(respond: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of something that takes one connection and answers as `respond` does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                respond(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 9\r\n\r\n<html>no!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it",
    ],
    ids=["nothing", "what a proxy says", "a part"],
)
def test_a_service_that_breaks_off_is_unavailable(answer: bytes, tmp_path: Path) -> None:
    with answering(lambda connection: connection.sendall(answer)) as url:
        (tmp_path / "kept").write_bytes(b"before")
        with pytest.raises(Unavailable):
            Client(url).download("x", tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == b"before"


def test_waiting_bears_a_service_that_is_away_for_a_moment(
    client: Client, live_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene_id = live_gallery.add(random_field(8, 8))
    look, looks = client.scene, iter([Unavailable("away")])

    def sometimes(wanted: str) -> object:
        for refusal in looks:
            raise refusal
        return look(wanted)

    monkeypatch.setattr(client, "scene", sometimes)
    assert client.wait(scene_id).status == "ready"
