"""The code stays quick to read: no crowded folder, no import circle, no comprehension inside
another, few helpers of one use, few conditional expressions, few classes, one class per name."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from architecture import density
from architecture.source import REPOSITORY, Module, modules

MAX_FILES_IN_A_FOLDER = 20
MAX_LINE_CHARACTERS = 100
MAX_ONE_USE_HELPERS = 30
MAX_CONDITIONAL_EXPRESSIONS_PER_1000_LINES = 14.0
MAX_CLASSES = 210  # without the rooms below
ROOMS_OF_ONE_CLASS_A_FILE = ("tokenreward.http.protocols.", "tokenreward_client.trainers.")
MAX_PRIVATE_REACHES_OF_TESTS = 32

MODULES = modules()
# The tests with trainers' own code reach into the trainers, not into us.
TESTS = [
    module for module in modules(REPOSITORY / "tests") if not module.name.startswith("trainers.")
]


def test_a_folder_holds_at_most_20_files() -> None:
    crowded = {
        folder: count
        for folder, count in density.files_by_folder(MODULES).items()
        if count > MAX_FILES_IN_A_FOLDER
    }
    assert crowded == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert density.circles(density.import_graph(MODULES)) == []


def test_no_comprehension_holds_another() -> None:
    nested = [place for module in MODULES for place in density.nested_comprehensions(module)]
    assert not nested, f"make the inner one a variable: {nested}"


def test_few_short_helpers_are_used_once() -> None:
    helpers = density.one_use_helpers(MODULES)
    assert len(helpers) <= MAX_ONE_USE_HELPERS, helpers


def test_conditional_expressions_are_rare() -> None:
    num_lines = sum(len(module.text.splitlines()) for module in MODULES)
    num_expressions = sum(density.conditional_expressions(module) for module in MODULES)
    assert num_expressions * 1000 / num_lines <= MAX_CONDITIONAL_EXPRESSIONS_PER_1000_LINES


def test_there_are_few_classes() -> None:
    counted = [
        module for module in MODULES if not module.name.startswith(ROOMS_OF_ONE_CLASS_A_FILE)
    ]
    assert len(density.class_names(counted)) <= MAX_CLASSES


def test_no_two_classes_have_one_name() -> None:
    names = density.names_of_two_classes(MODULES)
    assert not names, f"rename one of the two: {names}"


def test_ruff_folds_lines_at_100_characters_in_every_file() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    ruff = settings["tool"]["ruff"]
    assert ruff["line-length"] == MAX_LINE_CHARACTERS
    assert "E" in ruff["lint"]["select"]
    assert "E501" not in ruff["lint"]["ignore"]
    ignored = [path for path, codes in ruff["lint"]["per-file-ignores"].items() if "E501" in codes]
    assert ignored == []


def test_tests_seldom_reach_into_private_attributes() -> None:
    reaches = [
        f"{module.path.relative_to(REPOSITORY)}:{place}"
        for module in TESTS
        for place in density.private_reaches(module.tree)
    ]
    assert len(reaches) <= MAX_PRIVATE_REACHES_OF_TESTS, reaches


# Each count finds what it counts.


Write = Callable[[dict[str, str]], list[Module]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes modules, texts by path, into a tree of its own, and gives all of them."""

    def write_all(texts: dict[str, str]) -> list[Module]:
        for name, text in texts.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return modules(tmp_path)

    return write_all


def test_files_are_counted_by_their_own_folder(write: Write) -> None:
    counts = density.files_by_folder(write({"room/a": "", "room/b": "", "room/wing/c": ""}))
    assert sorted(counts.values()) == [1, 2]


@pytest.mark.parametrize(
    "back",
    [
        "from room import a",
        "from . import a",
        "from room.a import first",
        "import room.a",
        "def late():\n    from room import a",
        "if TYPE_CHECKING:\n    from room.a import First",
    ],
)
def test_a_circle_is_found(write: Write, back: str) -> None:
    ring = write({"room/a": "from room import b", "room/b": "import room.c", "room/c": back})
    assert density.circles(density.import_graph(ring)) == [{"room.a", "room.b", "room.c"}]


