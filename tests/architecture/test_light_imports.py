"""What a trainer's process imports is light, and the engine imports without what only the server's
front needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

SERVING = ("ray", "fastapi", "starlette", "uvicorn", "prometheus_client")
HEAVY = ("torch", "transformers", "tokenizers", *SERVING)


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter that finds what this one finds."""
    path = f"import sys; sys.path[:0] = {sys.path!r}; "
    return subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True)


def loaded_after(statement: str, names: tuple[str, ...]) -> list[str]:
    """Which of the libraries a statement loads."""
    done = run(f"{statement}; print(*[name for name in {names!r} if name in sys.modules])")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "module",
    [
        "tokenreward",
        "tokenreward.errors",
        "tokenreward.wire",
        "tokenreward.config",
        "tokenreward.settings",
        "tokenreward.alignment",
        "tokenreward.batching",
        "tokenreward_client",
    ],
)
def test_the_light_modules_load_nothing_heavy_and_need_no_jaxtyping_no_yaml_and_no_codec(
    module: str,
) -> None:
    assert (
        loaded_after(f"import {module}", (*HEAVY, "jaxtyping", "yaml", "orjson", "msgspec")) == []
    )


@pytest.mark.parametrize("module", ["tokenreward.contract", "tokenreward.credit"])
def test_contract_and_credit_are_numpy_and_load_no_torch(module: str) -> None:
    assert loaded_after(f"import {module}", HEAVY) == []


def test_the_engine_and_all_scorers_import_without_the_libraries_of_the_front() -> None:
    blocked = (*SERVING, "orjson", "msgspec", "tokenreward_client")
    block = f"sys.modules.update(dict.fromkeys({blocked!r})); "  # None makes an import raise
    every = "import importlib, pkgutil, tokenreward.engine, tokenreward.scorers as s; "
    every += (
        "[importlib.import_module('tokenreward.scorers.' + m.name) for m in "
        "pkgutil.iter_modules(s.__path__)]"
    )
    done = run(block + every)
    assert done.returncode == 0, done.stderr


def test_the_check_sees_what_is_loaded() -> None:
    assert loaded_after("import tokenreward.wire, yaml, starlette", (*HEAVY, "yaml")) == [
        "starlette",
        "yaml",
    ]


def test_a_blocked_library_cannot_be_imported() -> None:
    done = run("sys.modules.update(dict.fromkeys(('yaml',))); import yaml")
    assert done.returncode != 0
    assert "ModuleNotFoundError" in done.stderr
