"""`import tokenreward_client` must stay cheap in a trainer's process; the check itself is shown to
be able to fail."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "ray",
    "transformers",
    "fastapi",
    "starlette",
    "tokenizers",
    "yaml",
    "prometheus_client",
    "jaxtyping",
)


def heavy_modules_after(statement: str) -> list[str]:
    code = f"import sys; {statement}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement", ["import tokenreward_client", "import tokenreward.cli.score, tokenreward.cli"]
)
def test_import_loads_nothing_heavy(statement: str) -> None:
    assert heavy_modules_after(statement) == []


def test_check_can_fail() -> None:
    assert heavy_modules_after("import tokenreward_client, starlette") == ["starlette"]
