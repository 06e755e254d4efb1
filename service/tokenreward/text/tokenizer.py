"""A checkpoint's tokenizer as the engine and scorers use it: prompts and responses to token ids,
and ids back to text.

The response never goes through the chat template, which might rewrite it: it is tokenised alone and
appended to the prompt. It does not know the caller's spans (alignment does) and knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int64

from tokenreward.alignment import fingerprint
from tokenreward.errors import EmptyPrompt, UnsupportedText
from tokenreward.text.chat_template import ChatTemplate
from tokenreward.text.encoder import TextEncoder
from tokenreward.text.pairs import special_tokens, wrapped

# Scorers ask for the same few labels (`Yes`, `No`) with every item, so `single` keeps its answers.
# Callers may make up others, so it keeps only so many, and only of short texts.
_MAX_CACHED_TEXTS = 1024
_MAX_CACHED_CHARACTERS = 256
_MARK = "tokenreward"  # a word that no template has


class Tokenizer:
    """Text to tokens, the way the checkpoint wants them.

    Args:
        tokenizer: A transformers tokenizer.
        eos_ids: Every EOS id that the checkpoint's configurations name.
        max_tokens: The most tokens that a caller's text may have; None for no limit.
        reads_pairs: Whether prompt and response are the two texts of a pair, as an encoder's
            tokenizer writes one: `[CLS] prompt [SEP] response [SEP]`.
        has_segments: Whether the model is told which of the two texts a token is of.
        template_kwargs: The deployment's `chat_template_kwargs`.
        limit: The setting that limits a text's tokens, for errors.

    Attributes:
        around_pair: The special tokens before, between and behind the two texts of a pair.
        around_text: Those before and behind a text alone. All are empty unless it reads pairs.
    """

    def __init__(
        self,
        tokenizer: Any,
        eos_ids: frozenset[int] = frozenset(),
        max_tokens: int | None = None,
        *,
        reads_pairs: bool = False,
        has_segments: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        limit: str = "max_sequence_tokens",
    ) -> None:
        self.has_segments = has_segments
        self.encoder = TextEncoder(tokenizer, max_tokens, limit)
        self.around_text: list[list[int]] = [[], []]
        self.around_pair: list[list[int]] = [[], [], []]
        if reads_pairs:
            self.around_pair = special_tokens(tokenizer, self.encoder, "a", "b")
        if any(self.around_pair):
            self.around_text = special_tokens(tokenizer, self.encoder, "a")
        self.template = ChatTemplate(tokenizer, template_kwargs, max_tokens=max_tokens, limit=limit)
        self._tokenizer, self._eos_ids = tokenizer, eos_ids
        self._cached_single = lru_cache(_MAX_CACHED_TEXTS)(self._find_single)

    @cached_property
    def fingerprint(self) -> str:
        """Equal to another tokenizer's if equal ids are equal tokens."""
        return fingerprint(self._tokenizer.get_vocab())

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be prompts."""
        return bool(self.template.source)

    @cached_property
    def bos_id(self) -> int | None:
        """The token that this tokenizer puts before raw text, if it puts one."""
        bos = self._tokenizer.bos_token_id
        with_special = self._tokenizer("a", add_special_tokens=True)["input_ids"]
        if bos is None or with_special[:1] != [bos]:
            return None
        return int(bos)

    @property
    def bos_text(self) -> str:
        """How a text spells BOS; empty if there is none."""
        return str(self._tokenizer.bos_token or "")

    @cached_property
    def end_of_turn(self) -> int | None:
        """The special token that the template writes behind an assistant turn, or a pair behind its
        second text, else EOS."""
        if len(self.around_pair[2]) == 1:
            return int(self.around_pair[2][0])
        after = self.template.after_assistant_turn
        if after:
            added = self._tokenizer.get_added_vocab().values()
            special = {*self._tokenizer.all_special_ids, *added}
            ids = self.encoder.ids(after)
            if len(ids) and int(ids[0]) in special:
                return int(ids[0])
        eos = self._tokenizer.eos_token_id
        return None if eos is None else int(eos)

    @cached_property
    def end_of_turn_text(self) -> str:
        """How a text spells end-of-turn; empty if there is none."""
        return "" if self.end_of_turn is None else self.text(np.array([self.end_of_turn]))

    @cached_property
    def after_end_of_turn(self) -> str:
        """The text that the template writes behind the end-of-turn of an assistant turn. Most
        templates write none, or a line break."""
        after = self.template.after_assistant_turn
        encoding = self.encoder.read(after)
        offsets = getattr(encoding, "offsets", None)
        if offsets and encoding.ids[0] == self.end_of_turn:
            return after[offsets[0][1] :]
        return after

    @cached_property
    def turn_openings(self) -> tuple[str, ...]:
        """What the template writes before an assistant's words: in front of a turn to come, in
        front of a turn that is there, and what the two have in common. A template may open a think
        block in one of them. Empty if there is no template, or if it marks no such turns."""
        question = {"role": "user", "content": _MARK}
        begun = self.template.conversation([question])
        whole = self.template.conversation([question, {"role": "assistant", "content": _MARK}])
        if begun is None or whole is None:
            return ()
        between = whole.partition(_MARK)[2].rpartition(_MARK)[0]
        past = between.removeprefix(begun.rpartition(_MARK)[2]).strip(" ")
        ahead = self.template.prompt([question], param=None).removeprefix(begun)
        num_common = 0
        while past[num_common : num_common + 1] == ahead[num_common : num_common + 1] != "":
            num_common += 1
        openings = dict.fromkeys((ahead, past, past[:num_common]))
        if not ahead.strip() and not past.strip():  # it marks the end of the user's turn alone
            openings = {between.strip(" "): None}
        return tuple(text for text in openings if text.strip())

    @cached_property
    def terminal_ids(self) -> frozenset[int]:
        """Tokens that end a response: the checkpoint's EOS ids and end-of-turn."""
        if self.end_of_turn is None:
            return self._eos_ids
        return self._eos_ids | {self.end_of_turn}

    def prompt_from_text(self, text: str, *, param: str | None) -> Int64[np.ndarray, " p"]:
        """Raw text, with at most one BOS in front; as the first text of a pair, with the special
        tokens around that. Raises EmptyPrompt, UnsupportedText, SequenceTooLong."""
        ids = self.encoder.caller_ids(text, param=param)
        if not any(self.around_pair):
            return self.prompt_from_ids(self.with_bos(ids), param=param)
        before, between, _ = self.around_pair
        ids = np.concatenate([before, ids, between]).astype(np.int64)
        return self.prompt_from_ids(ids, param=param)

    def prompt_from_messages(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        template_kwargs: dict[str, Any],
        *,
        param: str | None,
    ) -> Int64[np.ndarray, " p"]:
        """Messages through the chat template, with its generation prompt. Raises UnsupportedText,
        EmptyPrompt, SequenceTooLong."""
        text = self.template.prompt(messages, tools, template_kwargs, param=param)
        return self.prompt_from_ids(self.encoder.caller_ids(text, param=param), param=param)

    def prompt_from_conversation(self, text: str, *, param: str | None) -> Int64[np.ndarray, " p"]:
        """The beginning of a text that a chat template wrote. Where the template writes BOS, it is
        put back if it is missing: callers strip it, as other servers add one. Raises
        UnsupportedText, SequenceTooLong."""
        ids = self.encoder.caller_ids(text, param=param)
        bos = self._tokenizer.bos_token_id
        if bos is None or not self._template_writes_bos or ids[:1].tolist() == [bos]:
            return ids
        return np.concatenate([[bos], ids])

    @cached_property
    def _template_writes_bos(self) -> bool:
        text = self.template.conversation([{"role": "user", "content": _MARK}])
        return bool(self.encoder.ids(text or "")[:1].tolist() == [self._tokenizer.bos_token_id])

    def prompt_from_ids(
        self, ids: Int64[np.ndarray, " given"], *, param: str | None
    ) -> Int64[np.ndarray, " p"]:
        """Ids as they are; an empty prompt becomes BOS. Raises EmptyPrompt if the model has
        none."""
        if len(ids):
            return ids
        if self._tokenizer.bos_token_id is None:
            raise EmptyPrompt(
                "the prompt is empty and this model has no BOS to begin with", param=param
            )
        return np.asarray([self._tokenizer.bos_token_id], dtype=np.int64)

    def with_bos(self, ids: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " p"]:
        """Ids of raw text, with at most one BOS in front, or with `around_text`."""
        if any(self.around_text):
            return wrapped(ids, *self.around_text)
        if self.bos_id is None or ids[:1].tolist() == [self.bos_id]:
            return ids
        return np.concatenate([[self.bos_id], ids])

    def response(
        self, text: str, *, finished: bool, param: str | None
    ) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " t"] | None]:
        """A response's tokens.

        Args:
            text: The response, which is tokenised alone.
            finished: Whether the response ended its turn. Then end-of-turn is appended, unless the
                text itself spells a token that ends it.
            param: The caller's field, for errors.

        Returns:
            The ids, with end-of-turn behind them if it was appended, and where the characters of
            each token of the text end, in code points. End-of-turn has no entry among the ends.
            They are None if this tokenizer cannot say them truthfully.

        Raises:
            UnsupportedText: The text cannot be encoded, or there is no end-of-turn to append.
            SequenceTooLong: The text has more than `max_tokens` tokens.
        """
        ids, ends = self.encoder.caller_ids_and_ends(text, param=param)
        if not finished or (len(ids) and int(ids[-1]) in self.terminal_ids):
            return ids, ends
        if self.end_of_turn is None:
            raise UnsupportedText(
                "this tokenizer has no end-of-turn; send `finished: false`", param=param
            )
        return np.append(ids, self.end_of_turn), ends

    def pieces(
        self, text: str, *, param: str | None
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"] | None]:
        """Ids of a text alone, and where each token's characters end (None as in
        `response`). Raises UnsupportedText, SequenceTooLong."""
        return self.encoder.caller_ids_and_ends(text, param=param)

    def templated(
        self, messages: list[dict[str, Any]], variables: Mapping[str, Any] | None = None
    ) -> Int64[np.ndarray, " n"] | None:
        """A whole conversation as the template writes it; None if there is no template, or if it
        fails on these messages. `variables` are the template's, over the deployment's."""
        text = self.template.conversation(messages, variables)
        return None if text is None else self.encoder.ids(text)

    def suffix(self, text: str | None) -> Int64[np.ndarray, " s"]:
        """Ids of what a reward model's template puts behind the response; none for None."""
        return self.encoder.ids(text) if text else np.empty(0, dtype=np.int64)

    def texts(self, ids: Int64[np.ndarray, " r"]) -> list[str]:
        """Each token as text, for people to read; a token inside a character shows as U+FFFD."""
        return [self._tokenizer.decode([token_id]) for token_id in ids.tolist()]

    def text(self, ids: Int64[np.ndarray, " n"]) -> str:
        """The text of ids, special tokens included, nothing cleaned up."""
        text: str = self._tokenizer.decode(
            ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def single(self, text: str) -> int | None:
        """The one token that this text is; None if it is none, several, or unknown."""
        if len(text) > _MAX_CACHED_CHARACTERS:
            return self._find_single(text)
        return self._cached_single(text)

    def _find_single(self, text: str) -> int | None:
        ids = self.encoder.ids(text).tolist()
        if len(ids) != 1 or ids[0] == self._tokenizer.unk_token_id:
            return None
        return int(ids[0])

    def without_special(self, text: str) -> str:
        """The text with a line break in place of each special token that it spells.

        It can then be quoted in a prompt and ends no turn there. A line break stands in, because
        without one the text on both sides could join to another special token.
        """
        return self._special_spellings.sub("\n", text)

    @cached_property
    def _special_spellings(self) -> re.Pattern[str]:
        added = self._tokenizer.added_tokens_decoder.values()
        spellings = {token.content for token in added if token.special}
        spellings.update(self._tokenizer.all_special_tokens)
        longest_first = sorted(spellings, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")  # it matches nothing
