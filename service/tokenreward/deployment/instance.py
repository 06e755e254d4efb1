"""A private Ray instance for `tokenreward serve`: closed to the network, watched while it starts,
gone when it stops.

Everything HTTP listens on loopback, or on the host that the operator asked for; Ray's own gRPC
ports refuse callers without this run's token. It never attaches to a cluster that is already there.
It knows no scorers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tokenreward.deployment.plan import needed_cpus, serve_config
from tokenreward.settings import Settings

Say = Callable[[str], None]

_OBJECT_STORE_BYTES = 512 * 2**20
_POLL_S = 0.5
_SAY_AGAIN_S = 5.0
_DEATH_S = 2.0


class StartFailed(RuntimeError):
    """The service could not be brought up; the message says why."""


class Instance:
    """One Ray instance and the service on it: `connect`, `deploy`, `watch`, and `stop` at any
    time."""

    def __init__(self, settings: Settings, say: Say) -> None:
        self._settings = settings
        self._say = say
        self._stopping = False
        self.folder = Path(tempfile.mkdtemp(prefix="tokenreward-"))

    @property
    def logs(self) -> Path:
        """Where Ray and the replicas write."""
        return self.folder / "session_latest" / "logs"

    def connect(self) -> None:
        """Bring up Ray. It takes the process's signal handlers for itself. Raises StartFailed."""
        close_ray()
        self._say(f"starting; logs are in {self.logs} while it runs")
        self._start_ray()
        self._refuse_missing_gpus()

    def deploy(self) -> None:
        """Bring up the service; returns when every replica is loaded. Raises StartFailed."""
        self._deploy()
        self._wait()

    def stop(self, *, keep_logs: bool = False) -> None:
        """Ends every process at once. Nothing in them is worth waiting for: scoring is pure, and
        callers retry."""
        self._stopping = True
        processes = psutil.Process().children(recursive=True)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        patience = time.monotonic() + _DEATH_S
        while any(_is_alive(process) for process in processes) and time.monotonic() < patience:
            time.sleep(0.01)
        if not keep_logs:
            shutil.rmtree(self.folder, ignore_errors=True)

    def watch(self) -> None:
        """Returns only if Ray died under the service."""
        children = psutil.Process().children()
        while self._stopping or all(_is_alive(child) for child in children):
            time.sleep(_POLL_S)

    def _start_ray(self) -> None:
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        ray.init(
            address="local",
            num_cpus=needed_cpus(
                self._settings
            ),  # the operator's word on what fits, not the machine's
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(self.folder),
        )

    def _refuse_missing_gpus(self) -> None:
        """Ray would wait for them to come."""
        import ray

        wanted = sum(d.num_replicas * d.num_gpus for d in self._settings.deployments)
        found = ray.cluster_resources().get("GPU", 0)
        if wanted > found:
            raise StartFailed(
                f"the deployments reserve {wanted:g} GPUs (`num_gpus`), this machine has {found:g}"
            )

    def _deploy(self) -> None:
        from ray import serve
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        config = ServeDeploySchema.model_validate(serve_config(self._settings))
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(
            proxy_location=config.proxy_location, http_options=config.http_options.model_dump()
        )
        client = _get_global_client()
        assert client is not None
        client.deploy_apps(config)

    def _wait(self) -> None:
        from ray import serve

        progress = Progress(self._say, {d.name: d.num_replicas for d in self._settings.deployments})
        while not progress.update(serve.status().applications):
            time.sleep(_POLL_S)


class Progress:
    """Tells the console how far each deployment is: when it starts, every few seconds, and when it
    is there."""

    def __init__(self, say: Say, num_replicas: dict[str, int]) -> None:
        self._say = say
        self._num_replicas = num_replicas
        self._began = self._said = time.monotonic()
        self._ready: set[str] = set()

    def update(self, applications: dict[str, Any]) -> bool:
        """Whether all is running. Raises StartFailed."""
        for name, application in applications.items():
            self._refuse_failed(name, application)
            if (
                application.status == "RUNNING"
                and name in self._num_replicas
                and name not in self._ready
            ):
                self._ready.add(name)
                self._say(f"{name}: ready after {self._seconds()}")
        if time.monotonic() - self._said > _SAY_AGAIN_S:
            self._said = time.monotonic()
            loading = [name for name in self._num_replicas if name not in self._ready]
            self._say(f"loading {', '.join(loading) or 'the gateway'}: {self._seconds()}")
        return bool(applications) and all(app.status == "RUNNING" for app in applications.values())

    def _refuse_failed(self, name: str, application: Any) -> None:
        messages = [deployment.message for deployment in application.deployments.values()]
        failure = next((message for message in messages if "Error" in message), "")
        if application.status == "DEPLOY_FAILED" or failure:
            raise StartFailed(f"{name}: {reason(failure or application.message)}")

    def _seconds(self) -> str:
        return f"{time.monotonic() - self._began:.1f} s"


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def reason(message: str) -> str:
    """The exception that ends a Ray status message, without the traceback before it."""
    lines = [line for line in message.splitlines() if line.strip()]
    last_indented = max(
        (index for index, line in enumerate(lines) if line[0].isspace()), default=-1
    )
    text = " ".join(lines[last_indented + 1 :]) or "it failed to start"
    return re.sub(r"^[\w.]*\.(?=\w+: )", "", text)


def close_ray() -> None:
    """Settings that Ray reads when it is first imported, here and in every process that it
    starts."""
    os.environ.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        # despite its name: Ray's own address is then loopback, everywhere
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_worker_niceness="0",
        RAY_SERVE_LOG_TO_STDERR="0",
    )


def refuse_taken_port(host: str, port: int) -> None:
    """Raises StartFailed if nobody could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartFailed(
                f"cannot listen on {host} port {port}: {error.strerror}; choose others with "
                "--host and --port"
            ) from None
