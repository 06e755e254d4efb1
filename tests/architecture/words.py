"""The words of the code: names that modules bind, cut into words, and the glossary of
CONTRIBUTING.md. It knows no word of its own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from architecture.source import Module


@dataclass(frozen=True)
class GlossaryEntry:
    """One row: the words of the idea, the class names it mentions, and words that it replaces."""

    words: frozenset[str]
    classes: frozenset[str]
    replaced: frozenset[str]


@dataclass(frozen=True)
class BoundName:
    """A name that a module gives to something."""

    name: str
    kind: str  # class, function, argument, variable
    place: str

    @property
    def words(self) -> list[str]:
        return split_words(self.name)

    def __str__(self) -> str:
        return f"{self.place} {self.kind} {self.name}"


def split_words(name: str) -> list[str]:
    """The words of `snake_case`, `CamelCase` and `UPPER_CASE` names, in lower case."""
    pieces = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return [piece.lower() for piece in pieces]


def bound_names(module: Module) -> Iterator[BoundName]:
    """Every class, function, argument and variable of a module, attributes of `self` included."""
    for node in ast.walk(module.tree):
        place = f"{module.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ClassDef):
            yield BoundName(node.name, "class", place)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield BoundName(node.name, "function", place)
        elif isinstance(node, ast.arg):
            yield BoundName(node.arg, "argument", place)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield BoundName(node.id, "variable", place)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield BoundName(node.attr, "variable", place)
        elif isinstance(node, ast.alias) and node.asname:
            yield BoundName(node.asname, "variable", place)


def glossary(guide: str) -> list[GlossaryEntry]:
    """The rows of the table under the heading `## Words`: word, meaning, not."""
    section = guide.partition("\n## Words\n")[2].partition("\n## ")[0]
    rows = [
        line.removeprefix("| ").removesuffix("|").split(" | ")
        for line in section.splitlines()
        if line.startswith("| ")
    ]
    entries = []
    for row in rows[1:]:  # the first is the table's head
        word, meaning, *replaced = (cell.strip() for cell in row)
        entries.append(
            GlossaryEntry(
                words=frozenset(part for idea in word.split(", ") for part in split_words(idea)),
                classes=frozenset(re.findall(r"`([A-Z]\w*)`", f"{word} {meaning}")),
                replaced=frozenset(split_words(" ".join(replaced))),
            )
        )
    return entries
