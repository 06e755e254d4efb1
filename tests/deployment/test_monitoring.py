"""The alerts and the dashboard read metrics that exist, by labels that they have. Where Debian's
promtool is installed, each alert is raised and not raised."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from fakes import monitoring
from tokenreward.metrics import PREFIX, TABLE
from tokenreward.wire.paths import METRICS_PATH

CASES = Path(__file__).with_name("alert_cases.yaml")
SUFFIXES = {"counter": [""], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
SERIES = {
    PREFIX + row.name + suffix: {*row.labels, "deployment", "replica", "le"}
    for row in TABLE
    for suffix in SUFFIXES[row.kind]
}
QUERIES = {**monitoring.alerts(), **monitoring.panel_queries()}


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_reads_metrics_that_exist_by_their_labels(name: str) -> None:
    query = QUERIES[name]
    names = monitoring.metric_names(query)
    assert names <= SERIES.keys()
    assert names or "up{" in query
    labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query))
    for grouping in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query):
        labels |= {label.strip() for label in grouping.split(",")}
    known = set().union(*(SERIES[each] for each in names)) if names else {"job"}
    assert labels <= known


def test_the_dashboard_shows_every_metric_of_the_service() -> None:
    shown = set().union(*map(monitoring.metric_names, monitoring.panel_queries().values()))
    for row in TABLE:
        assert any(PREFIX + row.name + suffix in shown for suffix in SUFFIXES[row.kind]), row.name


def test_the_dashboard_is_one_that_grafana_can_lay_out() -> None:
    content = json.loads(monitoring.DASHBOARD.read_text(encoding="utf-8"))
    ids = [panel["id"] for panel in content["panels"]]
    assert len(set(ids)) == len(ids)
    places = set()
    for panel in content["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not places & cells, panel["title"]
        places |= cells
    variables = {variable["name"] for variable in content["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(content["panels"])))
    assert used - {"__rate_interval"} == variables


def test_the_service_is_read_where_it_has_its_metrics() -> None:
    config = yaml.safe_load((monitoring.PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    assert job["metrics_path"] == METRICS_PATH
    assert f'job="{job["job_name"]}"' in monitoring.alerts()["TokenrewardDown"]
    assert len(job["static_configs"][0]["targets"]) == 1  # each node tells of all


def test_every_alert_has_cases() -> None:
    cases = yaml.safe_load(CASES.read_text(encoding="utf-8"))
    tried = {case["alertname"] for test in cases["tests"] for case in test["alert_rule_test"]}
    assert tried == set(monitoring.alerts())


def test_prometheus_takes_the_config_and_the_alerts() -> None:
    promtool = monitoring.tool("promtool")
    config = monitoring.PROMETHEUS / "prometheus.yml"
    run = subprocess.run([promtool, "check", "config", config], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_each_alert_is_raised_by_its_trouble_and_by_no_other() -> None:
    promtool = monitoring.tool("promtool")
    run = subprocess.run([promtool, "test", "rules", CASES], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("name", monitoring.panel_queries())
def test_prometheus_parses_the_query_of_each_panel(name: str, tmp_path: Path) -> None:
    promtool = monitoring.tool("promtool")
    rule = {"record": "x", "expr": monitoring.panel_queries()[name]}
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": [rule]}]}))
    run = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
