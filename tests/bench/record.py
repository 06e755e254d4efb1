"""What was measured, kept as JSON: suite by suite, so that a run of one leaves what others
found."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.figure import Figure, Point, Result, Skipped


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "torch": torch.__version__}


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def kept(file: Path) -> dict[str, Any]:
    """What the file holds; nothing if there is none."""
    return dict(json.loads(file.read_text())) if file.exists() else {"suites": {}}


def keep(
    file: Path,
    suite: str,
    results: Sequence[Result],
    *,
    rounds: int,
    where: dict[str, Any] | None = None,
) -> None:
    """Puts one suite's results in the place of its former ones. `where`: more that the numbers
    depend on."""
    content = kept(file)
    content["machine"] = machine() | (where or {})
    content["suites"][suite] = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "rounds": rounds,
        "figures": [
            result.as_json() for result in results if isinstance(result, (Figure, Skipped))
        ],
        "points": [result.as_json() for result in results if isinstance(result, Point)],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")


def points(file: Path) -> list[Point]:
    """Of all suites in the file."""
    return [Point(**point) for suite in kept(file)["suites"].values() for point in suite["points"]]
