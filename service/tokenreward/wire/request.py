"""The request: body of `POST /v1/rewards`, as strict pydantic models.

It knows the shape of a request and nothing of models. It does not check that a scorer exists, or
that a token is in a vocabulary.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, field_validator, model_validator

from tokenreward.errors import InvalidField, UnknownField, quotable
from tokenreward.wire.item import STRICT, Item
from tokenreward.wire.parsing import parse

CreditName = Literal["values", "last", "uniform", "attention", "discount"]

LABEL_PATTERN = r"[a-z0-9_-]{1,64}"


class Kl(BaseModel):
    """KL penalty on every unit, r_t -= coef * k_t, with d = policy_logprobs - ref_logprobs
    (estimators of Schulman, "Approximating KL divergence", 2020): k1 = d, k2 = d^2 / 2, k3 =
    exp(-d) - 1 + d."""

    model_config = STRICT

    coef: FiniteFloat
    estimator: Literal["k1", "k2", "k3"] = "k1"
    clamp: Literal["verl", "openrlhf"] | None = Field(
        default=None,
        description="Whose bounds on k_t: `verl` (k3 only) has -d in +-20 and k in +-10, "
        "`openrlhf` has k in +-10, all in float32. Default: none.",
    )
    reference: str | None = Field(
        default=None,
        description=(
            "A language model scorer that is asked for `ref_logprobs`; the gateway (`/v1/rewards`) "
            "does that."
        ),
    )

    @model_validator(mode="after")
    def _clamp_has_an_effect(self) -> Kl:
        if self.clamp == "verl" and self.estimator != "k3":
            raise ValueError(
                f"`clamp` `verl` has no effect with estimator `{self.estimator}`: verl bounds k3 "
                "only"
            )
        return self


class Credit(BaseModel):
    """How a score becomes a reward per unit. `beta` belongs to `attention`, `gamma` to
    `discount`."""

    model_config = STRICT

    name: CreditName | None = Field(default=None, description="Default: the scorer's own.")
    beta: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = Field(
        default=None, description="Default 0.8 (ABC)."
    )
    gamma: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = Field(
        default=None, description="Default 1.0."
    )
    scale: FiniteFloat = 1.0
    shift: FiniteFloat = 0.0
    clip: Annotated[list[FiniteFloat], Field(min_length=2, max_length=2, fail_fast=True)] | None = (
        None
    )
    kl: Kl | None = None

    @model_validator(mode="after")
    def _clip_is_a_range(self) -> Credit:
        if self.clip is not None and self.clip[0] > self.clip[1]:
            raise ValueError(f"`clip` must be [low, high] with low <= high, got {self.clip}")
        return self


def served_name(name: str) -> str:
    """The scorer that a name in a request asks: `label=scorer` asks it under a label of the
    caller's, so that one request can ask it under several options."""
    return name.rpartition("=")[2]


class RewardsRequest(BaseModel):
    """Body of `POST /v1/rewards`. With `scorer`, `options` and `credit` are that scorer's; with
    `scorers`, both are keyed by the names there, and a name may be `label=scorer`."""

    model_config = STRICT

    scorer: str | None = None
    scorers: Annotated[list[str], Field(min_length=1, max_length=256, fail_fast=True)] | None = None
    items: Annotated[list[Item], Field(min_length=1, fail_fast=True)]
    options: dict[str, Any] = Field(default_factory=dict)
    credit: dict[str, Any] = Field(default_factory=dict)
    combine: Annotated[dict[str, FiniteFloat], Field(min_length=1)] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    return_tokens: bool = False
    min_version: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="The least version of the weights that will do; else 409."
    )
    wait_for_version_s: Annotated[FiniteFloat, Field(ge=0)] | None = Field(
        default=None,
        description="Seconds that the request waits for `min_version`, before its deadline.",
    )

    @field_validator("scorers")
    @classmethod
    def _names_are_unique(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and len(set(names)) < len(names):
            raise ValueError("a scorer is named twice")
        for name in names or ():
            label, is_labelled, _ = name.rpartition("=")
            if is_labelled and re.fullmatch(LABEL_PATTERN, label) is None:
                raise ValueError(f"the label in `{quotable(name)}` must match {LABEL_PATTERN}")
        return names

    @model_validator(mode="after")
    def _one_way_to_name_scorers(self) -> RewardsRequest:
        if (self.scorer is None) == (self.scorers is None):
            raise ValueError("give exactly one of `scorer` and `scorers`")
        if self.combine is not None and self.scorers is None:
            raise ValueError("`combine` needs `scorers`")
        if self.wait_for_version_s is not None and self.min_version is None:
            raise ValueError("`wait_for_version_s` needs `min_version`")
        return self

    @property
    def names(self) -> list[str]:
        """The scorers asked for, in the caller's order."""
        return [self.scorer] if self.scorer is not None else list(self.scorers or ())

    def options_of(self, name: str) -> dict[str, Any]:
        """The options for one scorer. Raises InvalidField, UnknownField."""
        return dict(self._keyed("options", self.options, name))

    def credit_of(self, name: str) -> Credit:
        """The credit for one scorer. Raises InvalidField, UnknownField."""
        prefix = ("credit",) if self.scorer is not None else ("credit", name)
        return parse(Credit, self._keyed("credit", self.credit, name), prefix=prefix)

    def _keyed(self, field: str, value: dict[str, Any], name: str) -> dict[str, Any]:
        if self.scorer is not None:
            return value
        for key in value:
            if key not in self.names:
                raise UnknownField(
                    "`scorers` does not name this scorer",
                    param=f"{field}.{key[:64]}",
                )
        entry = value.get(name, {})
        if not isinstance(entry, dict):
            raise InvalidField("must be an object, keyed by scorer name", param=f"{field}.{name}")
        return entry
