"""The page on training claims nothing without a test: every test that it names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`([a-z_/]+)::(\w+)`", (ROOT / "docs/training.md").read_text())


def test_the_page_names_tests() -> None:
    assert len(NAMED) > 50


@pytest.mark.parametrize(("place", "name"), sorted({pair for pair in NAMED if pair != ("file", "test")}))
def test_a_test_that_the_page_names_exists(place: str, name: str) -> None:
    folder, _, file = place.rpartition("/")
    path = ROOT / "tests" / (folder or "trainer") / f"test_{file}.py"
    assert f"\ndef test_{name}(" in path.read_text()
