"""The scorer under judgement, how it is asked, and what its answers depend on.

It knows the service's listing of scorers; it sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenreward.eval.cache import key_of
from tokenreward.eval.candidate import Candidate
from tokenreward.eval.rows import EvalError
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


def find_subject(
    label: str,
    name: str,
    listing: Sequence[ScorerInfo],
    *,
    options: Mapping[str, Any],
    credit: Mapping[str, Any],
) -> Subject:
    """The scorer of that name, as the service lists it. Raises EvalError if it is not listed."""
    infos = {info.name: info for info in listing}
    if name not in infos:
        raise EvalError(f"the service has no scorer `{name}`; it has {', '.join(infos)}")
    # A dependency that is not listed is left to the service, which refuses the request.
    names = dependency_names(infos[name], options, credit)
    dependencies = [infos[other] for other in names if other in infos]
    return Subject(label, infos[name], options, credit, dependencies)


def dependency_names(
    info: ScorerInfo, options: Mapping[str, Any], credit: Mapping[str, Any]
) -> list[str]:
    """Names of the scorers that the gateway asks first: for `score`, and for the KL's reference."""
    defaults = (info.model_extra or {}).get("options") or {}
    score_from = options.get("score_from", (defaults.get("score_from") or {}).get("default"))
    kl = credit.get("kl")
    reference = kl.get("reference") if isinstance(kl, Mapping) else None
    return [name for name in (score_from, reference) if isinstance(name, str)]


def _identity(info: ScorerInfo) -> dict[str, Any]:
    entry = info.model_dump()
    return {name: entry.get(name) for name in _IDENTITY}
