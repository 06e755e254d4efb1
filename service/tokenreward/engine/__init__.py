"""One replica's engine: queue, model, scorers, units, credit, behind `Engine.score(request) ->
reply`."""

from tokenreward.engine.engine import Engine, Report

__all__ = ["Engine", "Report"]
