"""Trainers' published code, importable without what it needs to train: no package of theirs is
installed, and libraries that are missing here are stood in for.

`make trainers` unpacks what PyPI has, and names the folder in `TRAINERS_SITE`. A trainer that PyPI
has not is read from a checkout, which a variable of its own names: `SLIME_CHECKOUT` and so on.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

SITE = "TRAINERS_SITE"


def site() -> Path:
    """The folder with the unpacked packages; without one, the test is skipped."""
    if SITE not in os.environ:
        pytest.skip(
            "the trainers' packages are not unpacked: make trainers", allow_module_level=True
        )
    return Path(os.environ[SITE]).resolve()


def checkout(trainer: str) -> Path:
    """The checkout of a trainer that PyPI has not; without one, the test is skipped."""
    named = named_checkouts([trainer])
    if not named:
        reason = f"{trainer} is not on PyPI, and {_variable(trainer)} names no checkout of it"
        pytest.skip(reason, allow_module_level=True)
    return named[trainer]


def named_checkouts(trainers: Iterable[str]) -> dict[str, Path]:
    """The checkouts of those of these trainers for which there are some."""
    variables = {trainer: os.environ.get(_variable(trainer)) for trainer in trainers}
    return {trainer: Path(folder).resolve() for trainer, folder in variables.items() if folder}


def _variable(trainer: str) -> str:
    return trainer.upper().replace("-", "_") + "_CHECKOUT"


class StandIn(types.ModuleType):
    """A library that is not there: each of its names is a mock."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        mock = MagicMock(name=f"{self.__name__}.{name}")
        setattr(self, name, mock)
        return mock


class StandInFinder:
    """Finds the libraries of its list, and all modules in them. It is asked last."""

    def __init__(self, libraries: tuple[str, ...]) -> None:
        self._libraries = set(libraries)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in self._libraries:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextmanager
def importable(*folders: Path, missing: tuple[str, ...] = ()) -> Iterator[None]:
    """Within it, packages in these folders can be imported, and so can libraries that are missing:
    each of their names is a mock. Where a library of that name is installed, that one is taken."""
    finder = StandInFinder(missing)
    before, path = set(sys.modules), list(sys.path)
    sys.path += map(str, folders)
    sys.meta_path.append(finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.path[:] = path
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None) or ""
            is_theirs = any(Path(file).is_relative_to(folder) for folder in folders if file)
            if is_theirs or isinstance(sys.modules[name], StandIn):
                del sys.modules[name]


def definition(file: Path, name: str, **names: Any) -> Any:
    """A function or class of a file whose imports cannot be had: only its own source is run.

    Args:
        file: Where it is defined.
        name: What it is called; `Class.method` for a method, which comes as a function.
        **names: The names of the file that it uses.
    """
    body: list[ast.stmt] = ast.parse(file.read_text(encoding="utf-8")).body
    for part in name.split("."):
        (node,) = (each for each in body if getattr(each, "name", None) == part)
        body = getattr(node, "body", [])
    future = ast.ImportFrom("__future__", [ast.alias("annotations")], 0)
    module = ast.fix_missing_locations(ast.Module([future, node], []))
    space: dict[str, Any] = dict(names)
    exec(compile(module, str(file), "exec"), space)  # noqa: S102 - the trainer's own source
    return space[node.name]  # type: ignore[attr-defined]


def loaded(file: Path, name: str, **modules: types.ModuleType) -> types.ModuleType:
    """One file as a module, without the `__init__` of its package. `modules` are what it imports
    from there, by dotted names with `__` for a dot."""
    stand_ins = {key.replace("__", "."): module for key, module in modules.items()}
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = {key: sys.modules.get(key) for key in stand_ins}
    sys.modules.update(stand_ins)
    try:
        spec.loader.exec_module(module)
    finally:
        for key, value in before.items():
            if value is None:
                del sys.modules[key]
            else:
                sys.modules[key] = value
    return module


def stand_in(name: str, **attributes: Any) -> StandIn:
    """A module of which only these attributes are real."""
    module = StandIn(name)
    for key, value in attributes.items():
        setattr(module, key, value)
    return module
