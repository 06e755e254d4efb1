"""A real layout with something of a test's in its way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenreward.contract import Outputs, RowRequest
from tokenreward.forward.layout import Layout


class Intercepted:
    """The layout of an engine, whose passes go through a function of the test.

    Args:
        engine: Its runner gets this layout.
        run: Called with the rows of each pass and the real layout's `run`.
    """

    def __init__(
        self, engine: Any, run: Callable[[Sequence[RowRequest], Callable[..., Any]], Any]
    ) -> None:
        self._layout: Layout = engine.runner.layout
        self._run = run
        engine.runner.layout = self

    def run(self, requests: Sequence[RowRequest]) -> list[Outputs]:
        outputs: list[Outputs] = self._run(requests, self._layout.run)
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layout, name)
