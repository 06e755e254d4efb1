"""The pages of docs/trainers show the examples as they are, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fakes.pages import ROOT, code_blocks

PAGES = [*sorted((ROOT / "docs" / "trainers").glob("*.md")), *(ROOT / "docs").glob("learning.md")]
EXAMPLES = {"trl.md": "trl_dense.py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    gone = [
        link for link in links if "://" not in link and not (page.parent / link).resolve().exists()
    ]
    assert gone == []


@pytest.mark.parametrize(("page", "example"), EXAMPLES.items())
def test_a_page_shows_the_example_that_a_test_runs(page: str, example: str) -> None:
    text = (ROOT / "docs" / "trainers" / page).read_text(encoding="utf-8")
    code = (ROOT / "docs" / "examples" / example).read_text(encoding="utf-8")
    assert code.rstrip() in code_blocks(text, "python")
