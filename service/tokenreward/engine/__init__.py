"""One replica's pipeline: items in, rewards out. `Engine.score` is the one entry to it."""

from tokenreward.engine.engine import Engine

__all__ = ["Engine"]
