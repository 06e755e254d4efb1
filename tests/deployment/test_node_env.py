"""Every variable of `deploy/node.env` is one the installed Ray reads; a name that it no longer
knows fails here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fakes import nodes

RAY = Path(next(iter(importlib.util.find_spec("ray").submodule_search_locations)))  # type: ignore[union-attr, arg-type]
SERVE_CONSTANTS = (RAY / "serve" / "_private" / "constants.py").read_text(encoding="utf-8")
USAGE_CONSTANTS = (RAY / "_common" / "usage" / "usage_constants.py").read_text(encoding="utf-8")
GCS_SERVER = RAY / "core" / "src" / "ray" / "gcs" / "gcs_server"
ENVIRONMENT = nodes.environment()


def read_by_serve(name: str) -> bool:
    """Whether Ray Serve asks the environment for it; that a constant bears the name would not
    do."""
    asks = rf"(environ\.get|getenv|get_env_\w+)\(\s*(#[^\n]*\n\s*)*[\"']{name}[\"']"
    return re.search(asks, SERVE_CONSTANTS) is not None


def read_by_core(name: str) -> bool:
    """Whether it is a setting of Ray's C++ core, which asks the environment for RAY_ before its
    settings' names."""
    return name.encode() in GCS_SERVER.read_bytes()


@pytest.mark.parametrize("name", [name for name in ENVIRONMENT if name.startswith("RAY_SERVE_")])
def test_ray_serve_reads_the_variable(name: str) -> None:
    assert read_by_serve(name)


@pytest.mark.parametrize(
    "name", [name for name in ENVIRONMENT if not name.startswith("RAY_SERVE_")]
)
def test_ray_reads_the_variable(name: str) -> None:
    assert read_by_core(name) or f'"{name}"' in USAGE_CONSTANTS


@pytest.mark.parametrize(
    "name", ["RAY_SERVE_ENABLE_HAPROXY", "RAY_SERVE_NO_REPLICAS_MESSAGE", "RAY_worker_nicenesses"]
)
def test_a_name_that_ray_does_not_know_is_found_out(name: str) -> None:
    assert not read_by_serve(name)
    assert not read_by_core(name)


def test_the_modes_that_the_file_is_for_are_on() -> None:
    code = (
        "from ray.serve._private import constants as ray;"
        "assert ray.RAY_SERVE_ENABLE_HA_PROXY and ray.RAY_SERVE_THROUGHPUT_OPTIMIZED;"
        "assert ray.RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD and "
        "ray.RAY_SERVE_ENABLE_DIRECT_INGRESS;"
        "assert (ray.PROXY_HEALTH_CHECK_PERIOD_S, ray.PROXY_HEALTH_CHECK_TIMEOUT_S) == (0.25, 5.0)"
    )
    subprocess.run([sys.executable, "-c", code], env={**ENVIRONMENT, "PATH": ""}, check=True)


def test_serve_on_one_machine_leaves_them_as_they_are() -> None:
    code = (
        "from tokenreward.deployment.instance import set_ray_environment; import os, json;"
        "set_ray_environment(); print(json.dumps(dict(os.environ)))"
    )
    how = {"env": {**os.environ, **ENVIRONMENT}, "capture_output": True, "check": True}
    started = subprocess.run([sys.executable, "-c", code], **how)  # type: ignore[call-overload]
    assert ENVIRONMENT.items() <= json.loads(started.stdout).items()


def test_a_shell_reads_what_we_read() -> None:
    command, bare = f"set -a; . {nodes.NODE_ENV}; set +a; env", {"PATH": "/usr/bin:/bin"}
    shell = subprocess.run(
        ["sh", "-c", command], env=bare, capture_output=True, text=True, check=True
    )
    assert (
        ENVIRONMENT.items()
        <= dict(line.split("=", 1) for line in shell.stdout.splitlines()).items()
    )


def test_no_secret_and_no_switch_stands_without_a_reason() -> None:
    assert not any("TOKEN" in name or "KEY" in name for name in ENVIRONMENT)
    paragraphs = nodes.NODE_ENV.read_text(encoding="utf-8").strip().split("\n\n")[1:]
    assert all(
        paragraph.startswith("# ") and "=" in paragraph.splitlines()[-1] for paragraph in paragraphs
    )


def test_haproxy_tries_another_replica_after_a_second_without_a_connection() -> None:
    code = (
        "from ray.serve._private.haproxy import HAProxyConfig;"
        "config = HAProxyConfig();"
        "assert (config.timeout_connect_s, config.retry_on) == (1, 'conn-failure');"
        "assert config.observe_mark_down_enabled"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **ENVIRONMENT}, check=True)


def test_haproxy_closes_the_connections_to_a_replica_that_is_gone() -> None:
    """Ray has no setting for it. It writes another setting's value into this line as it is."""
    code = (
        "from ray.serve._private.haproxy import BackendConfig, HAProxyConfig;"
        "backend = BackendConfig(name='b', path_prefix='/', app_name='a', servers=[]);"
        "print(backend.build_health_check_config(HAProxyConfig())['default_server_directive'])"
    )
    how = {"env": {**os.environ, **ENVIRONMENT}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], check=True, **how)  # type: ignore[call-overload]
    line = done.stdout.strip()
    assert "downinter 250ms on-marked-down shutdown-sessions" in line
    assert "fall 3" in line
    assert " inter 800ms" in line
    assert "fastinter 50ms" in line
