"""The scorer under judgement, how it is asked, and what its answers depend on.

It knows the service's listing of scorers; it sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenreward.errors import InvalidField
from tokenreward.eval.cache import key_of
from tokenreward.eval.candidate import Candidate
from tokenreward.eval.rows import EvalError
from tokenreward.wire.dependencies import dependencies, listed_score_source
from tokenreward_client import ScorerInfo

_IDENTITY = (
    "type",
    "model",
    "reference",
    "version",
    "tokenizer",
    "score",
    "options",
    "default_credit",
)
"""What an answer depends on, of a scorer's entry in `GET /v1/scorers`. Where and how fast it is
served is left out."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A scorer under judgement and how it is asked.

    `label` is its row in the table. `dependencies` are the other scorers whose answers the gateway
    fills in for this one.
    """

    label: str
    info: ScorerInfo
    options: Mapping[str, Any] = field(default_factory=dict)
    credit: Mapping[str, Any] = field(default_factory=dict)
    dependencies: Sequence[ScorerInfo] = ()

    def key(self, candidate: Candidate) -> str:
        """The key under which the cache keeps this scorer's answer for a candidate."""
        request: list[Any] = [
            self.info.name,
            _identity(self.info),
            dict(self.options),
            dict(self.credit),
        ]
        request += [[other.name, _identity(other)] for other in self.dependencies]
        return key_of(request, candidate.item, candidate.needs_units, candidate.needs_score)

    @property
    def is_signed(self) -> bool:
        """Whether its step scores are 2 p - 1 of their probabilities p (`process`, `scale`)."""
        if "scale" in self.options:
            return bool(self.options["scale"] == "signed")
        entry = (self.info.model_extra or {}).get("options")
        option = entry.get("scale") if isinstance(entry, dict) else None
        return isinstance(option, dict) and option.get("default") == "signed"


def find_subject(
    label: str,
    name: str,
    listing: Sequence[ScorerInfo],
    *,
    options: Mapping[str, Any],
    credit: Mapping[str, Any],
) -> Subject:
    """The scorer of that name, as the service lists it.

    Args:
        label: Its row in the table.
        name: Its name.
        listing: Every scorer of the service.
        options: The options of each request.
        credit: The credit of each request.

    Raises:
        EvalError: The service does not list it, or options or credit name no scorer where they
            must name one.
    """
    infos = {info.name: info for info in listing}
    if name not in infos:
        raise EvalError(f"the service has no scorer `{name}`; it has {', '.join(infos)}")
    default = listed_score_source(infos[name].model_extra)
    try:
        prerequisites = dependencies(options, credit, default=default)
    except InvalidField as error:
        raise EvalError(f"scorer `{label}`: {error.code}: {error}") from None
    # The order is part of the cache's keys: the scorer that gives `score` comes first.
    prerequisites.sort(key=lambda dependency: dependency.fills != "score")
    # A dependency that is not listed is left to the service, which refuses the request.
    others = [infos[dependency.name] for dependency in prerequisites if dependency.name in infos]
    return Subject(label, infos[name], options, credit, others)


def groups_of(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """The scorers in groups that one request can ask; a group stands where its first scorer stood.

    The scorers of a group are of one deployment, which shares its passes among them. A scorer that
    depends on another one is asked alone.
    """
    groups: list[list[Subject]] = []
    for subject in subjects:
        for group in groups:
            if _is_asked_with(subject, group):
                group.append(subject)
                break
        else:
            groups.append([subject])
    return groups


def _is_asked_with(subject: Subject, group: Sequence[Subject]) -> bool:
    """Whether one request can ask a scorer together with those of a group."""
    deployment = subject.info.deployment
    if deployment is None or subject.dependencies:
        return False
    return group[0].info.deployment == deployment and not group[0].dependencies


def _identity(info: ScorerInfo) -> dict[str, Any]:
    entry = info.model_dump()
    return {name: entry.get(name) for name in _IDENTITY}
