"""A sample: one item in the model's own tokens, with the item that they came from.

Beside it stands what a scorer may do with text: tokenise it, and write so much of it for a request.
A sample knows nothing of the scorer that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from tokenreward.errors import SequenceTooLong, UnsupportedText
from tokenreward.wire import Item

# Of the texts among the options of one request, for all its scorers together. They are sent once,
# and written for every item.
MAX_OPTION_CHARACTERS = 20_000
# Of all items of one request. A tokenizer reads so much in some 20 s.
MAX_REQUEST_CHARACTERS = 64_000_000
# Of all items of one request, beside their rewards: 16 MiB of float32, some 80 MB as JSON.
MAX_REQUEST_NUMBERS = 2**22


T = TypeVar("T")


@runtime_checkable
class TokenizerView(Protocol):
    """The checkpoint's tokenizer as a scorer sees it.

    Most scorers never call it: `Sample` holds the tokens of the prompt and the response. It serves
    scorers that read another prompt, inserted tags, or labels.

    A method that tokenises takes `param`: the field of the item that the text comes from, `prompt`
    or `response`, which an error then names. It is None for a text that is no field of the item.
    Such a method raises UnsupportedText (the text cannot be tokenised) and SequenceTooLong.
    """

    def prompt_from_text(self, text: str, *, param: str | None) -> Int64[np.ndarray, " p"]:
        """The ids of raw text as a prompt, with at most one BOS in front.

        Raises:
            EmptyPrompt: The text is empty, and the model has no BOS.
        """

    @property
    def bos_text(self) -> str:
        """How a text spells BOS; empty if there is none."""

    def with_bos(self, ids: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " p"]:
        """Ids of raw text with BOS in front, if this tokenizer puts one there and it is missing. An
        encoder's tokenizer has special tokens on both sides of a text."""

    def prompt_from_messages(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        template_kwargs: dict[str, Any],
        *,
        param: str | None,
    ) -> Int64[np.ndarray, " p"]:
        """The ids of messages as the chat template writes them, its generation prompt included.

        Args:
            messages: The conversation, each message with `role` and `content`.
            tools: Tools that the template may show.
            template_kwargs: Passed to the template.
            param: The item's field, for errors.

        Raises:
            UnsupportedText: There is no template, or it refuses these messages.
        """

    def pieces(
        self, text: str, *, param: str | None
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"] | None]:
        """The ids of a text alone, without special tokens around it.

        Returns:
            The ids, and where each token's characters end in the text, in code points. The ends
            are None if this tokenizer cannot say.
        """

    def text(self, ids: Int64[np.ndarray, " n"]) -> str:
        """The text of ids, special tokens included."""

    def single(self, text: str) -> int | None:
        """The one token that this text is; None if it is no token or several."""

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be prompts."""

    def without_special(self, text: str) -> str:
        """The text with a line break in place of each special token that it spells.

        Such a text can be quoted in a prompt: it ends no turn there.
        """


@dataclass(slots=True, eq=False)
class RequestBudget:
    """What the items of one request may still use: characters that scorers write, and numbers that
    models give beside rewards.

    Options are sent once and used for every item. A template of a few characters can show a long
    item many times, and an instruction of a megabyte can stand before each of a thousand prompts.
    So a body of 16 MiB could ask for gigabytes of text, and `top_k` for as many of numbers. All
    items of a request share one budget. A scorer that writes prompts of its own spends from it, and
    the engine spends for what scorers need.
    """

    num_characters: int = MAX_REQUEST_CHARACTERS
    num_numbers: int = MAX_REQUEST_NUMBERS
    memo: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes, made once for all items of the request.

        Args:
            key: Of the scorer's own. It tells apart all that `make` depends on.
            make: Called unless its result is there. What it raises is not kept.
        """
        if key not in self.memo:
            self.memo[key] = make()
        value: T = self.memo[key]
        return value

    def spend(self, num_characters: int) -> None:
        """Takes characters out of the budget, before they are written.

        Raises:
            SequenceTooLong: The budget does not have so many left.
        """
        if num_characters > self.num_characters:
            raise SequenceTooLong(
                "the prompts that scorers write for this request pass "
                f"{MAX_REQUEST_CHARACTERS} characters: send fewer items in a request, or shorter "
                "options"
            )
        self.num_characters -= num_characters

    def spend_numbers(self, num_numbers: int) -> None:
        """Takes numbers out of the budget, before they are computed. Raises as `spend`."""
        if num_numbers > self.num_numbers:
            raise SequenceTooLong(
                f"the log-probs of other tokens for this request pass {MAX_REQUEST_NUMBERS} "
                "numbers: send fewer items in a request, or ask for fewer tokens at each place"
            )
        self.num_numbers -= num_numbers


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One item in the scorer's own tokens, and the item that they came from.

    Attributes:
        prompt_ids: The prompt's tokens. A sequence whose tokens are all scored (`whole: sequence`)
            has its first token here, or for a reward model none, whatever the item's prompt is.
        response_ids: The response's tokens, an appended end-of-turn included.
        terminal: Whether the last response token is a recognised end-of-turn.
        keep: False where the caller masked the token's unit. Masked tokens are read like all
            others, but count in no sum.
        item: What the caller wrote, for scorers that put it in other words.
        tokenizer: The checkpoint's text in both directions, for the same scorers.
        suffix_ids: Tokens that a reward model reads after the response. They own no entry.
        ends: Where each response token's characters end in the response's text, in code points; an
            appended end-of-turn has no entry. None for a response of ids, and for a tokenizer that
            cannot say.
        num_first: That of a row with all of these tokens (see `Row`).
        budget: What the items of the request may still use.
        memo: What a scorer's `rows` leaves for its `score`, under keys of the scorer's own.
    """

    prompt_ids: Int64[np.ndarray, " p"]
    response_ids: Int64[np.ndarray, " r"]
    terminal: bool
    keep: Bool[np.ndarray, " r"]
    item: Item
    tokenizer: TokenizerView
    suffix_ids: Int64[np.ndarray, " s"] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    ends: Int64[np.ndarray, " t"] | None = None
    num_first: int | None = None
    budget: RequestBudget = field(default_factory=RequestBudget)
    memo: dict[Hashable, Any] = field(default_factory=dict)

    def unmasked(self, values: Float[np.ndarray, " r"]) -> Float64[np.ndarray, " k"]:
        """The unmasked tokens' values, in float64: what a score is made of."""
        unmasked: Float64[np.ndarray, " k"] = values[self.keep].astype(np.float64)
        return unmasked

    def refuse_sequence(self) -> None:
        """Refuses a sequence whose tokens are all scored. For scorers that put the item's prompt
        and response into other texts, where tokens of the prompt can have no reward.

        Raises:
            UnsupportedText: The item has `whole: sequence`.
        """
        if self.item.whole == "sequence":
            raise UnsupportedText(
                "this scorer puts prompt and response into a text of its own, and must tell them "
                "apart, which `whole: sequence` does not: send prompt and response without "
                "`whole`, or the text of a conversation with `whole: conversation`",
                param="whole",
            )
