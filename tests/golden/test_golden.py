"""Files that an earlier release wrote, and what they must say for ever: never change or remove one.

`NAME-VERSION.acorn` was written by the first release of that version of the format; the `.json` beside it
holds its digest, and the values at some points for views of one and of two pixels.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from acorn_svc.field.shape import ShapeField
from acorn_svc.formats.container import VERSION, read_field

FILES = sorted(Path(__file__).parent.glob("*.acorn"))


def test_every_version_has_its_files() -> None:
    kinds = ("image", "image-coordinate", "shape", "shape-coordinate")
    wanted = {f"{kind}-{version}" for kind in kinds for version in range(1, VERSION + 1)}
    assert {path.stem for path in FILES} == wanted


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_old_file_says_what_it_said(path: Path) -> None:
    known = json.loads(path.with_suffix(".json").read_text())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == known["sha256"]
    field = read_field(path)
    told = json.loads(json.dumps(field.info().to_json()))
    assert known["info"].items() <= told.items()
    points = np.array(known["points"])
    unit = field.signal.voxel if isinstance(field, ShapeField) else 1.0
    for pixels, values in zip((1.0, 2.0), known["values"], strict=True):
        read = field.query(points, pixels * unit)
        assert np.ptp(read) > 0.01
        np.testing.assert_allclose(read, values, atol=2e-5)
