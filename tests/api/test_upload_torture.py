"""Many clients that upload at once, and badly: what the service has acknowledged is what it has."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx2
import pytest
from conftest import served
from fastapi import FastAPI
from tus_client import Tus

from acorn_svc.api.app import create_app
from acorn_svc.jobs.inspection import Inspection, Inspector
from acorn_svc.settings import GIB, MIB, Settings

pytestmark = pytest.mark.torture

Amount = Callable[[int, int], int]
Tell = Callable[[str, object], None]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """A server that takes everything for an image: it is not the check that is tried here."""
    image = Inspection("image", "png", width=50, height=40, channels=3, bit_depth=8)
    monkeypatch.setattr(Inspector, "inspect", lambda _self, _path: image)
    return create_app(Settings(data=tmp_path, max_unfinished_bytes=64 * GIB, max_queued_jobs=100_000))


@pytest.fixture
def network(app: FastAPI) -> Iterator[httpx2.Client]:
    """Connections to the server; threads may share them."""
    with served(app) as url, httpx2.Client(base_url=url, timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def clients(amount: Amount) -> int:
    return amount(4, 16)


@pytest.fixture(scope="module")
def size(amount: Amount) -> int:
    return amount(4, 64) * MIB


class Uploader:
    """One client with a mind of its own."""

    def __init__(self, network: httpx2.Client, seed: int) -> None:
        self.tus = Tus(network)
        self.random = random.Random(seed)
        self.sent = 0

    def upload(self, path: str, content: bytes) -> str:
        """Send `content` to `path` in pieces of all sizes, with mistakes; returns the scene's URL."""
        known = self.tus.offset(path)
        while known < len(content):
            piece = content[known : known + self.random.randrange(1, len(content))]
            deed = self.random.randrange(4)
            if deed == 0:
                self.tus.append_and_leave(path, known, piece)
            elif deed == 1:
                known = self._err(path, known, content)
                continue
            else:
                answer = self.tus.append(path, known, piece)
                assert answer.status_code in (204, 409), answer.text
                # Who shares the upload may have sent more by then.
                assert answer.status_code == 409 or int(answer.headers["upload-offset"]) >= known + len(piece)
            self.sent += 1
            before, known = known, self.tus.offset(path)
            assert known >= before, "what was acknowledged is gone"
        outcome = self.tus.outcome(path)
        while outcome["status"] == "checking":
            outcome = self.tus.outcome(path)
        assert outcome["status"] == "done", outcome
        return str(outcome["scene"])

    def _err(self, path: str, known: int, content: bytes) -> int:
        """Begin at a wrong offset; returns the right one."""
        wrong = self.random.choice([offset for offset in (0, known - 1, known + 1) if 0 <= offset != known])
        answer = self.tus.append(path, wrong, content[wrong : wrong + 1])
        if answer.status_code == 204:  # an earlier request has only just been stored up to there
            return wrong + 1
        assert answer.status_code == 409
        right = int(answer.headers["upload-offset"])
        assert right >= known
        return right

    def digest_of(self, scene: str) -> str:
        """Of the original that the service gives out."""
        digest = hashlib.sha256()
        with self.tus.client.stream("GET", f"{scene}/original") as answer:
            assert answer.status_code == 200
            for chunk in answer.iter_bytes():
                digest.update(chunk)
        return digest.hexdigest()


def at_once(count: int, work: Callable[[int], str]) -> list[str]:
    """What `work` returns for each number, done by as many threads."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def share(network: httpx2.Client, path: str, content: bytes, number: int) -> str:
    return Uploader(network, number).upload(path, content)


def originals(app: FastAPI) -> list[Path]:
    return list((app.state.settings.data / "blobs" / "originals").iterdir())


def test_uploads_that_break_and_err_arrive_as_they_were_sent(
    network: httpx2.Client, app: FastAPI, clients: int, size: int, amount: Amount, tell: Tell
) -> None:
    rounds = amount(1, 10)
    requests = []

    def work(number: int) -> str:
        client = Uploader(network, number)
        for _ in range(rounds):
            content = client.random.randbytes(size)
            scene = client.upload(client.tus.new(size), content)
            assert client.digest_of(scene) == hashlib.sha256(content).hexdigest()
            client.tus.client.delete(scene)
        requests.append(client.sent)
        return ""

    at_once(clients, work)
    assert originals(app) == []
    assert list((app.state.settings.data / "uploads").iterdir()) == []
    tell("uploads that broke and erred", clients * rounds)
    tell("parts they were sent in", sum(requests))


def test_clients_that_share_an_upload_make_one_scene(
    network: httpx2.Client, clients: int, size: int, amount: Amount, tell: Tell
) -> None:
    # More would take the turn of each other before much has come of it, and be at it for minutes.
    sharing, rounds = min(clients, 8), amount(1, 10)
    for number in range(rounds):
        content = random.Random(number).randbytes(size)
        first = Uploader(network, 0)
        path = first.tus.new(size)
        scenes = at_once(sharing, partial(share, network, path, content))
        assert len(set(scenes)) == 1
        assert first.digest_of(scenes[0]) == hashlib.sha256(content).hexdigest()
    assert first.tus.client.get("/scenes").json()["total"] == rounds
    tell(f"uploads that {sharing} clients shared", rounds)


def test_the_same_content_is_kept_once_however_it_comes(
    network: httpx2.Client, app: FastAPI, clients: int, size: int, amount: Amount, tell: Tell
) -> None:
    content = random.Random(0).randbytes(size)
    rounds = amount(1, 10)

    def work(number: int) -> str:
        client = Uploader(network, number)
        if number % 2:
            return client.upload(client.tus.new(size), content)
        answer = client.tus.client.post("/scenes", content=content)
        assert answer.status_code == 201, answer.text
        return str(answer.headers["location"])

    for _ in range(rounds):
        scenes = at_once(clients, work)
        assert len(set(scenes)) == clients
        assert len(originals(app)) == 1
        client = Uploader(network, 0)
        for left in reversed(range(clients)):
            assert client.digest_of(scenes[left]) == hashlib.sha256(content).hexdigest()
            client.tus.client.delete(scenes[left])
            assert len(originals(app)) == (left > 0)
    tell("uploads of the same content", clients * rounds)


def test_who_reads_a_scene_that_is_deleted_gets_all_of_it_or_nothing(
    network: httpx2.Client, clients: int, size: int, amount: Amount, tell: Tell
) -> None:
    rounds = amount(5, 100)
    content = random.Random(0).randbytes(size)
    expected = hashlib.sha256(content).hexdigest()
    complete = []
    for _ in range(rounds):
        writer = Uploader(network, 0)
        scene = writer.tus.client.post("/scenes", content=content).headers["location"]

        def read(number: int, scene: str = scene) -> str:
            client = Uploader(network, number)
            if number == 0:
                return str(client.tus.client.delete(scene).status_code)
            with client.tus.client.stream("GET", f"{scene}/original") as answer:
                if answer.status_code != 200:
                    assert answer.status_code in (404, 503)
                    return "nothing"
                return hashlib.sha256(b"".join(answer.iter_bytes())).hexdigest()

        deleted, *readings = at_once(clients, read)
        assert deleted == "204"
        assert set(readings) <= {expected, "nothing"}
        complete += [reading for reading in readings if reading == expected]
    tell("readings of scenes while they were deleted", rounds * (clients - 1))
    tell("of which complete", len(complete))
