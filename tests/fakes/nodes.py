"""The environment of a cluster's nodes, read from `deploy/node.env`."""

from __future__ import annotations

from pathlib import Path

NODE_ENV = Path(__file__).resolve().parents[2] / "deploy" / "node.env"


def environment() -> dict[str, str]:
    """Name and value of each line that is no comment."""
    lines = NODE_ENV.read_text(encoding="utf-8").splitlines()
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: value.strip('"') for name, value in pairs}
