"""Signing in on the page, in a real browser: a wrong key, a right one, the end of the session."""

from __future__ import annotations

from pathlib import Path

import browsing
import pytest
from browsing import require_browser, serving

SCRIPT = Path(__file__).with_name("sign_in.mjs")
KEY = "0123456789abcdef0123456789abcdef"

pytestmark = pytest.mark.slow


def test_the_page_signs_in_with_a_key_and_asks_again_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_browser()
    monkeypatch.setenv("ACORN_ADMIN_KEY", KEY)
    with serving(tmp_path) as base:
        report = browsing.visit(SCRIPT, base, KEY)
    assert report["errors"] == []
    assert report["before"] == 0
    assert "isn't known" in report["refusal"]
    assert report["readable"] == "{}"
