"""A private Ray instance for `tokenreward serve`: closed to the network, watched while it starts,
and gone when it stops.

All HTTP listens on loopback, or on the host that the operator named. Ray's own gRPC ports refuse
callers that lack this run's random token. The instance never attaches to a cluster that is already
there. It knows no scorers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tokenreward.deployment.machine import RAY_FOLDER, StartFailed, make_folder
from tokenreward.deployment.plan import needed_cpus, serve_config
from tokenreward.deployment.watcher import TOKEN, start_watcher
from tokenreward.settings import Settings

if TYPE_CHECKING:
    from ray.serve.schema import ApplicationStatusOverview

_GUESSES = " Some common causes include"
_OBJECT_STORE_BYTES = 512 * 2**20
_POLL_S = 0.5
_REPORT_EVERY_S = 5.0
_LONGEST_DEATH_S = 2.0
# Statuses of Ray's applications and deployments that no waiting mends.
_FAILED_STATUSES = ("DEPLOY_FAILED", "UNHEALTHY")


class Instance:
    """One Ray instance and the service on it: `connect`, `deploy`, `watch`, and `stop` at any time.

    Args:
        settings: What to serve.
        say: Gets a line for the console whenever there is progress.

    Attributes:
        folder: Holds all that Ray and the replicas write. Only this user may enter it.

    Raises:
        StartFailed: There can be no such folder.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._is_stopping = False
        self._watcher: subprocess.Popen[bytes] | None = None
        self.folder = make_folder()
        # Ray lets every user write to its own folder. So it gets one inside of ours.
        self._ray_folder = self.folder / RAY_FOLDER

    @property
    def logs(self) -> Path:
        """The folder that Ray and the replicas log to."""
        return self._ray_folder / "session_latest" / "logs"

    def start(self, on_connected: Callable[[], None] = lambda: None) -> None:
        """Brings up Ray and the service, and returns when every replica is loaded.

        Args:
            on_connected: Called when Ray runs, which takes the process's signal handlers for
                itself.

        Raises:
            StartFailed: Why it did not come up, whatever failed.
        """
        try:
            self._connect()
            on_connected()
            self._deploy()
        except StartFailed:
            raise
        except Exception as error:
            text = reason(str(error)) if str(error) else type(error).__name__
            raise StartFailed(f"Ray did not start in {self.folder}: {text}") from error

    def _connect(self) -> None:
        """Brings up Ray. Raises StartFailed if the deployments reserve more GPUs than there are."""
        set_ray_environment()
        self._watcher = start_watcher(self.folder)
        import ray

        self._say(f"starting; logs are in {self.logs} while it runs")
        logging.getLogger("ray").setLevel(logging.ERROR)
        ray.init(
            address="local",
            num_cpus=needed_cpus(self._settings),  # the operator says what fits, not the machine
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(self._ray_folder),
        )
        num_needed = sum(d.max_replicas * d.num_gpus for d in self._settings.deployments)
        num_present = ray.cluster_resources().get("GPU", 0)
        if num_needed > num_present:  # Ray would wait for GPUs to come
            raise StartFailed(
                f"the deployments reserve {num_needed:g} GPUs (`num_gpus`), this machine has "
                f"{num_present:g}"
            )

    def _deploy(self) -> None:
        """Brings up the service. Raises StartFailed if an application cannot be built, or if a
        replica cannot start."""
        from ray import serve
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        config = ServeDeploySchema.model_validate(serve_config(self._settings, is_cluster=False))
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(
            proxy_location=config.proxy_location,
            http_options=config.http_options.model_dump(),
            logging_config=config.logging_config,
        )
        client = _get_global_client()
        assert client is not None
        client.deploy_apps(config)
        monitor = StartMonitor(self._say, [d.name for d in self._settings.deployments])
        while not monitor.update(serve.status().applications):
            time.sleep(_POLL_S)

    def stop(self, *, keep_logs: bool = False) -> None:
        """Ends every process at once.

        No process has anything to finish: scoring changes nothing, and callers retry.
        """
        self._is_stopping = True
        # The watcher is among them, and is the first: it would remove logs that are kept.
        processes = psutil.Process().children(recursive=True)
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.communicate()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        deadline = time.monotonic() + _LONGEST_DEATH_S
        while any(_is_alive(process) for process in processes) and time.monotonic() < deadline:
            time.sleep(0.01)
        if not keep_logs:
            shutil.rmtree(self.folder, ignore_errors=True)

    def watch(self) -> None:
        """Returns only if Ray died under the service."""
        watcher = self._watcher.pid if self._watcher is not None else None
        children = [each for each in psutil.Process().children() if each.pid != watcher]
        while self._is_stopping or all(_is_alive(child) for child in children):
            time.sleep(_POLL_S)


