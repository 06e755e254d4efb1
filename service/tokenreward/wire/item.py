"""An item of a request: a prompt and a response, in the forms in which callers send them.

It knows the shape of an item and nothing of models. It does not check that a token is in a
vocabulary.
"""

from __future__ import annotations

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
    model_validator,
)

from tokenreward.wire.messages import RESPONSE_FORMS, Message, text_of_message
from tokenreward.wire.vectors import Flags, Ids, Numbers, Spans

# Of all parts of a request: unknown fields are errors, and nothing is coerced.
STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)

MAX_MESSAGES = 2**14  # of a prompt. A model that reads so many tokens reads fewer messages.

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
    | Annotated[list[Message], Field(fail_fast=True, max_length=MAX_MESSAGES), Tag("messages")]
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
    whole: Literal["conversation", "sequence"] | None = Field(
        default=None,
        description="`conversation`: `response` is the text of a whole conversation, and what is "
        "scored is the last assistant turn in it, as the chat template writes turns. `sequence`: "
        "the tokens of the prompt are scored, too; a language model's begin with the second. "
        "Scorers that put prompt and response into a text of their own refuse it.",
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
            if getattr(self, name) and not self.has_messages:
                raise ValueError(f"`{name}` goes with messages; this prompt meets no chat template")
        return self

    @model_validator(mode="after")
    def _whole_texts_have_no_parts(self) -> Item:
        if self.whole is None:
            return self
        for name in ("spans", "steps"):  # places in a response that is yet to be found
            if getattr(self, name) is not None:
                raise ValueError(f"`{name}` does not go with `whole`")
        if self.whole == "conversation":
            if not isinstance(self.response, str):
                raise ValueError("`whole: conversation` goes with a text response")
            if not isinstance(self.prompt, str) or self.prompt:
                raise ValueError("with `whole: conversation` the prompt must be an empty text")
        return self

    @property
    def has_messages(self) -> bool:
        """Whether the prompt is chat messages."""
        prompt = self.prompt
        return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], Message)

    @cached_property
    def messages(self) -> list[dict[str, Any]] | None:
        """The prompt's chat messages, with the keys that the caller wrote; None if the prompt is
        text or ids."""
        if not self.has_messages:
            return None
        messages = [message for message in self.prompt if isinstance(message, Message)]
        return [message.model_dump(exclude_unset=True) for message in messages]
