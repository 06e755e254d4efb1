"""The pages of docs/trainers: their code imports what there is and runs, and no link is broken.

The trainers themselves are stood in for. Whether they have the names that a page imports is for
tests/trainers to say.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import transformers

from fakes import published
from fakes.pages import ROOT, code_blocks

EXAMPLES = ROOT / "docs" / "examples"
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


class Tables(type):
    """A class of a trainer: its constants are empty tables."""

    def __getattr__(cls, name: str) -> Any:
        if not name.isupper():
            raise AttributeError(name)
        return {}


class Classes(published.StandIn):
    """A trainer's module: its classes can be inherited from, and its other names are mocks."""

    def __getattr__(self, name: str) -> Any:
        if name[0].isupper() and not name.isupper():
            return Tables(name, (), {})
        return super().__getattr__(name)


class ClassesFinder(published.StandInFinder):
    def create_module(self, spec: Any) -> Classes:
        return Classes(spec.name)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = ("areal", "prime_rl", "rllm", "skyrl", "swift", "verifiers", "verl")
    monkeypatch.setattr(sys, "meta_path", [ClassesFinder(trainers), *sys.meta_path])
    monkeypatch.setattr(transformers, "AutoTokenizer", MagicMock())
    shown = {file.read_text(encoding="utf-8").rstrip() for file in EXAMPLES.glob("*.py")}
    before = set(sys.modules)
    for block in code_blocks(path.read_text(encoding="utf-8"), "python"):
        if block not in shown:  # an example, which runs in a test of its own
            exec(compile(block, path.name, "exec"), {"__name__": "page"})  # noqa: S102 - ours
    for name in set(sys.modules) - before:
        if isinstance(sys.modules[name], Classes):
            del sys.modules[name]


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
