"""The project's source as these tests read it: which files there are, and what each imports.
Parses, never imports."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = (REPOSITORY / "service", REPOSITORY / "clients")


@dataclass(frozen=True)
class Module:
    """One Python file under its dotted name."""

    name: str
    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Import:
    """`target` is the longest dotted name that could be a module; `for_types`: under `if
    TYPE_CHECKING`."""

    target: str
    line: int
    for_types: bool = False

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]


def modules(*roots: Path) -> list[Module]:
    """Every module under the import roots, sorted by name."""
    found = []
    for root in roots or ROOTS:
        for path in root.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found.append(Module(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return sorted(found, key=lambda module: module.name)


def imports(module: Module) -> list[Import]:
    """Every import statement of a module, wherever it stands, with absolute names."""
    found: list[Import] = []
    for node, for_types in _walk(module.tree, for_types=False):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno, for_types) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(module, node)
            found += [
                Import(f"{origin}.{alias.name}", node.lineno, for_types) for alias in node.names
            ]
    return found


def _walk(node: ast.AST, *, for_types: bool) -> Iterator[tuple[ast.AST, bool]]:
    yield node, for_types
    guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    for child in ast.iter_child_nodes(node):
        inside = guarded and isinstance(node, ast.If) and child in node.body
        yield from _walk(child, for_types=for_types or inside)


def _origin(module: Module, node: ast.ImportFrom) -> str:
    """The module that `from ... import` names, dots resolved."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    kept = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def tracked_files() -> list[Path]:
    """What is under version control; in an unpacked source distribution, what it holds."""
    if not (REPOSITORY / ".git").exists():
        return [path for path in REPOSITORY.rglob("*") if path.is_file() and not _is_built(path)]
    listed = subprocess.run(
        ["git", "-C", REPOSITORY, "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout
    return [path for name in listed.split("\0") if name and (path := REPOSITORY / name).is_file()]


def _is_built(path: Path) -> bool:
    parts = path.relative_to(REPOSITORY).parts[:-1]
    return any(part.startswith((".", "__pycache__", "dist")) for part in parts)
