"""What the console says while the service starts, from the statuses that Ray reports."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
)

from tokenreward.config import demo_settings
from tokenreward.deployment import instance
from tokenreward.deployment.instance import Instance, StartMonitor, reason
from tokenreward.deployment.machine import StartFailed, refuse_taken_port
from tokenreward.settings import Settings

TRACE = """A replica failed to start with exception. Retrying 2 more time(s). Error:
\x1b[36mray::ServeReplica:lm:Replica.initialize_and_get_metadata()\x1b[39m (pid=1)
  File "replica.py", line 1, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "engine.py", line 2, in load
    raise CheckpointRefused("...")
tokenreward.checkpoints.checkpoint.CheckpointRefused: no such checkpoint: /nowhere
Try another one."""


SLOW = """Deployment 'Replica' in application 'lm' has 1 replicas that have taken more than 30s to \
initialize. This may be caused by a slow __init__ or reconfigure method."""


def application(
    status: str, message: str = "", *, deployment: str = "UPDATING"
) -> ApplicationStatusOverview:
    """An application of that status, whose only deployment has the message."""
    replica = DeploymentStatusOverview(
        DeploymentStatus(deployment), DeploymentStatusTrigger("UNSPECIFIED"), {}, message
    )
    return ApplicationStatusOverview(ApplicationStatus(status), "", 0.0, {"Replica": replica})


RUNNING = application("RUNNING", deployment="HEALTHY")
DEPLOYING = application("DEPLOYING")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that the monitor reads: `clock.now` in seconds."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(instance.time, "monotonic", lambda: clock.now)
    return clock


def test_reason_is_the_exception_alone_with_all_its_lines() -> None:
    assert reason(TRACE) == "CheckpointRefused: no such checkpoint: /nowhere Try another one."
    assert reason("The deployment failed to start.") == "The deployment failed to start."
    assert reason("") == "it failed to start"


def test_monitor_says_each_deployment_once_and_ends_when_all_run() -> None:
    lines: list[str] = []
    monitor = StartMonitor(lines.append, ["lm", "rm"])
    assert not monitor.update({})
    assert not monitor.update({"lm": DEPLOYING, "rm": DEPLOYING})
    for _ in range(2):
        assert not monitor.update({"lm": RUNNING, "rm": DEPLOYING})
    assert monitor.update({"lm": RUNNING, "rm": RUNNING})
    assert [line.split(" after")[0] for line in lines] == ["lm: ready", "rm: ready"]


def test_monitor_says_every_few_seconds_what_is_loading_and_the_gateway_last(clock: Any) -> None:
    lines: list[str] = []
    monitor = StartMonitor(lines.append, ["lm", "rm"])
    for clock.now, statuses in (
        (104.0, {"lm": DEPLOYING, "rm": DEPLOYING, "Gateway": DEPLOYING}),
        (106.0, {"lm": DEPLOYING, "rm": DEPLOYING, "Gateway": DEPLOYING}),
        (112.0, {"lm": RUNNING, "rm": DEPLOYING, "Gateway": DEPLOYING}),
        (118.0, {"lm": RUNNING, "rm": RUNNING, "Gateway": DEPLOYING}),
    ):
        assert not monitor.update(statuses)
    assert lines == [
        "loading lm, rm: 6.0 s",
        "lm: ready after 12.0 s",
        "loading rm: 12.0 s",
        "rm: ready after 18.0 s",
        "loading the gateway: 18.0 s",
    ]


@pytest.mark.parametrize("status", ["DEPLOY_FAILED", "UNHEALTHY"])
@pytest.mark.parametrize("of_application", ["DEPLOYING", "DEPLOY_FAILED"])
def test_a_deployment_that_ray_gives_up_ends_the_start_with_its_reason(
    status: str, of_application: str
) -> None:
    failed = application(of_application, TRACE, deployment=status)
    with pytest.raises(StartFailed, match=r"^lm: CheckpointRefused: no such checkpoint"):
        StartMonitor(lambda _: None, ["lm"]).update({"lm": failed})


def test_an_application_that_cannot_be_built_ends_the_start_too() -> None:
    failed = ApplicationStatusOverview(
        ApplicationStatus.DEPLOY_FAILED, "no module named x", 0.0, deployments={}
    )
    with pytest.raises(StartFailed, match="lm: no module named x"):
        StartMonitor(lambda _: None, ["lm"]).update({"lm": failed})


@pytest.mark.parametrize("message", [SLOW, "Error", "2 replicas wait: no ErrorBudget node yet"])
def test_a_message_ends_no_start_whatever_words_are_in_it(clock: Any, message: str) -> None:
    lines: list[str] = []
    monitor = StartMonitor(lines.append, ["lm"])
    assert not monitor.update({"lm": application("DEPLOYING", message)})
    clock.now += 6
    assert not monitor.update({"lm": application("DEPLOYING", message)})
    assert lines == ["loading lm: 6.0 s", f"lm: {message}"]
    assert monitor.update({"lm": application("RUNNING", message, deployment="HEALTHY")})


def test_each_failure_of_one_replica_among_several_is_said_once(clock: Any) -> None:
    lines: list[str] = []
    monitor = StartMonitor(lines.append, ["lm"])
    for message in (TRACE, TRACE, TRACE.replace("/nowhere", "/elsewhere")):
        clock.now += 6
        assert not monitor.update({"lm": application("DEPLOYING", message)})
    assert [line.partition("checkpoint: ")[2] for line in lines if "Refused" in line] == [
        "/nowhere Try another one.",
        "/elsewhere Try another one.",
    ]


def test_ray_gives_a_replica_of_ours_one_try() -> None:
    code = (
        "from tokenreward.deployment.instance import set_ray_environment; set_ray_environment();"
        "from ray.serve._private import constants as ray; print(ray.MAX_PER_REPLICA_RETRY_COUNT)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "1"


DIED = (
    "The actor is dead. Worker exit type: SYSTEM_ERROR. Some common causes include: (1) the process"
)


def test_rays_guesses_are_left_out_of_a_reason() -> None:
    assert reason(DIED) == "The actor is dead. Worker exit type: SYSTEM_ERROR."


@pytest.fixture
def settings() -> Settings:
    return demo_settings()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files whose path leaves room for sockets."""
    with tempfile.TemporaryDirectory(prefix="tr-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_only_this_user_may_enter_the_folder_and_rays_is_inside(
    settings: Settings, short: Path
) -> None:
    service = Instance(settings, print)
    assert stat.S_IMODE(service.folder.stat().st_mode) == 0o700
    assert service.folder.parent == short
    # Ray makes its folder writable for everybody.
    assert service.folder in service.logs.parents[1:]
    assert service.logs.parents[1] != service.folder


def test_a_folder_whose_path_is_too_long_for_sockets_is_refused_by_name(
    settings: Settings, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = short / ("x" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(StartFailed, match=rf"^the path of {deep} is \d+ bytes too long.*TMPDIR"):
        Instance(settings, print)
    assert list(deep.iterdir()) == []


def test_a_full_disk_is_refused_by_name(
    settings: Settings, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 2**20))
    with pytest.raises(StartFailed, match=rf"^{short} has 5 MiB free, Ray needs 64"):
        Instance(settings, print)
    assert list(short.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(
    settings: Settings, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = short / "missing"
    monkeypatch.setattr(tempfile, "tempdir", str(missing))
    with pytest.raises(StartFailed, match=f"cannot make a folder: {missing}.*No such file"):
        Instance(settings, print)


def test_whatever_fails_in_ray_is_one_sentence_that_names_the_folder(
    settings: Settings, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("The current node timed out during startup.\n\nAsk for help.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(instance, "set_ray_environment", lambda: None)
    service = Instance(settings, lambda _: None)
    try:
        with pytest.raises(StartFailed) as failure:
            service.start()
    finally:
        service.stop()
    assert str(failure.value) == (
        f"Ray did not start in {service.folder}: The current node timed out during startup. Ask "
        "for help."
    )
    assert not service.folder.exists()


def test_taken_port_is_refused_and_a_free_one_is_not() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartFailed, match=f"port {port}"):
            refuse_taken_port("127.0.0.1", port)
    refuse_taken_port("127.0.0.1", port)
