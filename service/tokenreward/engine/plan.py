"""The scorers that one deployment serves, and what a request wants of them.

Unknown scorers, wrong options and wrong credit are found here, and refuse the request as a whole.
This module knows no models and looks at no items.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from tokenreward import credit as credits
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.contract import (
    Gives,
    Model,
    Needs,
    Options,
    Scorer,
    Task,
    TokenizerView,
    merged_options,
)
from tokenreward.errors import (
    InvalidField,
    ItemError,
    ScorerFailed,
    UnknownOption,
    UnknownScorer,
    frames,
    quotable,
)
from tokenreward.scorers import resolve
from tokenreward.settings import DeploymentSettings, ScorerSettings, SettingsError
from tokenreward.wire import Credit, CreditName, RewardsRequest, refusal, served_name
from tokenreward.wire.dependencies import request_dependencies

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a request wants of one scorer, checked: its options and its credit."""

    name: str  # the request's, which may be a label of the scorer
    scorer: Scorer
    options: Options
    credit: Credit
    credit_name: CreditName

    @property
    def needs(self) -> Needs:
        """The outputs that are needed of each row. If the credit reads no values of tokens, they
        are left out."""
        if "values" in credits.NEEDS[self.credit_name]:
            return self.scorer.needs(self.options)
        return self.scorer.needs_without_values(self.options)


@dataclass(frozen=True, slots=True, eq=False)
class ServedScorer:
    """One named scorer with the operator's default options, on a deployment of one task.

    Attributes:
        name: The name that requests use.
        type: Its file in `scorers/`, or `package.module:Class`.
        scorer: The scorer itself.
        defaults: Options of the operator, for requests that do not set them.
        task: The kind of checkpoint that the deployment has.
        gives: The signals that the scorer gives on this checkpoint.
        listing: Its entry of `GET /v1/scorers`, without what belongs to the deployment.
    """

    name: str
    type: str
    scorer: Scorer
    defaults: dict[str, Any]
    task: Task
    gives: frozenset[Gives]
    listing: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        # Made once: a JSON schema takes longer to make than a small request to score.
        object.__setattr__(self, "listing", self._describe())

    @classmethod
    def of(cls, settings: ScorerSettings, deployment: DeploymentSettings) -> ServedScorer:
        """The scorer that an operator's settings name.

        Raises:
            SettingsError: There is no such type, its options are wrong, or it reads another kind of
                checkpoint.
        """
        where = f"deployment `{deployment.name}`, scorer `{settings.served_name}`"
        try:
            scorer = resolve(settings.type)
            options = scorer.Options.model_validate(settings.options)
        except LookupError as error:
            raise SettingsError(f"{where}: {error}") from error
        except ValidationError as error:
            problem = refusal(error, prefix=("options",), unknown=UnknownOption)
            raise SettingsError(f"{where}: {problem}") from error
        task = scorer.task_for(options)
        if task not in (None, deployment.task):
            raise SettingsError(
                f"{where}: type `{settings.type}` reads a {task}, this is a {deployment.task}"
            )
        if "reference" in scorer.models and deployment.reference is None:
            raise SettingsError(
                f"{where}: type `{settings.type}` compares the model with a reference: set "
                "`reference_checkpoint` or `adapter`"
            )
        name, task, gives = settings.served_name, deployment.task, scorer.gives
        return cls(name, settings.type, scorer, settings.options, task, gives)

    def without_values(self) -> ServedScorer:
        """The same scorer on a classifier, whose tokens have no values.

        Raises:
            CheckpointRefused: Its score is made of values of tokens.
        """
        options = self.scorer.Options.model_validate(self.defaults)
        if self.scorer.needs_without_values(options).values:
            raise CheckpointRefused(
                f"scorer `{self.name}` reads a value at every token, and the tokens of an encoder "
                "have none: serve `reward_model` or `attention_dense` on it"
            )
        return replace(self, gives=self.gives - {"values"})

    @property
    def pools(self) -> bool:
        """Whether its score is read at one token, behind the response, not at tokens of its own."""
        options = self.scorer.Options.model_validate(self.defaults)
        needs = self.scorer.needs_without_values(options)
        return needs.pooled or bool(needs.attention)

    @property
    def needs(self) -> Needs:
        """The outputs that it needs of each row under the operator's options."""
        return self.scorer.needs(self.scorer.Options.model_validate(self.defaults))

    def plan(self, request: RewardsRequest, name: str) -> Plan:
        """What the request wants of this scorer under one of its names.

        Raises:
            RequestError: Options or credit are unknown or wrong.
        """
        below = "" if request.scorer is not None else f".{name}"
        try:
            options = merged_options(self.scorer, self.defaults, request.options_of(name))
        except ValidationError as error:
            raise refusal(error, prefix=(f"options{below}",), unknown=UnknownOption) from None
        task = self.scorer.task_for(options)
        if task not in (None, self.task):
            raise InvalidField(
                f"these read a {task}, this deployment is a {self.task}", param=f"options{below}"
            )
        credit = request.credit_of(name)
        param = f"credit{below}"
        credit_name = credits.check(
            credit, default=self.scorer.default_credit, gives=self.gives, param=param
        )
        for dependency in request_dependencies(request, name):
            # A replica never asks another one: the gateway does, and fills in the answer.
            raise InvalidField(
                "another scorer is named: send the request to the gateway (/v1/rewards), which "
                f"asks it and fills in `{dependency.fills}`",
                param=dependency.param,
            )
        return Plan(name, self.scorer, options, credit, credit_name)

    def _describe(self) -> dict[str, Any]:
        schema = self.scorer.Options.model_json_schema()
        options = {name: dict(field) for name, field in schema.get("properties", {}).items()}
        for name, value in self.defaults.items():
            options[name]["default"] = value
        listing = {
            "name": self.name,
            "type": self.type,
            "score": self.scorer.score_is,
            "options": options,
            "credits": [name for name, needs in credits.NEEDS.items() if needs <= self.gives],
            "default_credit": self.scorer.default_credit,
            "log_probs_options": self.scorer.log_probs_options,
            "takes": sorted(self.scorer.takes),
        }
        if "$defs" in schema:  # nested models and enumerations are references into it
            listing["$defs"] = schema["$defs"]
        return listing


