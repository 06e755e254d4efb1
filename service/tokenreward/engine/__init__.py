"""One replica's pipeline: items in, rewards out. `Engine.score` is the one entry to it.

The class is imported when it is first used, and torch with it. A replica limits torch's threads
before that; `tokenreward.engine.slot` needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenreward.engine.engine import Engine

__all__ = ["Engine"]


def __getattr__(name: str) -> Any:
    if name != "Engine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tokenreward.engine.engine import Engine

    return Engine
