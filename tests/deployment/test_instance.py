"""What the console is told while the service starts, from what Ray says of it."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from tokenreward.deployment.instance import Progress, StartFailed, reason, refuse_taken_port

TRACE = """A replica failed to start with exception. Retrying 2 more time(s). Error:
\x1b[36mray::ServeReplica:lm:Replica.initialize_and_get_metadata()\x1b[39m (pid=1)
  File "replica.py", line 1, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "engine.py", line 2, in load
    raise CheckpointRefused("...")
tokenreward.checkpoints.checkpoint.CheckpointRefused: no such checkpoint: /nowhere
Try another one."""


def application(status: str, message: str = "") -> Any:
    return SimpleNamespace(
        status=status, message="", deployments={"Replica": SimpleNamespace(message=message)}
    )


def test_reason_is_the_exception_alone_with_all_its_lines() -> None:
    assert reason(TRACE) == "CheckpointRefused: no such checkpoint: /nowhere Try another one."
    assert reason("The deployment failed to start.") == "The deployment failed to start."
    assert reason("") == "it failed to start"


def test_progress_says_each_deployment_once_and_ends_when_all_run() -> None:
    said: list[str] = []
    progress = Progress(said.append, {"lm": 1, "rm": 2})
    assert not progress.update({})
    assert not progress.update({"lm": application("DEPLOYING"), "rm": application("DEPLOYING")})
    for _ in range(2):
        assert not progress.update({"lm": application("RUNNING"), "rm": application("DEPLOYING")})
    assert progress.update({"lm": application("RUNNING"), "rm": application("RUNNING")})
    assert [line.split(" after")[0] for line in said] == ["lm: ready", "rm: ready"]


def test_first_failure_of_a_replica_ends_the_start_with_its_reason() -> None:
    progress = Progress(lambda _: None, {"lm": 1})
    with pytest.raises(StartFailed, match=r"^lm: CheckpointRefused: no such checkpoint"):
        progress.update({"lm": application("DEPLOYING", TRACE)})


def test_application_that_cannot_be_built_ends_the_start_too() -> None:
    failed = SimpleNamespace(status="DEPLOY_FAILED", message="no module named x", deployments={})
    with pytest.raises(StartFailed, match="lm: no module named x"):
        Progress(lambda _: None, {"lm": 1}).update({"lm": failed})


def test_taken_port_is_refused_and_a_free_one_is_not() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartFailed, match=f"port {port}"):
            refuse_taken_port("127.0.0.1", port)
    refuse_taken_port("127.0.0.1", port)
