"""The edge fake for the command line, and items for it to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from fakes.edge import Edge, serving


@pytest.fixture
def edge() -> Iterator[Edge]:
    with serving() as edge:
        yield edge


@pytest.fixture
def item_lines() -> Callable[[int], list[str]]:
    """`item_lines(n)`: JSONL lines; item i has response "r{i}" and two spans, and so rewards [i,
    i]."""

    def make(num_items: int) -> list[str]:
        texts = [f"r{index}" for index in range(num_items)]
        items = (
            {"prompt": "p", "response": text, "spans": [[0, 1], [1, len(text)]]} for text in texts
        )
        return [json.dumps(item) + "\n" for item in items]

    return make
