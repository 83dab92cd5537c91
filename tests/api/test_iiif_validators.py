"""The two IIIF validators, against a field that was fitted to their own test image.

`iiif-validator-ng` lies in the environment under the name `iiif_validator`; `iiif-validator` has
the same name, so it lies beside, in `share/iiif-validator`, and is imported under another one.
"""

from __future__ import annotations

import ctypes.util
import importlib.resources
import importlib.util
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import Gallery
from iiif_validator.tests import test as ng

from acorn_svc.field.model import Field
from acorn_svc.formats.images import read_image
from acorn_svc.training.loop import fit
from acorn_svc.training.presets import configure
from acorn_svc.training.targets import ImageTarget

CLASSIC = Path(sys.prefix) / "share" / "iiif-validator" / "iiif_validator"
LEVEL = 2
VERSION = "3.0"
# Enough that no pixel inside the tested squares is off by more than 5 of 255, JPEG's errors included.
BLOCKS = 2500
STEPS = 8000

pytestmark = [
    pytest.mark.slow,
    # The validators leave their connections to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def field() -> Field:
    """100 squares of 100 x 100 pixels, fitted until every colour is right."""
    with importlib.resources.as_file(importlib.resources.files("iiif_validator")) as folder:
        target = ImageTarget(read_image(folder / "validation_image.png"))
    # One thread: the result is then the same on any number of cores.
    config = configure(target, blocks=BLOCKS, steps=STEPS, threads=1)
    flat = replace(config, encoder_rate=0.012, decoder_rate=0.01, full_size_share=0.8, patches=768)
    *_, last = fit(target, flat)
    return last.field()


@pytest.fixture(scope="module")
def server(live_gallery: Gallery, field: Field) -> ng.TargetServer:
    scene_id = live_gallery.add(field, rights="http://creativecommons.org/publicdomain/mark/1.0/")
    base = str(live_gallery.client.base_url).rstrip("/")
    target = ng.TargetServer(f"{base}/iiif", scene_id, ng.IIIFVersion.V3)
    # One validator gives up after 5 seconds; what every first picture waits for comes before.
    live_gallery.client.get(f"/iiif/{scene_id}/full/max/0/default.jpg").raise_for_status()
    return target


@pytest.fixture(autouse=True)
def seed() -> None:
    """The validators choose places and sizes at random."""
    random.seed(31337)


def name_of(test: type[ng.ValidationTest]) -> str:
    return str(test.name)


@pytest.mark.parametrize("test", ng.get_tests(ng.IIIFVersion.V3), ids=name_of)
def test_ng(test: type[ng.ValidationTest], server: ng.TargetServer) -> None:
    if not offered(test, ng.get_info_json(server)):
        with pytest.raises(Exception, match="Failed to fetch image: 400"):
            test.run(server)
        return
    results = test.run(server)
    results = results if isinstance(results, list) else [results]
    assert results
    assert [result for result in results if not result.success] == []


def offered(test: type[ng.ValidationTest], info: dict[str, Any]) -> bool:
    """Whether the server says that it can do this; it need not know every optional format."""
    if test.category != ng.TestCategory.FORMAT or test.extra_name is None:
        return True
    return test.extra_name in ["jpg", "png", *info["extraFormats"]]


def load_classic() -> ModuleType:
    """iiif-validator 1.0.5, under a name of its own."""
    spec = importlib.util.spec_from_file_location(
        "iiif_validator_classic", CLASSIC / "__init__.py", submodule_search_locations=[str(CLASSIC)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return importlib.import_module("iiif_validator_classic.validator")


def classic_tests() -> list[Any]:
    """The names of the tests up to our level, or the reason why there are none."""
    missing = None
    if not CLASSIC.is_dir():
        missing = "iiif-validator 1.0.5 isn't in share/iiif-validator: `make test` puts it there"
    elif ctypes.util.find_library("magic") is None:
        missing = "iiif-validator needs the system library libmagic1"
    if missing is not None:
        return [pytest.param("", marks=pytest.mark.skip(reason=missing), id="missing")]
    validator = load_classic()
    tests = validator.TestSuite(validator.ValidationInfo()).list_tests(VERSION)
    return sorted(name for name, test in tests.items() if test["level"] <= LEVEL)


@pytest.mark.parametrize("name", classic_tests())
def test_classic(name: str, server: ng.TargetServer) -> None:
    validator = load_classic()
    url = urlsplit(server.base_url)
    api = validator.ImageAPI(
        server.validation_id, url.netloc, url.path.strip("/"), version=VERSION, debug=False
    )
    validator.TestSuite(validator.ValidationInfo()).run_test(name, api)
    assert api.exception is None, f"{api.exception} {api.urls}"
