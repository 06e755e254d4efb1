"""Every metric of the service: its name, unit, help, labels and buckets, in one table; and their
Prometheus text.

The names below carry the prefix `tokenreward_` on the wire and end in their unit or in `_total`. A
replica holds one `Metrics`; the front renders the snapshots of all replicas as one text, with
`deployment` and `replica` labels. It knows no HTTP and no Ray: who gathers the snapshots is for
others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric as Family

PREFIX = "tokenreward_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Snapshot = list[dict[str, Any]]
Kind = Literal["counter", "gauge", "histogram"]

_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072, 262144)
_RATIO = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 0.9)


@dataclass(frozen=True, slots=True)
class Declared:
    """One row of the table."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


TABLE = (
    Declared(
        "requests_total",
        "counter",
        "HTTP requests answered, probes and scrapes apart.",
        ("status",),
    ),
    Declared(
        "request_seconds",
        "histogram",
        "Of `/v1/rewards`: from the first byte of a request to its reply.",
        buckets=_SECONDS,
    ),
    Declared("errors_total", "counter", "Errors answered, of requests and of items.", ("code",)),
    Declared("items_total", "counter", "Items scored.", ("scorer",)),
    Declared(
        "tokens_total", "counter", "Tokens of the items scored: `prompt` or `response`.", ("kind",)
    ),
    Declared("queue_seconds", "histogram", "Waiting for the device.", buckets=_SECONDS),
    Declared("tokenize_seconds", "histogram", "In the tokenizer, per request.", buckets=_SECONDS),
    Declared("compute_seconds", "histogram", "On the device, per batch.", buckets=_SECONDS),
    Declared("batch_items", "histogram", "Items in one batch.", buckets=_ITEMS),
    Declared("batch_tokens", "histogram", "Tokens in one batch.", buckets=_TOKENS),
    Declared(
        "batch_padding_ratio",
        "histogram",
        "Padding over all positions computed, per batch.",
        buckets=_RATIO,
    ),
    Declared(
        "computed_tokens_total",
        "counter",
        "Positions that went through the model, padding included.",
    ),
    Declared("padding_tokens_total", "counter", "Positions computed that were only padding."),
    Declared(
        "shared_tokens_total",
        "counter",
        "Prompt tokens not computed again, as items of a batch share them.",
    ),
    Declared("queued_items", "gauge", "Items waiting for the device."),
    Declared("queued_tokens", "gauge", "Tokens waiting for the device."),
    Declared("model_version", "gauge", "Version of the weights being served."),
)
REQUESTS = TABLE[:3]  # what a process has that answers and scores nothing


class Metrics:
    """The metrics of one process; `report` is the callback that the engine and the HTTP routes
    call."""

    def __init__(self, rows: Sequence[Declared] = TABLE) -> None:
        self._registry = CollectorRegistry()
        self._metrics = {row.name: _create(row, self._registry) for row in rows}
        self._recorders: dict[Hashable, Callable[[float], None]] = {}

    def report(self, name: str, value: float = 1.0, **labels: str) -> None:
        """Add to a counter, set a gauge, or observe into a histogram. Raises KeyError if its rows
        lack `name`."""
        key = (name, *labels.items())
        record = self._recorders.get(key)
        if record is None:  # finding a metric's child takes longer than telling it
            metric = self._metrics[name]
            record = self._recorders[key] = _recorder(metric.labels(**labels) if labels else metric)
        record(value)

    def snapshot(self) -> Snapshot:
        """All families and samples as plain objects, for another process to render."""
        return [
            {
                "name": family.name,
                "type": family.type,
                "help": family.documentation,
                "samples": [
                    [sample.name, dict(sample.labels), sample.value]
                    for sample in family.samples
                    if not sample.name.endswith("_created")
                ],
            }
            for family in self._registry.collect()
        ]


def render(snapshots: Mapping[tuple[str, str], Snapshot]) -> bytes:
    """Prometheus text of the replicas that are there now, keyed by (deployment, replica)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Gathered(snapshots))
    return generate_latest(registry)


class _Gathered:
    """A collector over other processes' snapshots: one family per name, however many replicas have
    it."""

    def __init__(self, snapshots: Mapping[tuple[str, str], Snapshot]) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterator[Family]:
        families: dict[str, Family] = {}
        for (deployment, replica), snapshot in self._snapshots.items():
            for part in snapshot:
                family = families.setdefault(
                    part["name"], Family(part["name"], part["help"], part["type"])
                )
                for name, labels, value in part["samples"]:
                    family.add_sample(
                        name, {"deployment": deployment, "replica": replica, **labels}, value
                    )
        yield from families.values()


def _recorder(metric: Counter | Gauge | Histogram) -> Callable[[float], None]:
    if isinstance(metric, Counter):
        return metric.inc
    return metric.set if isinstance(metric, Gauge) else metric.observe


def _create(row: Declared, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    name = PREFIX + row.name
    if row.kind == "counter":
        return Counter(name, row.help, row.labels, registry=registry)
    if row.kind == "gauge":
        return Gauge(name, row.help, row.labels, registry=registry)
    return Histogram(name, row.help, row.labels, registry=registry, buckets=row.buckets)