def served_scorers(deployment: DeploymentSettings) -> dict[str, ServedScorer]:
    """The scorers of a deployment by name. Raises SettingsError."""
    scorers = {
        entry.served_name: ServedScorer.of(entry, deployment) for entry in deployment.scorers
    }
    reads_reference = "reference" in needs_of(scorers.values())
    if deployment.reference_checkpoint is not None and not reads_reference:
        raise SettingsError(
            f"deployment `{deployment.name}`: `reference_checkpoint` has no effect: no scorer here "
            "reads a reference"
        )
    return scorers


def needs_of(scorers: Iterable[ServedScorer]) -> dict[Model, Needs]:
    """What scorers together need of each model that they read. The policy is there in any case."""
    needs: dict[Model, Needs] = {"policy": Needs()}
    for served in scorers:
        for model in served.scorer.models:
            needs[model] = needs.get(model, Needs()) | served.needs
    return needs


def check_options(
    scorers: Iterable[ServedScorer], deployment: DeploymentSettings, tokenizer: TokenizerView
) -> None:
    """Refuses options of the operator that this checkpoint's tokenizer cannot serve.

    Raises:
        SettingsError: Names the scorer and says why.
    """
    for served in scorers:
        try:
            served.scorer.check(served.scorer.Options.model_validate(served.defaults), tokenizer)
        except ItemError as error:
            where = f"deployment `{deployment.name}`, scorer `{served.name}`"
            raise SettingsError(f"{where}: {error.message}") from None


def plans_of(scorers: Mapping[str, ServedScorer], request: RewardsRequest) -> list[Plan]:
    """What a request wants, scorer by scorer. Raises RequestError."""
    param = "scorer" if request.scorer is not None else "scorers"
    for name in request.names:
        if served_name(name) not in scorers:
            raise UnknownScorer(
                f"no scorer `{quotable(name)}` here; there are {', '.join(scorers)}", param=param
            )
    return [scorers[served_name(name)].plan(request, name) for name in request.names]


def scorer_failed(name: str, error: Exception) -> ScorerFailed:
    """The item's error for a scorer that raised. Where it raised goes to the log."""
    logger.error("scorer `%s` failed: %s", name, frames(error))
    return ScorerFailed(f"scorer `{name}` failed on this item: {type(error).__name__}")
