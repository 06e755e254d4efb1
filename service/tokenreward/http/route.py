"""A scorer as the front knows it: where it is served, and what it may be asked on behalf of
another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenreward.errors import UnknownScorer, shown


@dataclass(frozen=True, slots=True)
class Route:
    """`score_from`: the scorer that it takes its score from unless a request says otherwise."""

    deployment: str
    type: str
    score_from: str | None = None


def find(routes: Mapping[str, Route], name: str, *, param: str) -> Route:
    """The route of one scorer; `param` is where the request names it. Raises UnknownScorer."""
    if name not in routes:
        raise UnknownScorer(
            f"no scorer `{shown(name)}`; there are {', '.join(routes)}", param=param
        )
    return routes[name]
