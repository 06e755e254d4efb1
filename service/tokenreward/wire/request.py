"""The request: body of `POST /v1/rewards`, as strict pydantic models.

It knows the shape of a request and nothing of models. It does not check that a scorer exists, or
that a token is in a vocabulary.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    field_validator,
    model_validator,
)

from tokenreward.errors import InvalidField, UnknownField, quotable
from tokenreward.wire.messages import RESPONSE_FORMS, Message, text_of_message
from tokenreward.wire.parsing import parse
from tokenreward.wire.vectors import Flags, Ids, Numbers, Spans

CreditName = Literal["values", "last", "uniform", "attention", "discount"]

LABEL_PATTERN = r"[a-z0-9_-]{1,64}"

# Of all parts of a request: unknown fields are errors, and nothing is coerced.
STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)

# Token ids as base64 of little-endian int32: {"ids_b64": "..."}.
PackedIds = dict[Literal["ids_b64"], str]


def _form(value: object) -> str | None:
    if isinstance(value, str):
        return "text"
    if isinstance(value, dict):
        return "packed_ids" if "ids_b64" in value else "message"
    if isinstance(value, list):
        return "messages" if value and isinstance(value[0], (dict, Message)) else "ids"
    return "ids" if isinstance(value, np.ndarray) else None


Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[Message], Field(fail_fast=True), Tag("messages")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[PackedIds, Tag("packed_ids")],
    Discriminator(
        _form,
        custom_error_type="prompt_form",
        custom_error_message="must be a string, a list of messages, a list of token ids or "
        '{"ids_b64": "..."}',
    ),
]


Response = Annotated[
    Annotated[str, BeforeValidator(text_of_message), Tag("message")]
    | Annotated[str, BeforeValidator(text_of_message), Tag("messages")]
    | Annotated[str, Tag("text")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[PackedIds, Tag("packed_ids")],
    Discriminator(
        _form,
        custom_error_type="response_form",
        custom_error_message=RESPONSE_FORMS,
    ),
]


def _form_of_steps(value: object) -> str | None:
    if isinstance(value, list) and value:
        return "texts" if isinstance(value[0], str) else "spans"
    return "spans" if isinstance(value, np.ndarray) and len(value) else None


StepsOfItem = Annotated[
    Annotated[list[str], Field(fail_fast=True), Tag("texts")] | Annotated[Spans, Tag("spans")],
    Discriminator(
        _form_of_steps,
        custom_error_type="steps_form",
        custom_error_message="must be a list of strings, or of [start, end] spans",
    ),
]


class Item(BaseModel):
    """A prompt, the response to judge, and how the caller wants its reward cut up.

    `spans`, `mask`, `policy_logprobs` and `ref_logprobs` are in units: one entry per entry of the
    returned vector. They and ids are lists, or arrays if the body was binary.
    """

    model_config = STRICT

    prompt: Prompt = Field(
        description="Raw text, chat messages, or token ids of the scorer's own vocabulary."
    )
    response: Response = Field(
        description="Text, an assistant message (its text is scored), or token ids of the "
        "scorer's own vocabulary."
    )
    finished: bool | None = Field(
        default=None,
        description="Text only: append end-of-turn (default true). Ids are scored as they are.",
    )
    spans: Spans | None = Field(
        default=None,
        description=(
            "Text only: half-open code point ranges that tile the response; one reward each."
        ),
    )
    steps: StepsOfItem | None = Field(
        default=None,
        description=(
            "Text only: the reasoning steps, as strings or as code point ranges, with white space "
            "between them. Read by `process`, ignored by all others."
        ),
    )
    mask: Flags | None = Field(default=None, description="One per unit: 0 = read but not scored.")
    policy_logprobs: Numbers | None = Field(
        default=None, description="One per unit; for `credit.kl`."
    )
    ref_logprobs: Numbers | None = Field(default=None, description="One per unit; for `credit.kl`.")
    score: FiniteFloat | None = Field(
        default=None,
        description="A score from elsewhere: read by scorers that take one, ignored by all others.",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Passed to the chat template."
    )
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = Field(
        default=None, description="Passed to the chat template."
    )

    @model_validator(mode="after")
    def _text_fields_need_text(self) -> Item:
        if not isinstance(self.response, str):
            for name in ("finished", "spans", "steps"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"`{name}` goes with a text response; token ids are scored as they are"
                    )
        return self

    @model_validator(mode="after")
    def _template_fields_need_messages(self) -> Item:
        for name in ("chat_template_kwargs", "tools"):
            if getattr(self, name) and self.messages is None:
                raise ValueError(f"`{name}` goes with messages; this prompt meets no chat template")
        return self

    @cached_property
    def messages(self) -> list[dict[str, Any]] | None:
        """The prompt's chat messages, with the keys that the caller wrote; None if the prompt is
        text or ids."""
        prompt = self.prompt
        if not (isinstance(prompt, list) and prompt and isinstance(prompt[0], Message)):
            return None
        messages = [message for message in prompt if isinstance(message, Message)]
        return [message.model_dump(exclude_unset=True) for message in messages]


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
    min_version: Annotated[int, Field(ge=0)] | None = None

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
