"""A long time of everything at once: in the end as many files, threads and bytes as in the beginning."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from load_server import HOST, SIDE, LoadServer, roomy_server, wait_until

from benchmarks import clients

Tell = Callable[[str, object], None]
Amount = Callable[[int, int], int]

MEMORY_BYTES = 2**30 + 2**26
"""More than it may ever have: 1 GiB, and the caches."""
GROWTH_BYTES = 2**26
"""In all: what the allocator needs to settle, and the names of pictures that were given to somebody."""
STEADY_GROWTH_BYTES = 2**20
"""Per 100,000 requests, after all has settled."""
CLIENTS = 12

pytestmark = pytest.mark.torture


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadServer]:
    with roomy_server(tmp_path_factory.mktemp("load")) as server:
        yield server


class Traffic:
    """Clients that ask for all kinds of things, some of them wrong, and some of whom leave early."""

    def __init__(self, server: LoadServer) -> None:
        self._server = server
        self._cold = server.tiles()
        self._random = random.Random(0)
        self.counts: Counter[int] = Counter()
        self.vanished = 0

    def paths(self) -> Iterator[str]:
        scene = self._server.scene
        known = next(self._server.tiles())
        yield from itertools.cycle(
            [
                known,
                f"/iiif/{scene}/info.json",
                f"/dzi/{scene}.dzi",
                f"/dzi/{scene}_files/9/0_0.jpg",
                f"/scenes/{scene}",
                f"/scenes/{scene}/file",
                f"/scenes/{scene}/tree",
                "/healthz",
                "/scenes",
                f"/iiif/{scene}-2/full/max/0/default.jpg",
                f"/iiif/{scene}/9999,0,1,1/max/0/default.jpg",
                "/iiif/nobody/info.json",
                "/nowhere",
            ]
        )

    async def run(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(self._client(end, number) for number in range(CLIENTS)))

    async def _client(self, end: float, number: int) -> None:
        paths = itertools.islice(self.paths(), number, None)
        while asyncio.get_running_loop().time() < end:
            link = await clients.connect(HOST, self._server.port)
            for _ in range(self._random.randrange(1, 60)):
                path = next(self._cold) if self._random.random() < 0.2 else next(paths)
                status, *_ = await link.ask(path)
                self.counts[status] += 1
            if self._random.random() < 0.5:
                await self._vanish(link)
            await link.close()

    async def _vanish(self, link: clients.Link) -> None:
        """Leave in the middle of a render or of a region."""
        scene = self._server.scene
        wanted = [next(self._cold), f"/scenes/{scene}/region?size={SIDE * 4},{SIDE * 4}"]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._random.random() * 0.02):
                await link.ask(self._random.choice(wanted))
        self.vanished += 1


def test_nothing_is_left_over(server: LoadServer, amount: Amount, tell: Tell) -> None:
    seconds = amount(6, 600)
    clients.run(Traffic(server).run(amount(2, 20)))  # caches and threads fill
    at_rest = resting_descriptors(server)
    threads, memory = server.threads, server.memory
    samples = []
    traffic = Traffic(server)
    begin = time.monotonic()
    while (left := seconds - (time.monotonic() - begin)) > 0:
        clients.run(traffic.run(min(left, 5)))
        samples.append((traffic.counts.total(), server.memory))
        assert server.threads <= threads + CLIENTS
    assert resting_descriptors(server) <= at_rest
    asked = traffic.counts.total()
    assert set(traffic.counts) <= {200, 307, 400, 404, 503}
    assert traffic.counts[200] > asked / 2
    peak = max(memory for _, memory in samples)
    assert peak < MEMORY_BYTES
    assert server.memory - memory < GROWTH_BYTES
    if amount(0, 1):  # a few samples have no slope
        steady = 1e5 * np.polyfit(*zip(*samples[len(samples) // 2 :], strict=True), 1)[0]
        tell("growth in MiB per 100,000 requests, in the second half", f"{steady / 2**20:.2f}")
        assert steady < STEADY_GROWTH_BYTES
    tell("requests", asked)
    tell("clients that left early", traffic.vanished)
    tell("answers by status", dict(sorted(traffic.counts.items())))
    tell("peak memory in MiB", f"{peak / 2**20:.0f}")
    tell("growth in MiB", f"{(server.memory - memory) / 2**20:.1f}")
    tell("descriptors at rest, before and after", f"{at_rest}, {server.descriptors}")
    tell("threads, before and after", f"{threads}, {server.threads}")


def resting_descriptors(server: LoadServer) -> int:
    """How many are open when nobody is connected."""
    wait_until(lambda: not server.connections, "all connections have ended")
    return server.descriptors
