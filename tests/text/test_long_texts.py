"""Texts of megabytes: refused before they are tokenised, unless they could fit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from fakes import tiny, vocabularies
from fakes.tiny import TEMPLATE
from tokenreward.errors import SequenceTooLong
from tokenreward.text.chat_template import ChatTemplate
from tokenreward.text.conversation import templated_tokens
from tokenreward.text.encoder import TextEncoder
from tokenreward.text.tokenizer import Tokenizer

LONG = {
    "words": "It is 4. " * 8_000,
    "one letter": "a" * 70_000,
    "spaces": " " * 70_000,
    "lines": "a\n\n\n \t" * 8_000,
    "marks": "e\u0301\u0323" * 20_000,
    "unknown": "\U0001f9ff" * 20_000,
    "control": "\u0000\u200b" * 20_000,
    "special": "<|end|>" * 8_000,
    "half": " " * 90_000 + "word" * 8_000,
}


class Counted:
    """Counts the characters that an encoder tokenises."""

    def __init__(self, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_characters = 0
        read = encoder.read

        def counted(text: str) -> Any:
            self.num_characters += len(text)
            return read(text)

        monkeypatch.setattr(encoder, "read", counted)


def test_a_text_of_megabytes_is_refused_after_one_piece_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = Tokenizer(tiny.tokenizer(), max_tokens=200)
    read = Counted(tokenizer.encoder, monkeypatch)
    text = "It is 4. " * 900_000
    asks: list[Callable[[], Any]] = [
        lambda: tokenizer.prompt_from_text(text, param="prompt"),
        lambda: tokenizer.response(text, finished=True, param="response"),
        lambda: tokenizer.pieces(text, param="prompt"),
        lambda: tokenizer.prompt_from_conversation(text, param="prompt"),
        lambda: tokenizer.prompt_from_messages(
            [{"role": "user", "content": text}], None, {}, param="prompt"
        ),
        lambda: templated_tokens(tokenizer, [{"role": "user", "content": "a"}], text),
    ]
    for ask in asks:
        read.num_characters = 0
        with pytest.raises(
            SequenceTooLong, match=r"has 8100.* `max_sequence_tokens`, which is 200"
        ):
            ask()
        assert 0 < read.num_characters < 40_000


def test_a_template_that_repeats_what_it_shows_is_refused_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = tiny.tokenizer()
    repeated = "{% for n in range(10000) %}" + TEMPLATE + "{% endfor %}"
    monkeypatch.setattr(theirs, "chat_template", repeated)
    tokenizer = Tokenizer(theirs, max_tokens=200)
    read = Counted(tokenizer.encoder, monkeypatch)
    with pytest.raises(SequenceTooLong):
        tokenizer.prompt_from_messages(
            [{"role": "user", "content": "It is 4. " * 20}], None, {}, param="prompt"
        )
    assert read.num_characters < 40_000


@pytest.mark.parametrize("kind", vocabularies.KINDS)
@pytest.mark.parametrize("text", LONG)
def test_a_text_that_fits_is_never_refused(kind: str, text: str) -> None:
    theirs = vocabularies.KINDS[kind]()
    num_tokens = len(TextEncoder(theirs).read(LONG[text]))
    ids = TextEncoder(theirs, num_tokens).caller_ids(LONG[text], param="p")
    assert len(ids) == num_tokens


def test_white_space_that_a_token_takes_with_it_counts_for_nothing() -> None:
    theirs = vocabularies.KINDS["byte_level"]()
    from tokenizers import AddedToken

    theirs.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True, special=True)})
    text = "a" + " " * 200_000 + "<mask>"
    assert len(TextEncoder(theirs, 2).caller_ids(text, param="p")) == 2


def test_whether_messages_are_shown_is_found_out_in_one_look_at_the_text() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 20_000
    began = time.monotonic()
    ChatTemplate(tiny.tokenizer()).prompt(messages, param="prompt")
    assert time.monotonic() - began < 10
