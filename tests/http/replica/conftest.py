"""One replica's application around a real engine on a tiny checkpoint, behind a real HTTP
server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from fakes import tiny, web
from tokenreward.engine import Engine
from tokenreward.engine.slot import Slot
from tokenreward.http.app import build_app
from tokenreward.http.replica import ReplicaBackend
from tokenreward.http.request_limits import Limits
from tokenreward.metrics import Metrics
from tokenreward.settings import DeploymentSettings

KEY = "the-first-key"
QUEUE_TOKENS = 64


@dataclass
class Served:
    """A replica that answers at `url`."""

    url: str
    engine: Engine
    metrics: Metrics = field(default_factory=Metrics)

    @contextmanager
    def busy_device(self) -> Iterator[None]:
        """Whatever is asked of the device meanwhile waits."""
        free = threading.Event()
        self.engine.device_thread.submit(free.wait)
        try:
            yield
        finally:
            free.set()


def limits_of(**changes: Any) -> Limits:
    return Limits(
        **{"max_body_bytes": 20_000, "max_request_items": 8, "request_timeout_s": 30.0, **changes}
    )


def settings(checkpoint: Path, **changes: Any) -> DeploymentSettings:
    scorers = [{"type": "endogenous"}, {"type": "constant", "name": "one"}]
    return DeploymentSettings.model_validate(
        {
            "name": "lm",
            "checkpoint": str(checkpoint),
            "task": "causal_lm",
            "device": "cpu",
            "scorers": scorers,
            **changes,
        }
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("ingress-lm"))


@contextmanager
def replica(checkpoint: Path, limits: Limits, **changes: Any) -> Iterator[Served]:
    metrics = Metrics()
    engine = Engine.load(settings(checkpoint, **changes), report=metrics.report)
    slot = Slot(engine)
    with web.serving(build_app(ReplicaBackend("lm", slot, metrics=metrics, limits=limits))) as url:
        yield Served(url, engine, metrics)


@pytest.fixture(scope="session")
def served(checkpoint: Path) -> Iterator[Served]:
    """Open to everybody, with a short queue."""
    with replica(checkpoint, limits_of(), max_queued_tokens=QUEUE_TOKENS) as served:
        yield served


@pytest.fixture(scope="session")
def locked(checkpoint: Path) -> Iterator[Served]:
    """Wants a key."""
    with replica(
        checkpoint, limits_of(api_keys=(SecretStr("another-key"), SecretStr(KEY)))
    ) as served:
        yield served


@pytest.fixture(scope="session")
def loading() -> Iterator[str]:
    """Has no engine yet."""
    backend = ReplicaBackend("lm", Slot(), metrics=Metrics(), limits=limits_of())
    with web.serving(build_app(backend)) as url:
        yield url


@pytest.fixture
def broken(checkpoint: Path) -> Iterator[Served]:
    """Its device thread is gone."""
    with replica(checkpoint, limits_of()) as served:
        served.engine.device_thread.shutdown()
        yield served
