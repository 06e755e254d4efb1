"""A checkpoint's tokenizer and chat template: text in, token ids and character ends out.

The response never goes through the template, which might rewrite it: it is tokenised alone and
appended. Nothing is ever truncated or padded. It knows no spans of the caller (alignment does) and
no model.
"""

from __future__ import annotations

import copy
import inspect
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int64
from jinja2 import TemplateError

from tokenreward.alignment import fingerprint
from tokenreward.errors import EmptyPrompt, SequenceTooLong, UnsupportedText
from tokenreward.text.offsets import Offsets

_MARK = "tokenreward"
_LONG_CHARACTERS = 1000  # some 0.3 ms
# Options are asked for again with every item; of what a caller makes up, no more than this is kept.
_MOST_KEPT = 1024
_LONGEST_KEPT = 100  # characters


@dataclass(frozen=True, slots=True, eq=False)
class EncodedResponse:
    """A response's tokens. `ends` [r - num_appended]: where each token's characters end (None if
    the tokenizer cannot say, or not truthfully); `num_appended`: tokens of end-of-turn that follow
    the text."""

    ids: Int64[np.ndarray, " r"]
    ends: Int64[np.ndarray, " t"] | None
    num_appended: int


class Tokenizer:
    """Text to tokens, the way the checkpoint wants them. `max_tokens`: of a text that somebody
    sends, if bounded."""

    def __init__(
        self, tokenizer: Any, eos_ids: frozenset[int] = frozenset(), max_tokens: int | None = None
    ) -> None:
        self._max_tokens = max_tokens
        self._tokenizer = tokenizer
        self._backend: Any = copy.deepcopy(getattr(self._tokenizer, "backend_tokenizer", None))
        if self._backend is not None:
            # tokenizer.json may ask for either; rewards are per token, so both would be silent
            # damage.
            self._backend.no_truncation()
            self._backend.no_padding()
            # It adds special tokens, which we never ask for, and may trim white space off the ends
            # of tokens.
            self._backend.post_processor = None
            # transformers hands this down at its first call, which need not have come yet.
            self._backend.encode_special_tokens = self._tokenizer.split_special_tokens
        self._eos_ids = eos_ids
        self._kept_single = lru_cache(_MOST_KEPT)(self._single)

    @cached_property
    def _offsets(self) -> Offsets:
        return Offsets(self._backend)

    @cached_property
    def fingerprint(self) -> str:
        """Equal to another tokenizer's if equal ids are equal tokens."""
        return fingerprint(self._tokenizer.get_vocab())

    @cached_property
    def bos_id(self) -> int | None:
        """The token that this tokenizer puts before raw text, if it puts one."""
        bos = self._tokenizer.bos_token_id
        with_special = self._tokenizer("a", add_special_tokens=True)["input_ids"]
        return int(bos) if bos is not None and with_special[:1] == [bos] else None

    @cached_property
    def end_of_turn(self) -> int | None:
        """What the template emits after an assistant turn, else EOS."""
        after = self._after_assistant_turn()
        first = self._ids(after)[0][:1] if after else []
        if first and first[0] in self._special_ids:
            return int(first[0])
        eos = self._tokenizer.eos_token_id
        return int(eos) if eos is not None else None

    @cached_property
    def after_end_of_turn(self) -> str:
        """What the template writes after an assistant turn's end-of-turn; empty for most."""
        after = self._after_assistant_turn()
        ids, offsets = self._ids(after) if after else ([], None)
        return after[offsets[0][1] :] if ids and offsets and ids[0] == self.end_of_turn else after

    @cached_property
    def terminal_ids(self) -> frozenset[int]:
        """Tokens that end a response: the generation config's EOS ids and end-of-turn."""
        return self._eos_ids | ({self.end_of_turn} if self.end_of_turn is not None else set())

    def prompt_from_text(self, text: str, *, param: str) -> Int64[np.ndarray, " p"]:
        """Raw text, with at most one BOS in front. Raises EmptyPrompt, UnsupportedText,
        SequenceTooLong."""
        ids = np.asarray(self._encode(text, param=param)[0], dtype=np.int64)
        return self.prompt_from_ids(self.with_bos(ids), param=param)

    def with_bos(self, ids: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " p"]:
        """Ids of raw text, with at most one BOS in front."""
        if self.bos_id is None or ids[:1].tolist() == [self.bos_id]:
            return ids
        return np.concatenate([[self.bos_id], ids])

    def prompt_from_ids(
        self, ids: Int64[np.ndarray, " given"], *, param: str
    ) -> Int64[np.ndarray, " p"]:
        """Ids as they are; an empty prompt becomes BOS. Raises EmptyPrompt if the model has
        none."""
        if len(ids):
            return ids
        if self._tokenizer.bos_token_id is None:
            raise EmptyPrompt(
                f"`{param}` is empty and this model has no BOS to begin with", param=param
            )
        return np.asarray([self._tokenizer.bos_token_id], dtype=np.int64)

    def prompt_from_messages(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        template_kwargs: dict[str, Any],
        *,
        param: str,
    ) -> Int64[np.ndarray, " p"]:
        """Messages through the chat template, with its generation prompt. Raises UnsupportedText,
        EmptyPrompt, SequenceTooLong."""
        # Variables of the template pass; arguments of the call do not: one of them is a whole
        # template to run.
        for name in template_kwargs:
            if name in self._template_arguments:
                raise UnsupportedText(f"`chat_template_kwargs` may not set `{name}`", param=param)
        if not self._tokenizer.chat_template:
            raise UnsupportedText(
                f"`{param}`: this tokenizer has no chat template; send raw text", param=param
            )
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=True, tokenize=False, **template_kwargs
            )
        except TemplateError as error:
            raise UnsupportedText(
                f"`{param}`: the chat template refused these messages: {error}", param=param
            ) from None
        except (
            Exception
        ) as error:  # a template is a program; whatever it raises is this item's fault
            kind = type(error).__name__
            raise UnsupportedText(
                f"`{param}`: the chat template failed on these messages: {kind}", param=param
            ) from None
        return self.prompt_from_ids(
            np.asarray(self._encode(text, param=param)[0], dtype=np.int64), param=param
        )

    def response(self, text: str, *, finished: bool, param: str) -> EncodedResponse:
        """A response's tokens, with end-of-turn appended if `finished`. Raises UnsupportedText,
        SequenceTooLong."""
        ids, offsets = self._encode(text, param=param)
        appended = []
        if finished and (not ids or ids[-1] not in self.terminal_ids):
            if self.end_of_turn is None:
                raise UnsupportedText(
                    f"`{param}`: this tokenizer has no end-of-turn; send `finished: false`",
                    param=param,
                )
            appended = [self.end_of_turn]
        return EncodedResponse(
            ids=np.asarray(ids + appended, dtype=np.int64),
            ends=None if offsets is None else self._offsets.ends(text, offsets),
            num_appended=len(appended),
        )

    def templated(self, messages: list[dict[str, Any]]) -> Int64[np.ndarray, " n"] | None:
        """A whole conversation as the template writes it; None if there is no template or it wants
        something else."""
        if not self._tokenizer.chat_template:
            return None
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception:
            return None
        return np.asarray(self._ids(text)[0], dtype=np.int64)

    def suffix(self, text: str | None) -> Int64[np.ndarray, " s"]:
        """What a reward model's template puts after the response."""
        return np.asarray(self._ids(text)[0] if text else [], dtype=np.int64)

    def texts(self, ids: Int64[np.ndarray, " r"]) -> list[str]:
        """Each token as text, for people to read; a token inside a character shows as U+FFFD."""
        return [self._tokenizer.decode([token_id]) for token_id in ids.tolist()]

    def pieces(
        self, text: str, *, param: str
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"] | None]:
        """Ids of a text alone, and where each token's characters end (None as in
        `EncodedResponse`).

        Raises UnsupportedText, SequenceTooLong.
        """
        ids, offsets = self._encode(text, param=param)
        return np.asarray(ids, dtype=np.int64), None if offsets is None else self._offsets.ends(
            text, offsets
        )

    def text(self, ids: Int64[np.ndarray, " n"]) -> str:
        """The text of ids, special tokens included, nothing cleaned up."""
        decoded: str = self._tokenizer.decode(
            ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return decoded

    def single(self, text: str) -> int | None:
        """The one token that this text is; None if it is none, several, or unknown."""
        return self._kept_single(text) if len(text) <= _LONGEST_KEPT else self._single(text)

    def _single(self, text: str) -> int | None:
        ids = self._ids(text)[0]
        return int(ids[0]) if len(ids) == 1 and ids[0] != self._tokenizer.unk_token_id else None

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be prompts."""
        return bool(self._tokenizer.chat_template)

    def without_special(self, text: str) -> str:
        """The text with a line break in place of each special token that it spells, so that it can
        be quoted in a prompt and end no turn of it. A line break, because without one the two sides
        could spell another."""
        return self._special_words.sub("\n", text)

    @cached_property
    def _special_words(self) -> re.Pattern[str]:
        added = self._tokenizer.added_tokens_decoder.values()
        words = {token.content for token in added if token.special} | set(
            self._tokenizer.all_special_tokens
        )
        longest_first = sorted(words, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) if words else r"(?!)")

    @cached_property
    def _template_arguments(self) -> frozenset[str]:
        return frozenset(inspect.signature(self._tokenizer.apply_chat_template).parameters)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self._tokenizer.all_special_ids) | frozenset(
            self._tokenizer.get_added_vocab().values()
        )

    def _after_assistant_turn(self) -> str:
        if not self._tokenizer.chat_template:
            return ""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        try:
            text: str = self._tokenizer.apply_chat_template(turns, tokenize=False)
        except (
            Exception
        ):  # a template may demand fields that no plain turn has; then EOS ends a turn
            return ""
        return text.rpartition(_MARK)[2]

    def _encode(self, text: str, *, param: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        try:
            encoding = self._read(text)
        except (TypeError, UnicodeError, OverflowError) as error:
            raise UnsupportedText(
                f"`{param}` cannot be tokenised: {type(error).__name__}", param=param
            ) from None
        if self._max_tokens is not None and len(encoding) > self._max_tokens:
            # Before lists are made of it, which take hundreds of bytes for each token.
            raise SequenceTooLong(
                f"`{param}` is {len(encoding)} tokens, `max_sequence_tokens` is {self._max_tokens}",
                param=param,
            )
        return _listed(encoding)

    def _ids(self, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        return _listed(self._read(text))

    def _read(self, text: str) -> Any:
        """The backend's encoding; the ids, of a tokenizer that has no backend."""
        if self._backend is None:
            return self._tokenizer.encode(text, add_special_tokens=False)
        if len(text) < _LONG_CHARACTERS:
            return self._backend.encode(text, add_special_tokens=False)
        # The same, but other threads go on meanwhile: `encode` keeps Python's lock until it
        # returns.
        return self._backend.encode_batch([text], add_special_tokens=False)[0]


def _listed(encoding: Any) -> tuple[list[int], list[tuple[int, int]] | None]:
    """Ids and offsets, which ids alone have not."""
    return (
        (list(encoding.ids), list(encoding.offsets))
        if hasattr(encoding, "offsets")
        else (list(encoding), None)
    )
