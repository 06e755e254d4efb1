"""The service whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes.eval_service import Known, known


@pytest.fixture(scope="session")
def running_service() -> Iterator[Known]:
    with known() as service:
        yield service


@pytest.fixture
def service(running_service: Known) -> Known:
    running_service.reset()
    return running_service
