"""What the tests with trainers' own code share: one service with the demo models for all of them,
and native answers to compare with."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from fakes import serve
from tokenreward_client import Client


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serve.ServedPolicy | None]:
    """A service with the demo models. It is stopped by its process id; one that `TRAINERS_URL`
    names is left alone, and nothing is known of its processes."""
    if "TRAINERS_URL" in os.environ:
        yield None
        return
    with serve.demo(tmp_path_factory.mktemp("serve")) as service:
        yield service


@pytest.fixture(scope="session")
def url(service: serve.ServedPolicy | None) -> str:
    """Where that service answers."""
    return os.environ["TRAINERS_URL"] if service is None else service.url


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client
