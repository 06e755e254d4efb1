"""A module imports only what stands to its right in the order of the contract, and each heavy
library has one home."""

from __future__ import annotations

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

HTTP = {"http"}
HOMES = {
    "ray": {"deployment"},
    "fastapi": HTTP,
    "starlette": HTTP,
    "uvicorn": set(),
    "prometheus_client": {"metrics"},
    "transformers": {"checkpoints", "forward", "text", "demo"},
    "tokenizers": {"text", "demo"},
    "huggingface_hub": {"checkpoints"},
    "peft": {"checkpoints"},
    "safetensors": {"checkpoints", "demo"},
    "datasets": {"demo"},
    "trl": {"demo"},
    "accelerate": {"demo"},
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
        return here != "scorers" or _is_prompt(name) or _is_prompt(line.target)
    return there in ("", "__version__") or (
        there in PLACE and here in PLACE and PLACE[here] < PLACE[there]
    )


def _is_prompt(name: str) -> bool:
    """The prompts that scorers write are no scorers."""
    return name.startswith("tokenreward.scorers._prompts")


def homeless(module: Module) -> list[str]:
    """Imports of heavy libraries outside their homes. Those for type checkers alone load nothing
    and are free."""
    here = room(module.name) if module.name.split(".")[0] == SERVICE else CLIENT
    return [
        f"{module.path.name}:{line.line} {module.name} imports {line.top}"
        for line in imports(module)
        if not line.for_types and here not in HOMES.get(line.top, {here})
    ]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_what_stands_to_its_right(module: Module) -> None:
    assert forbidden(module) == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_heavy_library_is_imported_only_in_its_home(module: Module) -> None:
    assert homeless(module) == []


def test_every_module_of_the_service_has_a_place_in_the_order() -> None:
    rooms = {room(module.name) for module in MODULES if module.name.split(".")[0] == SERVICE}
    assert rooms - {""} - set(PLACE) == set()


@pytest.mark.parametrize("module", [m for m in MODULES if m.name.split(".")[0] == CLIENT], ids=str)
def test_the_client_stands_on_httpx_pydantic_numpy_and_the_standard_library(module: Module) -> None:
    tops = {line.top for line in imports(module) if not line.for_types}
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
        ("tokenreward.scorers.margin", "from tokenreward.scorers.reward_model import Scorer"),
        ("tokenreward.scorers.margin", "from tokenreward.scorers import reward_model"),
        ("tokenreward.scorers.margin", "from . import reward_model"),
        ("tokenreward.http.fanout", "from tokenreward import ingress"),
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
        ("tokenreward_client.trl", "from transformers import Trainer", 1),
        ("tokenreward_client.trl", "if TYPE_CHECKING:\n    from transformers import Trainer", 0),
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
