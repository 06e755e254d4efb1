"""The house rules that a machine can read: sizes, names, docstrings, and words that no file may
hold."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from architecture.source import REPOSITORY, Module, modules, tracked_files

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50
MAX_POSITIONAL = 5
MAX_ARGUMENTS = 8
NO_NAMES = frozenset(
    {"util", "utils", "helper", "helpers", "common", "base", "manager", "handler", "proxy", "misc"}
)

# Put together here, so that this file does not hold them.
PROMISES = ("TO" + "DO", "FIX" + "ME")
MACHINES = ("/".join(("", "work", "")), "/".join(("", "tmp", "exp")))
NO_WORDS = re.compile(rf"\b({'|'.join(PROMISES)})\b|(?<![\w.])({'|'.join(MACHINES)})")

MODULES = modules()
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def positional(function: Function) -> int:
    """Arguments that may be given by position, without self and cls."""
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def too_long(tree: ast.Module) -> list[str]:
    return [
        f.name
        for f in functions(tree)
        if (f.end_lineno or f.lineno) - f.lineno + 1 > MAX_FUNCTION_LINES
    ]


def too_many_arguments(tree: ast.Module) -> list[str]:
    return [
        f.name
        for f in functions(tree)
        if positional(f) > MAX_POSITIONAL or positional(f) + len(f.args.kwonlyargs) > MAX_ARGUMENTS
    ]


def named_for_nothing(path: Path) -> bool:
    return not NO_NAMES.isdisjoint((path.stem, path.parent.name))


def lines_with_forbidden_words(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if NO_WORDS.search(line)]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_file_has_at_most_300_lines(module: Module) -> None:
    assert len(module.path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_function_has_at_most_50_lines(module: Module) -> None:
    assert too_long(module.tree) == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_function_takes_at_most_5_positional_arguments_and_8_in_all(module: Module) -> None:
    assert too_many_arguments(module.tree) == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_says_what_it_does(module: Module) -> None:
    assert ast.get_docstring(module.tree)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_is_named_for_its_noun(module: Module) -> None:
    assert not named_for_nothing(module.path)


def test_no_tracked_file_holds_a_machines_path_or_a_promise_to_finish_it() -> None:
    found = {}
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # weights
            continue
        if lines := lines_with_forbidden_words(text):
            found[str(path.relative_to(REPOSITORY))] = lines
    assert found == {}


def test_the_rules_can_be_broken() -> None:
    long = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
    assert too_long(ast.parse(long)) == ["f"]
    assert too_long(ast.parse(long.replace("    x = 1\n", "", 1))) == []
    assert too_many_arguments(ast.parse("class C:\n    def f(self, a, b, c, d, e, g): ...")) == [
        "f"
    ]
    assert (
        too_many_arguments(ast.parse("class C:\n    async def f(self, a, b, c, d, e): ...")) == []
    )
    assert too_many_arguments(ast.parse("def f(*, a, b, c, d, e, g, h, i): ...")) == []
    assert too_many_arguments(ast.parse("def f(*, a, b, c, d, e, g, h, i, j): ...")) == ["f"]
    assert named_for_nothing(Path("service/tokenreward/utils.py"))
    assert named_for_nothing(Path("service/tokenreward/common/ids.py"))
    assert not named_for_nothing(Path("service/tokenreward/wire.py"))


@pytest.mark.parametrize(
    "word", [f"{PROMISES[0]}: later", PROMISES[1], f"cd {MACHINES[0]}main", f"'{MACHINES[1]}/venv'"]
)
def test_a_forbidden_word_is_found(word: str) -> None:
    assert lines_with_forbidden_words(f"a = 1\n# {word}\n") == [f"# {word}"]


@pytest.mark.parametrize("text", ["frame/work/", "a path such as /tmp/x", "mastodon", "methods"])
def test_other_words_are_left_alone(text: str) -> None:
    assert lines_with_forbidden_words(text) == []
