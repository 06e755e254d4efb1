"""One idea has one word: class names keep to the glossary of CONTRIBUTING.md, and no name has a
word that the glossary replaces."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from architecture.source import Module, modules
from architecture.words import (
    BoundName,
    GlossaryEntry,
    bound_names,
    glossary,
    split_words,
)
from fakes.pages import page

MAX_ENTRIES = 45
# Where an item goes on its way. Elsewhere a class may be named for what only its own room knows.
ROOMS_ON_THE_WAY = {"batching", "client", "contract", "credit", "engine", "http", "text", "wire"}
# A word on the wire, which cannot change, keeps its name in the code.
ON_THE_WIRE = {"TokenOutOfVocabulary", "shift"}
# These say what happened to a thing and not what it is.
PARTICIPLES = frozenset(
    {"asked", "found", "given", "kept", "known", "listed", "made", "said", "shown", "taken"}
    | {"told", "wanted"}
)

MODULES = modules()
ENTRIES = glossary(page("CONTRIBUTING.md"))
WORDS = frozenset().union(*(entry.words for entry in ENTRIES))
CLASSES = frozenset().union(*(entry.classes for entry in ENTRIES))
REPLACED = frozenset().union(*(entry.replaced for entry in ENTRIES))


def room(module: Module) -> str:
    top, _, rest = module.name.partition(".")
    return "client" if top == "tokenreward_client" else rest.partition(".")[0]


def is_error(node: ast.ClassDef) -> bool:
    """Whether a class is an exception: errors are named for their codes, or end in `Error`."""
    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    return any(base.endswith(("Error", "Exception")) or base in ERRORS for base in bases)


ERRORS = frozenset(
    node.name
    for module in MODULES
    if room(module) in ("errors", "client")
    for node in ast.walk(module.tree)
    if isinstance(node, ast.ClassDef) and module.name.endswith("errors")
)


def is_in_the_glossary(node: ast.ClassDef) -> bool:
    """Whether the glossary mentions a class or its parent, or has the last word of its name."""
    last = split_words(node.name)[-1]
    parents = {ast.unparse(base) for base in node.bases}
    is_mentioned = not CLASSES.isdisjoint({node.name, *parents})
    return is_mentioned or last in WORDS or last.removesuffix("s") in WORDS


def classes_without_a_word(module: Module) -> list[str]:
    """Public classes of a module that carry an idea which the glossary lacks."""
    return [
        f"{module.name} {node.name}"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        and not node.name.startswith("_")
        and not is_error(node)
        and not is_in_the_glossary(node)
    ]


def replaced_words(names: list[BoundName]) -> list[str]:
    """Names that hold a word of the glossary's last column."""
    return [
        str(name)
        for name in names
        if name.name not in ON_THE_WIRE and not REPLACED.isdisjoint(name.words)
    ]


def participles(names: list[BoundName]) -> list[str]:
    """Names of variables, arguments and functions that are nothing but a participle."""
    return [
        str(name)
        for name in names
        if name.kind != "class" and name.name.strip("_").lower() in PARTICIPLES
    ]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_name_has_a_word_that_the_glossary_replaces(module: Module) -> None:
    found = replaced_words(list(bound_names(module)))
    assert not found, f"use the word that CONTRIBUTING.md's glossary has instead: {found}"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_name_is_a_participle(module: Module) -> None:
    found = participles(list(bound_names(module)))
    assert not found, f"name what it is, not what was done to it: {found}"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in ROOMS_ON_THE_WAY], ids=str)
def test_a_class_on_an_items_way_is_named_with_a_word_of_the_glossary(module: Module) -> None:
    found = classes_without_a_word(module)
    assert not found, f"no word of CONTRIBUTING.md's glossary; a private class needs none: {found}"


def test_the_glossary_is_short_and_says_each_word_once() -> None:
    assert 30 <= len(ENTRIES) <= MAX_ENTRIES
    classes = [name for entry in ENTRIES for name in entry.classes]
    assert sorted(classes) == sorted(set(classes))


def test_every_class_of_the_glossary_exists() -> None:
    names = {name.name for module in MODULES for name in bound_names(module)}
    assert CLASSES - names == set()


def test_no_word_of_the_glossary_is_also_one_that_it_replaces() -> None:
    assert set() == WORDS & REPLACED


# The checks find what they are for.


def written(folder: Path, text: str) -> Module:
    (folder / "a.py").write_text(text, encoding="utf-8")
    (module,) = modules(folder)
    return module


@pytest.mark.parametrize(
    "text",
    [
        "class Shift: ...",
        "def run_shift(): ...",
        "def f(*, front=None): ...",
        "errand = 1",
        "self._errands = {}\nerrand: int = 2",
        "import x as parcel",
        "for road in roads: ...",
        "with x as told: ...",
        "[passage for passage in x]",
        "FRONT_S = 1",
    ],
)
def test_a_replaced_word_is_found(tmp_path: Path, text: str) -> None:
    assert len(replaced_words(list(bound_names(written(tmp_path, text))))) == 1


@pytest.mark.parametrize("text", ["shift = 1", "class Worker: ...", "x = road", "frontier = 1"])
def test_other_words_are_left_alone(tmp_path: Path, text: str) -> None:
    assert replaced_words(list(bound_names(written(tmp_path, text)))) == []


@pytest.mark.parametrize(
    ("text", "num_found"),
    [("asked = 1", 1), ("def _told(): ...", 1), ("known_types = 1", 0), ("def f(given): ...", 1)],
)
def test_a_participle_is_found(tmp_path: Path, text: str, num_found: int) -> None:
    assert len(participles(list(bound_names(written(tmp_path, text))))) == num_found


@pytest.mark.parametrize(
    ("text", "num_found"),
    [
        ("class Parlour: ...", 1),
        ("class JobParlour: ...", 1),
        ("class ParlourJob: ...", 0),
        ("class _Parlour: ...", 0),
        ("class Closed(RequestError): ...", 0),
        ("class PackedLayout: ...", 0),
        ("class Parlour(Protocol): ...", 0),
    ],
)
def test_a_class_without_a_word_is_found(tmp_path: Path, text: str, num_found: int) -> None:
    assert len(classes_without_a_word(written(tmp_path, text))) == num_found


def test_a_glossary_is_read_row_by_row() -> None:
    guide = (
        "# Guide\n\n## Words\n\n| word | meaning | not |\n|---|---|---|\n"
        "| row request, needs | of a row: `RowRequest`, `Needs` | work, fetch |\n"
        "| unit | a token | |\n\n## Else\n\n| a | b | c |\n"
    )
    assert glossary(guide) == [
        GlossaryEntry(
            words=frozenset({"row", "request", "needs"}),
            classes=frozenset({"RowRequest", "Needs"}),
            replaced=frozenset({"work", "fetch"}),
        ),
        GlossaryEntry(words=frozenset({"unit"}), classes=frozenset(), replaced=frozenset()),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("snake_case", ["snake", "case"]),
        ("CamelCase", ["camel", "case"]),
        ("_LONGEST_ROW", ["longest", "row"]),
        ("IdsB64", ["ids", "b", "64"]),
        ("HTTPServer", ["http", "server"]),
    ],
)
def test_a_name_is_cut_into_words(name: str, words: list[str]) -> None:
    assert split_words(name) == words
