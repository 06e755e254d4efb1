"""Preprocessor: one wire item becomes a Sample in the scorer's own tokens, and a map from its
tokens to the caller's units.

Everything that can be wrong with an item is found here, before it costs device time. It knows no
scorers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from tokenreward.alignment import owners, scored_spans, tiles
from tokenreward.contract import Needs, Row, Sample
from tokenreward.errors import (
    EmptyResponse,
    LengthMismatch,
    SequenceTooLong,
    TokenOutOfVocabulary,
    UnsupportedText,
)
from tokenreward.text.tokenizer import EncodedResponse, Tokenizer
from tokenreward.wire import Item, decode_ids


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An item ready to be scored. `owner` [r]: each response token's unit. `scored` [u]: units that
    carry reward."""

    index: int
    item: Item
    sample: Sample
    owner: Int64[np.ndarray, " r"]
    scored: Bool[np.ndarray, " u"]
    ends: Int64[np.ndarray, " t"] | None


class Prompts:
    """Prompts of one request by what was written: the responses of a group bring the same one again
    and again."""

    def __init__(self) -> None:
        self._known: dict[str, Int64[np.ndarray, " p"]] = {}

    def get(
        self, item: Item, tokenise: Callable[[], Int64[np.ndarray, " p"]]
    ) -> Int64[np.ndarray, " p"]:
        """The prompt's ids, read-only if they are shared. Raises what `tokenise` raises, each
        time."""
        written = _written(item)
        if written is None:
            return tokenise()
        if written not in self._known:
            ids = self._known[written] = tokenise()
            ids.flags.writeable = False
        return self._known[written]


def _written(item: Item) -> str | None:
    """All that a tokenised prompt is made of; None if it is ids, which need no tokenizer."""
    given = item.prompt if isinstance(item.prompt, str) else item.messages
    return None if given is None else json.dumps([given, item.tools, item.chat_template_kwargs])


@dataclass(frozen=True, slots=True)
class Preprocessor:
    """Turns items into samples for one checkpoint. `vocab_size`: ids that it reads; `num_labels`:
    that it predicts."""

    vocabulary: Tokenizer
    vocab_size: int
    num_labels: int
    max_sequence_tokens: int | None
    suffix_ids: Int64[np.ndarray, " s"]

    def prepare(self, item: Item, *, index: int, prompts: Prompts) -> Prepared:
        """`prompts` are those of the items before it. Raises ItemError, or InvalidField if a field
        cannot be decoded at all; `param` is a field of the item."""
        prompt_ids = prompts.get(item, lambda: self._prompt(item))
        response = self._response(item)
        self._check_vocabulary(prompt_ids, self.vocab_size, param="prompt")
        self._check_vocabulary(response.ids, self.num_labels, param="response")
        self._check_length(len(prompt_ids), len(response.ids))
        owner, scored = _units(item, response)
        sample = Sample(
            prompt_ids,
            response.ids,
            terminal=int(response.ids[-1]) in self.vocabulary.terminal_ids,
            keep=scored[owner],
            item=item,
            tokenizer=self.vocabulary,
            suffix_ids=self.suffix_ids,
            ends=response.ends,
        )
        if not sample.keep.any():
            raise EmptyResponse("no token is left to score", param="mask")
        return Prepared(index, item, sample, owner, scored, response.ends)

    def check_row(self, row: Row, needs: Needs) -> None:
        """Refuses a row of a scorer that the model cannot read. Raises SequenceTooLong,
        TokenOutOfVocabulary."""
        labels = np.array([*needs.labels], dtype=np.int64)
        predicted = np.concatenate([row.ids[row.start : row.stop], labels])
        for ids, size, does in (
            (row.ids, self.vocab_size, "reads"),
            (predicted, self.num_labels, "predicts"),
        ):
            if len(ids) and not 0 <= ids.min() <= ids.max() < size:
                raise TokenOutOfVocabulary(
                    f"the tokenizer has tokens that the model, which {does} ids 0 to {size - 1}, "
                    "has not"
                )
        if self.max_sequence_tokens is not None and len(row.ids) > self.max_sequence_tokens:
            raise SequenceTooLong(
                f"the item is {len(row.ids)} tokens as this scorer reads it, "
                f"`max_sequence_tokens` is {self.max_sequence_tokens}"
            )

    def _prompt(self, item: Item) -> Int64[np.ndarray, " p"]:
        prompt, messages, param = item.prompt, item.messages, "prompt"
        if isinstance(prompt, str):
            return self.vocabulary.prompt_from_text(prompt, param=param)
        if messages is not None:
            return self.vocabulary.prompt_from_messages(
                messages, item.tools, item.chat_template_kwargs, param=param
            )
        return self.vocabulary.prompt_from_ids(decode_ids(prompt, param=param), param=param)  # type: ignore[arg-type]

    def _response(self, item: Item) -> EncodedResponse:
        param = "response"
        if not isinstance(item.response, str):
            response = EncodedResponse(decode_ids(item.response, param=param))
        elif not item.response and item.finished is not True:
            # A policy may stop at once, but then the caller says so: an empty text by itself looks
            # like a mistake.
            response = EncodedResponse(np.empty(0, dtype=np.int64))
        else:
            finished = item.finished is not False
            response = self.vocabulary.response(item.response, finished=finished, param=param)
        if not len(response.ids):
            raise EmptyResponse("the response has no tokens", param=param)
        return response

    def _check_vocabulary(self, ids: Int64[np.ndarray, " n"], size: int, *, param: str) -> None:
        wrong = np.flatnonzero((ids < 0) | (ids >= size))
        if len(wrong):
            position = int(wrong[0])
            raise TokenOutOfVocabulary(
                f"entry {position} is {ids[position]}, ids of this model are 0 to {size - 1} there",
                param=param,
            )

    def _check_length(self, num_prompt: int, num_response: int) -> None:
        total = num_prompt + num_response + len(self.suffix_ids)
        if self.max_sequence_tokens is not None and total > self.max_sequence_tokens:
            raise SequenceTooLong(
                f"{num_prompt} prompt + {num_response} response + {len(self.suffix_ids)} suffix = "
                f"{total} tokens, `max_sequence_tokens` is {self.max_sequence_tokens}",
                param="response",
            )


def _units(
    item: Item, response: EncodedResponse
) -> tuple[Int64[np.ndarray, " r"], Bool[np.ndarray, " u"]]:
    """The unit of each token, and which units carry reward."""
    if item.spans is None:
        owner = np.arange(len(response.ids))
        scored = np.ones(len(response.ids), dtype=np.bool_)
    else:
        assert isinstance(item.response, str)
        spans = tiles(item.spans, len(item.response), param="spans")
        if response.ends is None:
            raise UnsupportedText("this tokenizer cannot say where tokens end", param="spans")
        owner = owners(response.ends, spans, num_appended=response.num_appended)
        scored = scored_spans(spans, finished=response.num_appended > 0)
    for name in ("mask", "policy_logprobs", "ref_logprobs"):
        given = getattr(item, name)
        if given is not None and len(given) != len(scored):
            raise LengthMismatch(
                f"there are {len(given)} entries, the response has {len(scored)} units", param=name
            )
    if item.mask is not None:
        scored = scored & np.asarray(item.mask, dtype=np.bool_)
    return owner, scored
