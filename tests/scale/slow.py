"""A replica whose passes take as long as their tokens and compute nothing: load without a CPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ray import serve

from scale import TOKENS_PER_S
from tokenreward.deployment.replica import Replica

if TYPE_CHECKING:
    from tokenreward.contract import Outputs, RowRequest
    from tokenreward.engine import Engine
    from tokenreward.forward.layout import Layout
    from tokenreward.settings import DeploymentSettings


class SlowLayout:
    """Sleeps in place of each pass. The rest is the real layout's.

    Args:
        layout: The engine's own.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layout, name)

    def run(self, requests: Sequence[RowRequest]) -> list[Outputs]:
        from tokenreward.contract import Outputs

        time.sleep(sum(len(row.ids) for row, _ in requests) / TOKENS_PER_S)
        return [
            Outputs(
                values=np.zeros(row.stop - row.start + 1, np.float32), pooled=float(len(row.ids))
            )
            for row, _ in requests
        ]

    def launch(self, requests: Sequence[RowRequest]) -> Any:
        from tokenreward.forward.transfer import Pending

        outputs = self.run(requests)
        return Pending(lambda: outputs)


class SlowReplica(Replica.func_or_class):  # type: ignore[name-defined, misc]
    """The product's replica on such a layout."""

    def load(self, settings: DeploymentSettings) -> Engine:
        engine = super().load(settings)
        engine.runner.layout = SlowLayout(engine.runner.layout)
        return engine  # type: ignore[no-any-return]


def build_replica(args: dict[str, Any]) -> Any:
    """The application of one deployment, as `tokenreward.deployment.build_replica` is."""
    return serve.deployment(name="Replica")(SlowReplica).bind(args)  # type: ignore[attr-defined]
