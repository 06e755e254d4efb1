"""Refuses rewards that a sum over tokens would count more than once.

`tokenreward.wire.increments` says which these are. This module finds out what a call asks for, from
its keywords and the operator's defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tokenreward.wire import served_name
from tokenreward.wire.increments import why_not_added_up
from tokenreward_client.errors import BadArgument
from tokenreward_client.listing import ScorerInfo
from tokenreward_client.options import DEFAULT_SCORER


def names_of(scorer: str | None, settings: Mapping[str, Any]) -> list[str]:
    """The scorers that are asked with these arguments, which `require_increments` has."""
    return list(settings.get("scorers") or [scorer or DEFAULT_SCORER])


def require_increments(
    listing: Iterable[ScorerInfo], scorer: str | None, settings: Mapping[str, Any]
) -> None:
    """Check that a scorer's rewards may be added up over tokens.

    Args:
        listing: What `client.scorers()` answered: it knows types and the operator's defaults.
        scorer: The scorer's name; None for the default, or if `settings` has `scorers`.
        settings: The keywords of `client.score`: `options`, `credit` and `scorers` are read.

    Raises:
        BadArgument: They are levels or returns, or the service lists no such scorer.
    """
    entries = {entry.name: entry for entry in listing}
    is_keyed = settings.get("scorers") is not None
    for name in names_of(scorer, settings):
        options, credit = settings.get("options") or {}, settings.get("credit") or {}
        if is_keyed:
            options, credit = options.get(name, {}), credit.get(name, {})
        entry = entries.get(served_name(name))
        if entry is None:
            served = ", ".join(sorted(entries)) or "none"
            raise BadArgument(
                f"the service lists no scorer `{name}`, it lists {served}; scorers of a deployment "
                "that still loads are not listed (`GET /readyz` answers 200 once all are)"
            )
        extra = entry.model_extra or {}
        rule = credit.get("name") or extra.get("default_credit")
        is_red = options.get("red", extra.get("options", {}).get("red", {}).get("default"))
        reason = why_not_added_up(name, type_=entry.type, credit=rule, is_red=bool(is_red))
        if reason is not None:
            raise BadArgument(reason)
