"""What the server counts as one address, and what it needs of the system."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from acorn_svc.api.app import create_app
from acorn_svc.api.server import Admission, neighbourhood, require_descriptors
from acorn_svc.errors import Conflict, Unavailable
from acorn_svc.settings import Settings

LIMITS = {"max_connections": 10, "max_connections_per_address": 2}


def test_a_network_of_ipv6_counts_as_one_address() -> None:
    assert neighbourhood("2001:db8:0:1::1") == neighbourhood("2001:db8:0:1:ffff::2")
    assert neighbourhood("2001:db8:0:1::1") != neighbourhood("2001:db8:0:2::1")
    assert neighbourhood("fe80::1%eth0") == neighbourhood("fe80::2")
    assert neighbourhood("::ffff:192.0.2.1") == neighbourhood("192.0.2.1")
    assert neighbourhood("192.0.2.1") != neighbourhood("192.0.2.2")


def test_whoever_leaves_makes_room_for_another_of_the_same_address(tmp_path: Path) -> None:
    settings = Settings.model_validate({"data": tmp_path, **LIMITS})
    state = create_app(settings).state
    admission = Admission(settings, state.renderer, state.metrics)
    for address in ("a", "a", "b"):
        admission.enter(address)
    with pytest.raises(Unavailable) as caught:
        admission.enter("a")
    assert (caught.value.limit, caught.value.value) == ("max_connections_per_address", 2)
    admission.leave("a")
    admission.enter("a")
    # A socket of this machine has no address; only their number is limited.
    for _ in range(7):
        admission.enter(None)
    with pytest.raises(Unavailable) as caught:
        admission.enter(None)
    assert (caught.value.limit, caught.value.value) == ("max_connections", 10)


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [((100, 5000), (2304, 5000)), ((4096, 5000), None), ((100, -1), (2304, -1)), ((-1, -1), None)],
)
def test_as_many_files_may_be_open_as_connections_need(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limits: tuple[int, int], wanted: tuple[int, int] | None
) -> None:
    found = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, values: found.append(values))
    require_descriptors(Settings(data=tmp_path))
    assert found == ([] if wanted is None else [wanted])


def test_a_system_that_allows_too_few_open_files_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 2303))
    with pytest.raises(Conflict) as caught:
        require_descriptors(Settings(data=tmp_path))
    assert caught.value.limit == "max_connections"
