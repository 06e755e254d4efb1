"""The service whose passes take time and no CPU, and runs against it in a namespace."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fakes import namespace, nodes
from scale import BUILD
from tokenreward.config import parse_settings
from tokenreward.deployment import instance, plan

PROXIES = ("python", "haproxy")

_ROOT = Path(__file__).resolve().parents[2]


def outcome_behind(proxy: str, command: Sequence[str]) -> dict[str, Any]:
    """What a Python command wrote as JSON to the file that is its last argument.

    Args:
        proxy: What stands before the replicas, `python` or `haproxy`.
        command: The arguments of Python, without the file.
    """
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        file = Path(folder) / "outcome.json"
        modules = os.pathsep.join(str(_ROOT / name) for name in ("service", "clients", "tests"))
        environment = {**os.environ, "PYTHONPATH": modules, "OMP_NUM_THREADS": "1"}
        if proxy == "haproxy":
            environment |= nodes.environment()
        inside = namespace.command([sys.executable, *command, str(file)])
        subprocess.run(inside, env=environment, check=False)
        if not file.exists():
            raise SystemExit(f"{proxy}: the run ended early")
        return dict(json.loads(file.read_text()))


@contextlib.contextmanager
def slow_service(
    settings: dict[str, Any],
    *,
    keep_logs: bool = False,
    policy: Mapping[str, Any] | None = None,
) -> Iterator[tuple[instance.Instance, str]]:
    """Serves with the slow replicas of `slow.py`.

    Args:
        settings: What a config file would hold.
        keep_logs: Whether the logs stay when the block ends.
        policy: Arguments of the autoscaling policies that no setting has.

    Yields:
        The service, and its URL.
    """
    parsed, real = parse_settings(settings), plan.serve_config

    def slowed(settings: Any, **options: Any) -> dict[str, Any]:
        config = real(settings, **options)
        for application in config["applications"][1:]:
            application["import_path"] = BUILD
            for deployment in application["deployments"]:
                if policy is not None:
                    arguments = deployment["autoscaling_config"]["policy"]["policy_kwargs"]
                    arguments.update(policy)
        return config

    instance.serve_config = slowed  # type: ignore[attr-defined]
    service = instance.Instance(parsed, lambda line: print(line, flush=True))
    try:
        service.start()
        yield service, plan.internal_url(parsed)
    except BaseException:
        traceback.print_exc()  # before Ray dies, which ends this process, too
        raise
    finally:
        service.stop(keep_logs=keep_logs)
