"""Every metric of the service in one table, with its unit, help, labels and buckets; and Prometheus
text made of them.

On the wire the names of the table carry the prefix `tokenreward_`. They end in their unit or in
`_total`. A replica holds one `Metrics`; the gateway renders the snapshots of all replicas as one
text, with the labels `deployment` and `replica`. This module knows no HTTP and no Ray, and gathers
no snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric

PREFIX = "tokenreward_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Snapshot = list[dict[str, Any]]  # plain objects, which JSON and Ray can carry

_MILLISECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)
_SECONDS = (*_MILLISECONDS, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072, 262144)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One row of the table. Only a histogram has buckets."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


TABLE = (
    MetricSpec(
        "requests_total",
        "counter",
        "HTTP requests answered, probes and scrapes apart; 499: the caller hung up.",
        ("status",),
    ),
    MetricSpec(
        "request_seconds",
        "histogram",
        "Of requests for rewards: from the first byte of a request to its reply.",
        buckets=_SECONDS,
    ),
    MetricSpec("errors_total", "counter", "Errors answered, of requests and of items.", ("code",)),
    MetricSpec("items_total", "counter", "Items scored.", ("scorer",)),
    MetricSpec(
        "tokens_total", "counter", "Tokens of the items scored: `prompt` or `response`.", ("kind",)
    ),
    MetricSpec("queue_seconds", "histogram", "Waiting for the device.", buckets=_SECONDS),
    MetricSpec("tokenize_seconds", "histogram", "In the tokenizer, per request.", buckets=_SECONDS),
    MetricSpec("compute_seconds", "histogram", "On the device, per batch.", buckets=_SECONDS),
    MetricSpec("batch_items", "histogram", "Items in one batch.", buckets=_ITEMS),
    MetricSpec("batch_tokens", "histogram", "Tokens in one batch.", buckets=_TOKENS),
    MetricSpec(
        "computed_tokens_total",
        "counter",
        "Positions that went through the model, padding included.",
    ),
    MetricSpec(
        "shared_tokens_total",
        "counter",
        "Prompt tokens not computed again, as items of a batch share them.",
    ),
    MetricSpec(
        "padding_tokens_total", "counter", "Positions behind the ends of rows, which nothing reads."
    ),
    MetricSpec("queued_items", "gauge", "Items waiting for the device."),
    MetricSpec("queued_tokens", "gauge", "Tokens waiting for the device."),
    MetricSpec(
        "lent_items_total",
        "counter",
        "Items lent to an idle replica: `computed` there, or `returned` to be computed here.",
        ("outcome",),
    ),
    MetricSpec("model_version", "gauge", "Version of the weights being served."),
    MetricSpec(
        "newest_version",
        "gauge",
        "Version that is to serve: the greater one of those pushed and declared.",
    ),
    MetricSpec(
        "replicas_desired",
        "gauge",
        "Replicas that are to run: the setting, or what autoscaling decided.",
    ),
    MetricSpec("replicas_running", "gauge", "Replicas that run and take requests."),
)
# Of a process that answers requests and scores nothing: what the guard and the gateway report.
_OF_REQUESTS = {"requests_total", "request_seconds", "errors_total"}
REQUESTS = tuple(spec for spec in TABLE if spec.name in _OF_REQUESTS)
# Of a deployment as a whole: no replica knows them.
REPLICA_COUNTS = tuple(spec for spec in TABLE if spec.name.startswith("replicas_"))
OF_A_REPLICA = tuple(spec for spec in TABLE if spec not in REPLICA_COUNTS)


class Metrics:
    """The metrics of one process.

    Args:
        specs: The rows of the table that this process reports.
    """

    def __init__(self, specs: Sequence[MetricSpec] = OF_A_REPLICA) -> None:
        self._registry = CollectorRegistry()
        self._metrics = {spec.name: _create(spec, self._registry) for spec in specs}
        self._recorders: dict[Hashable, Callable[[float], None]] = {}

    def report(self, name: str, value: float = 1.0, **labels: str) -> None:
        """Adds to a counter, sets a gauge, or observes into a histogram.

        The engine and the HTTP routes get this method as a plain callback.

        Raises:
            KeyError: This process has no metric `name`.
        """
        key = (name, *labels.items())
        record = self._recorders.get(key)
        if record is None:  # prometheus_client takes longer to find a child than to record a value
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
                "samples": _samples(family),
            }
            for family in self._registry.collect()
        ]


def render(snapshots: Mapping[tuple[str, str], Snapshot]) -> bytes:
    """Prometheus text of the snapshots, keyed by (deployment, replica)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_SnapshotCollector(snapshots))
    return generate_latest(registry)


class _SnapshotCollector:
    """Collects other processes' snapshots: one family per name, however many replicas have it."""

    def __init__(self, snapshots: Mapping[tuple[str, str], Snapshot]) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for (deployment, replica), snapshot in self._snapshots.items():
            origin = {"deployment": deployment, "replica": replica}
            for family in snapshot:
                name = family["name"]
                if name not in families:
                    families[name] = Metric(name, family["help"], family["type"])
                for sample_name, labels, value in family["samples"]:
                    families[name].add_sample(sample_name, {**origin, **labels}, value)
        yield from families.values()


def _samples(family: Metric) -> list[list[Any]]:
    """Name, labels and value of each sample, without the times at which counters began."""
    return [
        [sample.name, dict(sample.labels), sample.value]
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]


def _recorder(metric: Counter | Gauge | Histogram) -> Callable[[float], None]:
    if isinstance(metric, Counter):
        return metric.inc
    if isinstance(metric, Gauge):
        return metric.set
    return metric.observe


def _create(spec: MetricSpec, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    name = PREFIX + spec.name
    if spec.kind == "counter":
        return Counter(name, spec.help, spec.labels, registry=registry)
    if spec.kind == "gauge":
        return Gauge(name, spec.help, spec.labels, registry=registry)
    return Histogram(name, spec.help, spec.labels, registry=registry, buckets=spec.buckets)
