"""A stand in rehearsal."""

from __future__ import annotations

import pytest

from gpu.clock import Cpu
from gpu.sizes import TINY
from gpu.stand import Stand


@pytest.fixture
def stand() -> Stand:
    return Stand(Cpu(), TINY, rounds=1, rehearse=True)
