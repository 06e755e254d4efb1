"""`tokenreward weights` against the gateway's own route."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from fakes import web
from fakes.pushes import FakeDeployment, app_of
from tokenreward.cli import main

KEY = "the-admin-key"
PUSH = ("--checkpoint", "/runs/7", "--version", "7")


@pytest.fixture
def deployment() -> FakeDeployment:
    return FakeDeployment()


@pytest.fixture
def weights(deployment: FakeDeployment, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Runs the command, with the first key of a file."""
    file = tmp_path / "admins"
    file.write_text(f"{KEY}\nanother\n")
    with web.serving(app_of(deployment, admin_keys=(SecretStr(KEY),))) as url:
        yield lambda *flags: main(
            ["weights", "lm", "--url", url, "--admin-key-file", str(file), *flags]
        )


def test_a_push_prints_what_each_replica_serves(
    weights: Any, deployment: FakeDeployment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weights(*PUSH, "--adapter", "/lora") == 0
    printed = json.loads(capsys.readouterr().out)
    assert [replica["version"] for replica in printed["replicas"]] == [7, 7]
    pushed = deployment.registry.pushed("lm")
    assert pushed is not None
    assert (pushed.checkpoint, pushed.adapter) == ("/runs/7", "/lora")


def test_without_a_checkpoint_the_weights_are_shown(
    weights: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    weights(*PUSH)
    capsys.readouterr()
    assert weights() == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["pushed"]["version"], printed["declared"]["version"]) == (7, 1)


def test_a_replica_that_missed_the_commit_is_a_failure(
    weights: Any, deployment: FakeDeployment
) -> None:
    deployment.silent_at = {"commit_weights"}
    assert weights(*PUSH) == 1


@pytest.mark.parametrize(
    ("flags", "code", "line"),
    [
        (("--version", "7"), 2, "--checkpoint"),
        (("--checkpoint", "/runs/7"), 2, "--version"),
        ((*PUSH[:3], "0"), 1, "version_conflict"),
        ((*PUSH, "--admin-key-file", "absent"), 1, "--admin-key-file"),
    ],
)
def test_what_is_wrong_is_one_line(
    weights: Any, capsys: pytest.CaptureFixture[str], flags: Any, code: int, line: str
) -> None:
    assert weights(*flags) == code
    error = capsys.readouterr().err
    assert line in error
    assert len(error.splitlines()) == 1
    assert KEY not in error
