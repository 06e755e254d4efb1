"""The queries of deploy/prometheus and deploy/grafana, and Prometheus itself where there is one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from fakes import web

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS, DASHBOARD = DEPLOY / "prometheus", DEPLOY / "grafana" / "tokenreward.json"
# Counters by label, which have no series before the first of what they count.
OF_TROUBLE = {"tokenreward_errors_total", "tokenreward_lent_items_total"}
_RATE_WINDOW = "30s"
_LONGEST_S = 30.0


def tool(name: str) -> str:
    """The path of `promtool` or `prometheus`; PROMETHEUS_BIN may name their folder. Skips the test
    where there is none: Debian's package `prometheus` has both."""
    path = shutil.which(name, path=os.environ.get("PROMETHEUS_BIN")) or shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} here (Debian: apt-get install prometheus)")
    return path


def alerts() -> dict[str, str]:
    """The expression of each alert, by name."""
    content = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))
    rules = [rule for group in content["groups"] for rule in group["rules"]]
    return {rule["alert"]: rule["expr"] for rule in rules}


def panels() -> list[dict[str, Any]]:
    content = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [panel for panel in content["panels"] if panel["type"] != "row"]


def panel_queries() -> dict[str, str]:
    """Each query of the dashboard by its panel and letter, with Grafana's variables filled in."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", _RATE_WINDOW)
        .replace("$deployment", ".*")
        for panel in panels()
        for target in panel["targets"]
    }


def metric_names(query: str) -> set[str]:
    """Our metrics that a query reads."""
    return set(re.findall(r"\btokenreward_\w+", query))


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[httpx.Client]:
    """Prometheus with our rules and our job, every second, from a running service at host:port."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / "alerts.yml")]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{web.free_port()}"
    command = [
        tool("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    process = subprocess.Popen(command)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=10, trust_env=False) as client:
            until = time.monotonic() + _LONGEST_S
            while not answers(client, f'count_over_time(up{{instance="{target}"}}[1m]) > 3'):
                assert time.monotonic() < until, "Prometheus has read nothing"
                time.sleep(0.5)
            yield client
    finally:
        process.terminate()
        process.wait()


def answers(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    """The series that a query gives now; none while Prometheus starts."""
    try:
        answer = client.get("/api/v1/query", params={"query": query})
    except httpx.TransportError:
        return []
    if answer.status_code == 503:
        return []
    content = answer.json()
    assert content["status"] == "success", (query, content)
    return list(content["data"]["result"])
