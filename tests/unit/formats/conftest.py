"""Fixtures of the file formats' tests."""

from collections.abc import Callable

import pytest
from small_fields import make_field, make_shape

from acorn_svc.field.kinds import AnyField
from acorn_svc.field.model import Field

PICTURES: dict[str, Callable[[], Field]] = {
    "picture": lambda: make_field("grid"),
    "picture of coordinates": lambda: make_field("coordinate"),
}
FIELDS: dict[str, Callable[[], AnyField]] = {
    **PICTURES,
    "shape": lambda: make_shape("grid", 1),
    "coloured shape": lambda: make_shape("grid", 4),
    "shape of coordinates": lambda: make_shape("coordinate", 4),
}


@pytest.fixture(params=PICTURES)
def picture(request: pytest.FixtureRequest) -> Field:
    return PICTURES[request.param]()


@pytest.fixture(params=FIELDS)
def field(request: pytest.FixtureRequest) -> AnyField:
    return FIELDS[request.param]()