def test_a_circle_through_the_face_of_a_package_is_found(write: Write) -> None:
    face = "from room.a import First"
    tree = write({"room/__init__": face, "room/a": "from room import Second"})
    assert density.circles(density.import_graph(tree)) == [{"room", "room.a"}]


def test_two_paths_to_one_module_are_no_circle(write: Write) -> None:
    tree = write({"room/a": "from room import b, c", "room/b": "from room import c", "room/c": ""})
    assert density.circles(density.import_graph(tree)) == []


@pytest.mark.parametrize(
    ("text", "num_nested"),
    [
        ("[x for x in y]", 0),
        ("[[a for a in b] for b in c]", 1),
        ("{k: {a for a in v} for k, v in z}", 1),
        ("[x for x in sorted(a for a in b)]", 1),
        ("[f(x) for x in y if any(a for a in x)]", 1),
        ("sum(x for x in y) + sum(x for x in z)", 0),
    ],
)
def test_a_comprehension_inside_another_is_found(write: Write, text: str, num_nested: int) -> None:
    (module,) = write({"a": text})
    assert len(density.nested_comprehensions(module)) == num_nested


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def _short(): ...\n_short()", ["_short"]),
        ("def _short(): ...\n_short()\n_short()", []),
        ("def _unused(): ...", []),
        ("def public(): ...\npublic()", []),
        ("@route\ndef _short(): ...\n_short()", []),
        ("class C:\n    async def _step(self): ...\n    def run(self): self._step()", ["_step"]),
        ("def _six():" + "\n    x" * 5 + "\n_six()", ["_six"]),
        ("def _seven():" + "\n    x" * 6 + "\n_seven()", []),
        ("def _short(): 'says _short()'\ng(_short)", ["_short"]),
        ("class A:\n    def _f(self): ...\nclass B:\n    def _f(self): ...\nx._f()", []),
    ],
)
def test_a_short_helper_of_one_use_is_found(write: Write, text: str, names: list[str]) -> None:
    helpers = density.one_use_helpers(write({"a": text}))
    assert [place.split()[1] for place in helpers] == names


@pytest.mark.parametrize(
    ("other", "num_helpers"), [("x._short()", 0), ("def _short(): ...\n_short()", 2)]
)
def test_a_helper_that_another_module_uses_is_no_helper_of_one_use(
    write: Write, other: str, num_helpers: int
) -> None:
    tree = write({"a": "def _short(): ...\n_short()", "b": other})
    assert len(density.one_use_helpers(tree)) == num_helpers


def test_conditional_expressions_are_counted_and_statements_are_not(write: Write) -> None:
    (module,) = write({"a": "x = a if b else c\nif b:\n    x = (a if b else c) if d else e"})
    assert density.conditional_expressions(module) == 3


def test_classes_of_one_name_are_found_wherever_they_stand(write: Write) -> None:
    inner = "class Wait: ...\nclass Scorer:\n    class Options: ..."
    outer = "def f():\n    class Wait: ...\nclass Scorer:\n    class Options: ..."
    tree = write({"a": inner, "b": outer})
    assert density.names_of_two_classes(tree) == ["Wait"]
    assert len(density.class_names(tree)) == 3


@pytest.mark.parametrize(
    ("text", "num_reaches"),
    [
        ("engine._worker", 1),
        ("engine._worker._late.x", 2),
        ("self._own", 0),
        ("cls._own", 0),
        ("self.engine._worker", 1),
        ("engine.worker", 0),
        ("module.__name__", 0),
        ("make()._x", 1),
        ("monkeypatch.setattr(engine, '_worker', None)", 1),
        ("getattr(engine, 'worker', '_x')", 0),
    ],
)
def test_a_reach_into_a_private_attribute_is_found(text: str, num_reaches: int) -> None:
    assert len(density.private_reaches(ast.parse(text))) == num_reaches
