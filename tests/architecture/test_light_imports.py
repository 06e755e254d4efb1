"""What a trainer's process imports is light, and the engine imports without what only the
server's HTTP needs."""

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


def import_all(package: str) -> str:
    """A statement that imports every module of a package, those of its folders too."""
    return (
        f"import importlib, pkgutil; package = importlib.import_module({package!r}); "
        f"modules = pkgutil.walk_packages(package.__path__, {package + '.'!r}); "
        "names = [importlib.import_module(module.name).__name__ for module in modules]; "
        "assert len(names) > 2, names"
    )


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


@pytest.mark.parametrize("package", ["tokenreward.text", "tokenreward.scorers"])
def test_no_module_of_text_or_scorers_loads_torch(package: str) -> None:
    assert loaded_after(import_all(package), HEAVY) == []


@pytest.mark.parametrize("module", ["tokenreward.http.replica", "tokenreward.deployment.replica"])
def test_a_replica_loads_torch_only_with_its_engine_once_its_threads_are_limited(
    module: str,
) -> None:
    assert loaded_after(f"import {module}", ("torch", "transformers")) == []


def test_the_engine_and_all_scorers_import_without_the_libraries_of_http() -> None:
    blocked = (*SERVING, "orjson", "msgspec", "tokenreward_client")
    block = f"sys.modules.update(dict.fromkeys({blocked!r})); "  # None makes an import raise
    done = run(f"{block}import tokenreward.engine; {import_all('tokenreward.scorers')}")
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
