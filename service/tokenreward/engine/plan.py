"""The scorers that one deployment serves, and what a request asks of them.

Everything that is wrong with a request as a whole is found here, before any item is looked at. It
knows no models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tokenreward import credit as credits
from tokenreward.contract import WITHOUT_EFFECT, Model, Needs, Options, Scorer, Task, TokenizerView
from tokenreward.engine.postprocess import Plan
from tokenreward.errors import InvalidField, ItemError, UnknownOption, UnknownScorer, shown
from tokenreward.scorers import UnknownScorerType, resolve
from tokenreward.settings import DeploymentSettings, ScorerSettings, SettingsError
from tokenreward.wire import RewardsRequest, refusal


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """One named scorer with the operator's option defaults, on a deployment of one task."""

    name: str
    type: str
    scorer: Scorer
    defaults: dict[str, Any]
    task: Task

    @classmethod
    def of(cls, settings: ScorerSettings, deployment: DeploymentSettings) -> Served:
        """Raises SettingsError: no such type, wrong options, or a type that reads another kind of
        checkpoint."""
        where = f"deployment `{deployment.name}`, scorer `{settings.served_name}`"
        try:
            scorer = resolve(settings.type)
            scorer.Options.model_validate(settings.options)
        except UnknownScorerType as error:
            raise SettingsError(f"{where}: {error}") from error
        except ValidationError as error:
            raise SettingsError(
                f"{where}: {refusal(error, prefix=('options',), unknown=UnknownOption)}"
            ) from error
        task = scorer.task_for(scorer.Options.model_validate(settings.options))
        if task not in (None, deployment.task):
            raise SettingsError(
                f"{where}: type `{settings.type}` reads a {task}, this is a {deployment.task}"
            )
        if "reference" in scorer.models and deployment.reference is None:
            raise SettingsError(
                f"{where}: type `{settings.type}` compares the model with a reference: set "
                "`reference_checkpoint` or "
                "`adapter`"
            )
        return cls(settings.served_name, settings.type, scorer, settings.options, deployment.task)

    @property
    def needs(self) -> Needs:
        """What it needs of a row under the operator's defaults."""
        return self.scorer.needs(self.scorer.Options.model_validate(self.defaults))

    def plan(self, request: RewardsRequest) -> Plan:
        """What the request asks of this scorer. Raises RequestError: unknown or wrong options, or
        credit."""
        below = "" if request.scorer is not None else f".{self.name}"
        options = self._options(request.options_of(self.name), prefix=f"options{below}")
        task = self.scorer.task_for(options)
        if task not in (None, self.task):
            raise InvalidField(
                f"these read a {task}, this deployment is a {self.task}",
                param=f"options{below}",
            )
        credit = request.credit_of(self.name)
        param = f"credit{below}"
        name = credits.check(
            credit, default=self.scorer.default_credit, gives=self.scorer.gives, param=param
        )
        if credit.kl is not None and credit.kl.reference is not None:
            raise _for_the_gateway(f"{param}.kl.reference", "ref_logprobs")
        if request.options_of(self.name).get("score_from") is not None:
            raise _for_the_gateway(f"options{below}.score_from", "score")
        return Plan(self.name, self.scorer, options, credit, name)

    def _options(self, asked: dict[str, Any], *, prefix: str) -> Options:
        """The caller's options over the operator's; an operator's default that the caller's choice
        makes idle goes."""
        merged = {**self.defaults, **asked}
        while True:
            try:
                return self.scorer.Options.model_validate(merged)
            except ValidationError as error:
                first = error.errors()[0]
                idle = str(first.get("ctx", {}).get("name"))
                if first["type"] != WITHOUT_EFFECT or idle in asked:
                    raise refusal(error, prefix=(prefix,), unknown=UnknownOption) from None
                del merged[idle]

    def describe(self) -> dict[str, Any]:
        """Its entry of `GET /v1/scorers`, without what belongs to the deployment."""
        schema = (
            self.scorer.Options.model_json_schema()["properties"]
            if self.scorer.Options.model_fields
            else {}
        )
        for name, value in self.defaults.items():
            schema[name] = {**schema[name], "default": value}
        supported = [name for name, needs in credits.NEEDS.items() if needs <= self.scorer.gives]
        return {
            "name": self.name,
            "type": self.type,
            "score": self.scorer.score_is,
            "options": schema,
            "credits": supported,
            "default_credit": self.scorer.default_credit,
        }


def served_by(deployment: DeploymentSettings) -> dict[str, Served]:
    """The scorers of a deployment by name. Raises SettingsError."""
    served = {entry.served_name: Served.of(entry, deployment) for entry in deployment.scorers}
    if deployment.reference_checkpoint is not None and "reference" not in needs_of(served.values()):
        raise SettingsError(
            f"deployment `{deployment.name}`: `reference_checkpoint` has no effect: no scorer "
            "here reads a reference"
        )
    return served


def needs_of(served: Iterable[Served]) -> dict[Model, Needs]:
    """What all of them together need of each model that they read; the policy is there in any
    case."""
    found: dict[Model, Needs] = {"policy": Needs()}
    for each in served:
        for model in each.scorer.models:
            found[model] = found.get(model, Needs()) | each.needs
    return found


def check_words(deployment: DeploymentSettings, tokenizer: TokenizerView) -> None:
    """Raises SettingsError for options of the operator's that this checkpoint's words cannot
    serve."""
    for served in (Served.of(entry, deployment) for entry in deployment.scorers):
        try:
            served.scorer.check(served.scorer.Options.model_validate(served.defaults), tokenizer)
        except ItemError as error:
            where = f"deployment `{deployment.name}`, scorer `{served.name}`"
            raise SettingsError(f"{where}: {error.message}") from None


def plans(served: dict[str, Served], request: RewardsRequest) -> list[Plan]:
    """What a request asks, scorer by scorer. Raises RequestError."""
    param = "scorer" if request.scorer is not None else "scorers"
    for name in request.names:
        if name not in served:
            raise UnknownScorer(
                f"no scorer `{shown(name)}` here; there are {', '.join(served)}", param=param
            )
    return [served[name].plan(request) for name in request.names]


def _for_the_gateway(param: str, field: str) -> InvalidField:
    """A replica asks no other: what names another scorer is filled in before the request comes
    here."""
    return InvalidField(
        "another scorer is named: send the request to the gateway (/v1/rewards), which asks "
        "it and fills in "
        f"`{field}`",
        param=param,
    )
