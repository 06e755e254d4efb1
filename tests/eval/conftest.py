"""The service whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes.eval_service import Known, known


@pytest.fixture
def service() -> Iterator[Known]:
    with known() as service:
        yield service
