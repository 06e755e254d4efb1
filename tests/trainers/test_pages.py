"""The pages of docs/trainers import names that the trainers' published code has."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from fakes import published
from fakes.pages import ROOT, code_blocks
from trainers import checkouts

SITE = published.site()
PAGES = sorted((ROOT / "docs" / "trainers").glob("*.md"))
PACKAGES = {"areal", "skyrl", "swift", "verifiers", "verl"}
OF_CHECKOUTS = {"prime_rl": "prime-rl", "rllm": "rllm", "slime": "slime"}


def source(module: str) -> str:
    """The source of a module of theirs; for a package, of its `__init__`."""
    parts = module.split(".")
    for folder in (SITE, *checkouts.folders()):
        for file in (folder.joinpath(*parts, "__init__.py"), folder.joinpath(*parts)):
            path = file.with_suffix(".py")
            if path.exists():
                return path.read_text(encoding="utf-8")
    raise AssertionError(f"no module {module}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_imports_names_that_there_are(page: Path) -> None:
    for block in code_blocks(page.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.ImportFrom):
                continue
            package = (node.module or "").partition(".")[0]
            if package in OF_CHECKOUTS:
                published.checkout(OF_CHECKOUTS[package])
            elif package not in PACKAGES:
                continue
            for alias in node.names:
                assert alias.name in source(node.module or ""), f"{node.module}.{alias.name}"
