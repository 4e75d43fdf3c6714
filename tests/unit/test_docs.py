"""The reference pages are what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate import HERE, PAGES

ROOT = HERE.parent


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_up_to_date(name: str) -> None:
    assert (HERE / name).read_text() == PAGES[name](), "run `make docs`"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(HERE.rglob("*.md"))], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links {target}"