class StartMonitor:
    """Tells the console how far each deployment is.

    There is a line when a deployment is ready, and every few seconds one about those that are not.

    Args:
        say: Gets each line.
        deployments: The names of all deployments.
    """

    def __init__(self, say: Callable[[str], None], deployments: list[str]) -> None:
        self._say = say
        self._loading = list(deployments)
        self._began = self._reported_at = time.monotonic()
        self._messages: dict[str, str] = {}

    def update(self, applications: Mapping[str, ApplicationStatusOverview]) -> bool:
        """Reports the statuses that Ray has now.

        Args:
            applications: The applications of `serve.status()`, by name.

        Returns:
            Whether all of them are running.

        Raises:
            StartFailed: Ray has given up on one of them.
        """
        for name, application in applications.items():
            for part in (*application.deployments.values(), application):
                if part.status in _FAILED_STATUSES:
                    raise StartFailed(f"{name}: {reason(part.message)}")
            if application.status == "RUNNING" and name in self._loading:
                self._loading.remove(name)
                self._say(f"{name}: ready after {time.monotonic() - self._began:.1f} s")
        if time.monotonic() - self._reported_at > _REPORT_EVERY_S:
            self._reported_at = time.monotonic()
            self._report_loading(applications)
        return bool(applications) and all(app.status == "RUNNING" for app in applications.values())

    def _report_loading(self, applications: Mapping[str, ApplicationStatusOverview]) -> None:
        """Says what is still loading, and each new message that Ray has about it.

        One replica of several may fail to start while the others run. Ray then tries again without
        end and the status does not change: only the message says why.
        """
        loading = ", ".join(self._loading) or "the gateway"
        self._say(f"loading {loading}: {self._reported_at - self._began:.1f} s")
        for name, application in applications.items():
            for deployment in application.deployments.values():
                if deployment.message and deployment.message != self._messages.get(name):
                    self._messages[name] = deployment.message
                    self._say(f"{name}: {reason(deployment.message)}")


def reason(message: str) -> str:
    """The exception at the end of a Ray status message, without the traceback before it and
    without Ray's guesses behind it."""
    lines = [line for line in message.splitlines() if line.strip()]
    indented = [index for index, line in enumerate(lines) if line[0].isspace()]
    first = indented[-1] + 1 if indented else 0
    text = " ".join(lines[first:]) or "it failed to start"
    text = text.partition(_GUESSES)[0]
    return re.sub(r"^[\w.]*\.(?=\w+: )", "", text)  # the exception's class without its module


def set_ray_environment() -> None:
    """Sets what Ray reads when it is first imported, here and in every process that it starts."""
    os.environ[TOKEN] = secrets.token_hex(32)
    os.environ.update(
        RAY_AUTH_MODE="token",
        # Despite its name: with 0, Ray's own address is loopback on every system.
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        # A checkpoint that cannot be loaded once cannot be loaded twice: the deployment has failed
        # when each of its replicas has.
        RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT="1",
        # An unhealthy replica cannot answer what it holds. Told to stop in good order, it would
        # keep its GPU until the last deadline of its callers.
        RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS="1",
        # How soon Ray notices that its HTTP proxy is dead: after three checks, which fail at once.
        # By default they are 10 s apart. A proxy that takes long to start on a busy machine is not
        # dead: it has more than the default of 5 s.
        RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S="0.25",
        RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="30",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_worker_niceness="0",
        RAY_SERVE_LOG_TO_STDERR="0",
    )


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
