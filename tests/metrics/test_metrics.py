"""The table of metrics, and one text for many replicas."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import tokenreward
from tokenreward.metrics import PREFIX, TABLE, Metrics, render

UNITS = ("_seconds", "_items", "_tokens", "_bytes", "_ratio", "_version", "_total")


def values(text: bytes, name: str) -> dict[tuple[str, ...], float]:
    """Samples of one name, by the values of their labels in label order."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name == PREFIX + name
    }


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_name_ends_in_its_unit_or_total(row: object) -> None:
    counts_replicas = row.name.startswith("replicas_")  # type: ignore[attr-defined]
    assert row.name.endswith(UNITS) or counts_replicas  # type: ignore[attr-defined]
    assert row.name.endswith("_total") == (row.kind == "counter")  # type: ignore[attr-defined]
    assert bool(row.buckets) == (row.kind == "histogram")  # type: ignore[attr-defined]


def test_names_are_declared_once() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE)


def test_every_report_in_the_source_names_a_metric_of_the_table() -> None:
    folder = Path(tokenreward.__file__).parent
    sources = [path.read_text(encoding="utf-8") for path in folder.rglob("*.py")]
    reported = {name for text in sources for name in re.findall(r'report\(\s*"([a-z_]+)"', text)}
    assert reported == {row.name for row in TABLE}


def test_unknown_metric_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Metrics().report("requests")


def test_counters_add_gauges_stand_histograms_observe() -> None:
    metrics = Metrics()
    for status in ("200", "200", "503"):
        metrics.report("requests_total", status=status)
    metrics.report("queued_tokens", 7)
    metrics.report("queued_tokens", 3)
    metrics.report("queue_seconds", 0.02)
    text = render({("sft", "r1"): metrics.snapshot()})
    assert values(text, "requests_total") == {("sft", "r1", "200"): 2, ("sft", "r1", "503"): 1}
    assert values(text, "queued_tokens") == {("sft", "r1"): 3}
    assert values(text, "queue_seconds_sum") == {("sft", "r1"): 0.02}
    buckets = values(text, "queue_seconds_bucket")
    assert (
        buckets["sft", "0.01", "r1"],
        buckets["sft", "0.025", "r1"],
        buckets["sft", "+Inf", "r1"],
    ) == (0, 1, 1)


def test_replicas_stand_side_by_side_in_one_family_and_leave_with_their_snapshot() -> None:
    first, second = Metrics(), Metrics()
    first.report("model_version", 1)
    second.report("model_version", 2)
    both = {("sft", "r1"): first.snapshot(), ("rm", "r2"): second.snapshot()}
    text = render(both)
    assert text.count(b"# TYPE tokenreward_model_version gauge") == 1
    assert values(text, "model_version") == {("sft", "r1"): 1, ("rm", "r2"): 2}
    del both["sft", "r1"]
    assert values(render(both), "model_version") == {("rm", "r2"): 2}


def test_snapshot_survives_json_and_another_process() -> None:
    metrics = Metrics()
    metrics.report("errors_total", code='a"quoted\\code')
    snapshot = json.loads(json.dumps(metrics.snapshot()))
    assert values(render({("sft", "r1"): snapshot}), "errors_total") == {
        ('a"quoted\\code', "sft", "r1"): 1
    }
    assert b"_created" not in render({("sft", "r1"): snapshot})


def test_no_replicas_is_an_empty_text() -> None:
    assert render({}) == b""
