"""The pages of docs/trainers: their code compiles, imports what there is, and no link is broken."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from fakes.pages import ROOT, code_blocks

PAGES = [ROOT / "docs" / "trainers.md", *sorted((ROOT / "docs" / "trainers").glob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_page_imports_what_there_is(path: Path) -> None:
    for block in code_blocks(path.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.ImportFrom) or "tokenreward" not in (node.module or ""):
                continue
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{path.name}: {node.module}.{alias.name}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_link_of_a_page_is_broken(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_adapter_has_its_row_and_its_page() -> None:
    table = PAGES[0].read_text(encoding="utf-8")
    folder = ROOT / "clients" / "tokenreward_client" / "trainers"
    names = {file.stem for file in folder.glob("*.py") if not file.stem.startswith("_")}
    for name in names - {"verifiers"}:
        assert f"](trainers/{name}.md)" in table
    assert "trace_score" in table
