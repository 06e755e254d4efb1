"""A module imports only what stands to its right in the order of the rooms, and each library has
its homes."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from architecture.source import Import, Module, imports, modules

# Left stands on right. Modules of one group do not know each other; inside a package they may.
ORDER = (
    ("cli",),
    ("deployment",),
    ("http",),
    ("eval",),
    ("metrics",),
    ("engine",),
    ("scorers", "forward"),
    ("checkpoints",),
    ("text",),
    ("credit",),
    ("combine",),
    ("batching",),
    ("fair_queue",),
    ("entry",),
    ("contract",),
    ("alignment",),
    ("config",),
    ("settings",),
    ("display",),
    ("wire",),
    ("errors",),
    ("demo",),  # imports nothing of the service
)
PLACE = {name: place for place, group in enumerate(ORDER) for name in group}
CLIENT, SERVICE = "tokenreward_client", "tokenreward"
CLIENT_MAY_IMPORT = {"alignment", "wire", "errors"}
CLIENT_LIBRARIES = {"httpx", "numpy", "pydantic", "pydantic_core", SERVICE, CLIENT}
# What an adapter may import when a hook of its trainer runs: the trainer, and what it stands on.
OF_A_TRAINER = {"torch", "slime", "prime_rl"}
ADAPTERS = "tokenreward_client.trainers."
# Rooms that stand on less than what is to their right.
NARROW = {
    "scorers": {"contract", "alignment", "errors", ""},
    "credit": {"contract", "wire", "errors", ""},
    "forward": {"checkpoints", "text", "contract", "errors", ""},
    "text": {"contract", "alignment", "wire", "errors", ""},
    "eval": {"display", "wire", "errors", ""},
    "display": {""},
    "demo": {""},
}
# In these folders a file is one of a kind, and no file knows another: a new one edits none.
# Names with an underscore, and the folder's own `__init__`, are no such file.
ONE_OF_A_KIND = (
    "tokenreward.scorers",
    "tokenreward.http.protocols",
    "tokenreward_client.trainers",
)

EVERYWHERE = {"numpy", "pydantic", "pydantic_core"}
HOMES = {
    "ray": {"deployment"},
    "psutil": {"deployment"},
    "fastapi": {"http"},
    "starlette": {"http"},
    "uvicorn": {"http"},
    "httpx": {"http", "deployment", CLIENT},
    "prometheus_client": {"metrics"},
    "transformers": {"checkpoints", "forward", "demo"},
    "tokenizers": {"demo"},
    "jinja2": {"text", "scorers"},
    "huggingface_hub": {"checkpoints"},
    "peft": {"checkpoints"},
    "gguf": {"checkpoints"},
    "safetensors": {"checkpoints"},
    "datasets": {"demo"},
    "trl": {"demo"},
    "pyarrow": {"eval"},
    "torch": {"checkpoints", "forward", "engine", "demo"},
    "yaml": {"config", "cli"},
    "orjson": {"wire"},
    "msgspec": {"wire"},
    "jaxtyping": {"contract", "credit", "text", "forward", "scorers", "engine"},
}

MODULES = modules()


def room(name: str) -> str:
    """`tokenreward.forward.language_head` lives in `forward`; the bare package lives in ``."""
    return f"{name}..".split(".")[1]


def forbidden(module: Module) -> list[str]:
    """Imports of our own modules that this module may not have, as lines to read."""
    may = _may_client if module.name.split(".")[0] == CLIENT else _may_service
    return [
        f"{module.path.name}:{line.line} {module.name} imports {line.target}"
        for line in imports(module)
        if line.top in (CLIENT, SERVICE) and not may(module.name, line)
    ]


def _may_client(name: str, line: Import) -> bool:
    return line.top == CLIENT or room(line.target) in CLIENT_MAY_IMPORT


def _may_service(name: str, line: Import) -> bool:
    here, there = room(name), room(line.target)
    if line.top == CLIENT:
        return here in ("cli", "eval")
    if here == there:
        return True
    if there in ("", "__version__"):
        return True
    if here not in PLACE or there not in PLACE or there not in NARROW.get(here, PLACE):
        return False
    return PLACE[here] < PLACE[there]


def one_of_a_kind(name: str) -> str | None:
    """`reward_model` for `tokenreward.scorers.reward_model` and what is in it; None for a name that
    is in no folder of that sort, or begins with an underscore there."""
    for folder in ONE_OF_A_KIND:
        kind = name.removeprefix(f"{folder}.").partition(".")[0]
        if name.startswith(f"{folder}.") and not kind.startswith("_"):
            return f"{folder}.{kind}"
    return None


def siblings(module: Module, known: frozenset[str]) -> list[str]:
    """Imports of another file of the same kind. `known`: the names of all modules."""
    own = one_of_a_kind(module.name)
    if own is None:
        return []
    others = {name for name in known if one_of_a_kind(name) == name != own}
    return [
        f"{module.path.name}:{line.line} {module.name} imports {line.target}"
        for line in imports(module)
        if one_of_a_kind(line.target) in others
    ]


def homeless(module: Module) -> list[str]:
    """Imports of libraries outside their homes, and of libraries that have none. Those for type
    checkers alone load nothing and are free."""
    here = home(module)
    free = {*EVERYWHERE, SERVICE, CLIENT, *sys.stdlib_module_names, *late_of_adapters(module)}
    return [
        f"{module.path.name}:{line.line} {module.name} imports {line.top}"
        for line in imports(module)
        if not line.for_types and line.top not in free and here not in HOMES.get(line.top, ())
    ]


def late_of_adapters(module: Module) -> set[str]:
    """What an adapter imports of its trainer, and only inside functions."""
    if not module.name.startswith(ADAPTERS):
        return set()
    at_once = [node for node in module.tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {ast.unparse(node).split()[1].partition(".")[0] for node in at_once}
    return OF_A_TRAINER - names


def home(module: Module) -> str:
    """The room of a module, or the client."""
    return room(module.name) if module.name.split(".")[0] == SERVICE else CLIENT


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_what_stands_to_its_right(module: Module) -> None:
    assert forbidden(module) == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_library_is_imported_only_in_its_homes(module: Module) -> None:
    assert homeless(module) == []


def test_no_home_stands_empty() -> None:
    lived_in = {
        (line.top, home(module))
        for module in MODULES
        for line in imports(module)
        if not line.for_types
    }
    empty = {(name, place) for name, places in HOMES.items() for place in places} - lived_in
    assert empty == set()


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_file_that_is_one_of_a_kind_imports_no_other_of_its_kind(module: Module) -> None:
    assert siblings(module, frozenset(map(str, MODULES))) == []


def test_every_module_of_the_service_has_a_place_in_the_order() -> None:
    rooms = {room(module.name) for module in MODULES if module.name.split(".")[0] == SERVICE}
    assert rooms - {""} - set(PLACE) == set()


@pytest.mark.parametrize("module", [m for m in MODULES if m.name.split(".")[0] == CLIENT], ids=str)
def test_the_client_stands_on_httpx_pydantic_numpy_and_the_standard_library(module: Module) -> None:
    tops = {line.top for line in imports(module) if not line.for_types}
    tops -= late_of_adapters(module)
    assert tops - CLIENT_LIBRARIES - sys.stdlib_module_names == set()


def written(folder: Path, name: str, text: str) -> Module:
    """A module of that name with that text, in a tree of its own."""
    path = folder.joinpath(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    (found,) = modules(folder)
    return found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenreward.errors", "import tokenreward.wire"),
        ("tokenreward.wire", "from tokenreward import settings"),
        ("tokenreward.alignment", "def late():\n    from tokenreward.batching import Batcher"),
        ("tokenreward.batching", "from .engine import Engine"),
        ("tokenreward.credit.kl", "from ..forward import plain"),
        ("tokenreward.contract", "if TYPE_CHECKING:\n    from tokenreward.forward import probe"),
        ("tokenreward.scorers.margin", "from tokenreward.checkpoints import reward_model"),
        ("tokenreward.scorers.margin", "from tokenreward.text.tokenizer import Tokenizer"),
        ("tokenreward.scorers.margin", "from tokenreward.forward import packed"),
        ("tokenreward.forward.packed", "from tokenreward.scorers import reward_model"),
        ("tokenreward.credit.kl", "from tokenreward.settings import Settings"),
        ("tokenreward.http.gateway.fanout", "from tokenreward import ingress"),
        ("tokenreward.combine", "from tokenreward.http.guard import Guard"),
        ("tokenreward.engine.step", "from tokenreward.metrics import Metrics"),
        ("tokenreward.engine.step", "import tokenreward_client"),
        ("tokenreward.demo.train", "from tokenreward.wire import Item"),
        ("tokenreward.forward.load", "from tokenreward.unheard import of"),
        ("tokenreward_client.flow", "from tokenreward.settings import Settings"),
        ("tokenreward_client.flow", "from tokenreward.contract import Sample"),
    ],
)
def test_the_check_flags_a_forbidden_import(tmp_path: Path, name: str, text: str) -> None:
    assert len(forbidden(written(tmp_path, name, text))) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenreward.wire", "from tokenreward.errors import InvalidField"),
        (
            "tokenreward.forward.language_head",
            "from tokenreward.checkpoints.checkpoint import Checkpoint",
        ),
        ("tokenreward.forward.language_head", "from . import checkpoint"),
        ("tokenreward.scorers.margin", "from tokenreward import contract"),
        ("tokenreward.scorers.margin", "from tokenreward.scorers._prompts import steps"),
        ("tokenreward.checkpoints.checkpoint", "from tokenreward.demo import checkpoint_path"),
        ("tokenreward.cli.score", "import tokenreward_client\nfrom tokenreward import __version__"),
        (
            "tokenreward.eval.ask",
            "from tokenreward_client import AsyncClient\nfrom tokenreward.wire import Item",
        ),
        (
            "tokenreward_client.flow",
            "from tokenreward.wire import Item\nfrom tokenreward_client import client",
        ),
    ],
)
def test_the_check_lets_an_allowed_import_pass(tmp_path: Path, name: str, text: str) -> None:
    assert forbidden(written(tmp_path, name, text)) == []


@pytest.mark.parametrize(
    ("name", "text", "flagged"),
    [
        ("tokenreward.http.replica", "from ray import serve", 1),
        ("tokenreward.alignment", "def late():\n    import torch.nn", 1),
        ("tokenreward.wire", "from yaml import safe_load", 1),
        ("tokenreward.scorers.margin", "import torch", 1),
        ("tokenreward.text.offsets", "def late():\n    import torch", 1),
        ("tokenreward.text.offsets", "from transformers import AutoTokenizer", 1),
        ("tokenreward.engine.job", "import a_library_without_a_home", 1),
        ("tokenreward.engine.job", "import numpy, pydantic, os.path", 0),
        ("tokenreward_client.trl", "from transformers import Trainer", 1),
        ("tokenreward_client.trl", "if TYPE_CHECKING:\n    from transformers import Trainer", 0),
        ("tokenreward_client.trainers.slime", "def hook():\n    import torch", 0),
        ("tokenreward_client.trainers.slime", "import torch", 1),
        ("tokenreward_client.trainers.slime", "def hook():\n    import transformers", 1),
        ("tokenreward_client.flow", "def hook():\n    import torch", 1),
        (
            "tokenreward_client.trl",
            "if TYPE_CHECKING:\n    pass\nelse:\n    import transformers",
            1,
        ),
        ("tokenreward.deployment.gateway", "from ray import serve", 0),
        ("tokenreward.forward.language_head", "import torch", 0),
    ],
)
def test_the_check_of_homes_flags_a_heavy_import_abroad(
    tmp_path: Path, name: str, text: str, flagged: int
) -> None:
    assert len(homeless(written(tmp_path, name, text))) == flagged


@pytest.mark.parametrize(
    ("name", "text", "flagged"),
    [
        ("tokenreward.scorers.margin", "from tokenreward.scorers.reward_model import Scorer", 1),
        ("tokenreward.scorers.margin", "from tokenreward.scorers import reward_model", 1),
        ("tokenreward.scorers.margin", "from . import reward_model", 1),
        ("tokenreward.scorers.margin", "def late():\n    from . import reward_model", 1),
        ("tokenreward.scorers.margin", "from tokenreward.scorers._prompts import steps", 0),
        ("tokenreward.http.protocols.pairs", "from tokenreward.http.protocols import native", 1),
        ("tokenreward.http.protocols.pairs", "from tokenreward.http.protocols import Protocol", 0),
        (
            "tokenreward.http.gateway.backend",
            "from tokenreward.http.protocols.native import Native",
            0,
        ),
    ],
)
def test_the_check_of_kinds_flags_a_sibling(
    tmp_path: Path, name: str, text: str, flagged: int
) -> None:
    known = frozenset(map(str, MODULES))
    assert len(siblings(written(tmp_path, name, text), known)) == flagged
