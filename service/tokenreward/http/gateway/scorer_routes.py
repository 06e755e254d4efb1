"""Where each scorer is served, and which other scorers a request needs besides its own.

It knows the gateway's configuration and what stands in a request, and asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenreward.errors import InvalidField, UnknownScorer, quotable
from tokenreward.wire import RewardsRequest, served_name
from tokenreward.wire.dependencies import Dependency, request_dependencies


@dataclass(frozen=True, slots=True)
class ScorerRoute:
    """A scorer as the gateway's configuration has it.

    Attributes:
        deployment: Where it is served.
        type: Its file in `scorers/`, or `package.module:Class`.
        score_from: The scorer that it takes its score from, unless a request says otherwise.
    """

    deployment: str
    type: str
    score_from: str | None = None


def find_route(routes: Mapping[str, ScorerRoute], name: str, *, param: str | None) -> ScorerRoute:
    """The route of the scorer that the request names at `param`, without a label. Raises
    UnknownScorer."""
    route = routes.get(name)
    if route is None:
        raise UnknownScorer(
            f"no scorer `{quotable(name)}`; there are {', '.join(routes)}", param=param
        )
    return route


def dependencies_of(
    request: RewardsRequest, name: str, routes: Mapping[str, ScorerRoute]
) -> tuple[Dependency, ...]:
    """The scorers that the scorer `name` depends on, checked.

    Raises:
        RequestError: One of them is unknown, cannot be asked, or would fill what an item brings.
    """
    request.options_of(name)  # both raise if the entry is wrong
    request.credit_of(name)
    dependencies = request_dependencies(request, name, default=routes[served_name(name)].score_from)
    for dependency in dependencies:
        param = dependency.param
        if param is None:  # the operator's: checked with the settings
            continue
        route = find_route(routes, dependency.name, param=param)
        if dependency.fills == "score":
            if dependency.name == served_name(name):
                raise InvalidField(f"must name another scorer than `{name}` itself", param=param)
            if route.score_from is not None:
                raise InvalidField(
                    f"`{dependency.name}` takes its own score from `{route.score_from}`",
                    param=param,
                )
        for index, item in enumerate(request.items):
            if getattr(item, dependency.fills) is not None:  # one of the two would be lost
                raise InvalidField(
                    f"`{param}` names a scorer to ask for what the item brings",
                    param=f"items[{index}].{dependency.fills}",
                )
    return tuple(dependencies)
