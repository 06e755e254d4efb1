"""A way to run token rows through a model: the `Layout` protocol.

It knows no model and no device. `plain` and `packed` run one model, `pair` runs two, and `probe`
chooses between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from tokenreward.contract import Outputs, Row, RowRequest
from tokenreward.forward.comparison import Gap
from tokenreward.forward.transfer import Pending


@runtime_checkable
class Layout(Protocol):
    """A way to run rows.

    Attributes:
        gap: How far it is from the model's own forward, as the probe measured it, in the kind of
            number that is nearest to its bound; None before the probe.
        reason: Why it is not the packed layout; None if it is.
    """

    gap: Gap | None
    reason: str | None

    @property
    def name(self) -> str:
        """The name that `GET /v1/scorers` shows."""

    @property
    def shares(self) -> bool:
        """Whether a prompt that rows of one pass have in common is computed once."""

    @property
    def runs_ahead(self) -> bool:
        """Whether `launch` returns before the device has computed the pass.

        It does so only where the device computes while the host goes on.
        """

    def num_computed(self, rows: Sequence[Row]) -> int:
        """Tokens that the model computes in a pass over these rows."""

    def launch(self, requests: Sequence[RowRequest]) -> Pending[list[Outputs]]:
        """Starts a pass over rows on the device.

        Returns:
            The pass. Its result is the outputs of each row, in order.
        """

    def run(self, requests: Sequence[RowRequest]) -> list[Outputs]:
        """Launches a pass and waits for it: the outputs of each row, in order."""
