"""Fixtures of the file formats' tests."""

import pytest
from small_fields import make_field

from acorn_svc.field.model import Field


@pytest.fixture(params=["grid", "coordinate"])
def field(request: pytest.FixtureRequest) -> Field:
    return make_field(request.param)
