"""Counts of what makes code slow to read: crowded folders, import circles, nested comprehensions,
helpers of one use, conditional expressions, classes, names that stand twice.

Each function takes modules and gives what it found, so that a test can name it. Which counts are
too high is said in test_density.py.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from architecture.source import Module, imports

# Each scorer type is one file with these two classes; the file's name tells them apart.
CLASSES_OF_A_SCORER = frozenset({"Scorer", "Options"})
SHORT_HELPER_LINES = 7  # a helper of fewer lines is short
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def num_lines(node: ast.stmt) -> int:
    """Lines from `def` or `class` to the end, without decorators."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def files_by_folder(modules: Iterable[Module]) -> Counter[Path]:
    """How many modules each folder holds itself, without its subfolders."""
    return Counter(module.path.parent for module in modules)


def import_graph(modules: Iterable[Module]) -> dict[str, set[str]]:
    """For each module, the modules that it imports, anywhere in it: at the top, inside a function,
    under `if TYPE_CHECKING`.

    `from package import name` imports the module `package.name` if there is one, and otherwise the
    package's `__init__.py`.
    """
    by_name = {module.name: module for module in modules}
    graph: dict[str, set[str]] = {}
    for name, module in by_name.items():
        graph[name] = set()
        for line in imports(module):
            parent = line.target.rpartition(".")[0]
            if line.target in by_name:
                graph[name].add(line.target)
            elif parent in by_name:
                graph[name].add(parent)
        graph[name].discard(name)
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of files, each of which reaches all others by imports."""
    reached = {name: _reachable(graph, name) for name in graph}
    groups: list[set[str]] = []
    for name in graph:
        group = {other for other in reached[name] if name in reached[other]}
        if group and group not in groups:
            groups.append(group)
    return groups


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Every file that `start` imports, directly or not; `start` itself only on a circle."""
    reached: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += graph[name]
    return reached


def nested_comprehensions(module: Module) -> list[str]:
    """Comprehensions that hold another one."""
    return [
        f"{module.name}:{node.lineno}"
        for node in ast.walk(module.tree)
        if isinstance(node, COMPREHENSIONS) and _holds_comprehension(node)
    ]


def _holds_comprehension(comprehension: ast.expr) -> bool:
    inner = (node for node in ast.walk(comprehension) if node is not comprehension)
    return any(isinstance(node, COMPREHENSIONS) for node in inner)


def one_use_helpers(modules: Iterable[Module]) -> list[str]:
    """Short private functions and methods that are named exactly once.

    A module that defines the name itself uses its own. Decorated functions are called by what
    decorates them, and are left out. So are methods that two classes of a module define, which are
    called through a parent.
    """
    functions = {
        module: [node for node in ast.walk(module.tree) if isinstance(node, Function)]
        for module in modules
    }
    uses = {module: Counter(names_used(module.tree)) for module in functions}
    definitions = {module: Counter(node.name for node in functions[module]) for module in functions}
    return [
        f"{module.name}:{node.lineno} {node.name}"
        for module in functions
        for node in functions[module]
        if _is_short_helper(node)
        and definitions[module][node.name] == 1
        and sum(
            uses[other][node.name]
            for other in functions
            if other is module or node.name not in definitions[other]
        )
        == 1
    ]


def _is_short_helper(node: Function) -> bool:
    is_private = node.name.startswith("_") and not node.name.startswith("__")
    return is_private and not node.decorator_list and num_lines(node) < SHORT_HELPER_LINES


def names_used(tree: ast.Module) -> Iterator[str]:
    """Every name and attribute that is read, as often as it is read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def conditional_expressions(module: Module) -> int:
    """How many `a if c else b` there are."""
    return sum(isinstance(node, ast.IfExp) for node in ast.walk(module.tree))


def class_names(modules: Iterable[Module]) -> Counter[str]:
    """How often each class name is defined."""
    return Counter(
        node.name
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    )


def names_of_two_classes(modules: Iterable[Module]) -> list[str]:
    """Class names that stand for more than one class."""
    counts = class_names(modules)
    return sorted(name for name in counts if counts[name] > 1 and name not in CLASSES_OF_A_SCORER)


def private_reaches(tree: ast.Module) -> list[str]:
    """Accesses `x._y` where `x` is neither `self` nor `cls`, and patches of an attribute "_y": a
    test that needs one shows a missing seam."""
    return [
        f"{node.lineno} {ast.unparse(node)}"
        for node in ast.walk(tree)
        if _is_private_access(node) or _is_private_patch(node)
    ]


def _is_private_access(node: ast.AST) -> bool:
    if not isinstance(node, ast.Attribute) or not _is_private(node.attr):
        return False
    return not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))


def _is_private_patch(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith("attr"):
        return False
    constants = [part.value for part in node.args if isinstance(part, ast.Constant)]
    return any(isinstance(value, str) and _is_private(value) for value in constants[:1])


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
