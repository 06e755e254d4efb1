"""Texts of megabytes, and conversations of very many messages: refused before they are tokenised or
rendered, unless they could fit."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable
from typing import Any

import pytest

from fakes import tiny, vocabularies
from fakes.tiny import TEMPLATE
from tokenreward.errors import SequenceTooLong, UnsupportedText
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
    began = time.process_time()
    ChatTemplate(tiny.tokenizer()).prompt(messages, param="prompt")
    assert time.process_time() - began < 10


def unexpected(*arguments: Any, **keywords: Any) -> None:
    raise AssertionError("it is called")


USER = {"role": "user", "content": "a"}
CALLS = {"role": "assistant", "content": "a", "tool_calls": [{"function": {"name": "f"}}] * 300}
MANY: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "messages": ([USER, {"role": "assistant", "content": ""}] * 100 + [USER], None),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "a"}] * 200}], None),
    "calls": ([USER, CALLS, USER], None),
    "tools": ([USER], [{"name": "f"}] * 200),
}


@pytest.mark.parametrize("name", MANY)
def test_a_conversation_of_more_parts_than_tokens_is_refused_before_it_is_rendered(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    messages, tools = MANY[name]
    theirs = copy.copy(tiny.tokenizer())
    monkeypatch.setattr(type(theirs), "apply_chat_template", unexpected)
    tokenizer = Tokenizer(theirs, max_tokens=200)
    with pytest.raises(SequenceTooLong, match="`max_sequence_tokens` is 200") as caught:
        tokenizer.prompt_from_messages(messages, tools, {}, param="prompt")
    assert caught.value.param == "prompt"
    assert f"{len(messages)} messages" in caught.value.message


def test_a_conversation_of_as_many_messages_as_tokens_is_rendered() -> None:
    tokenizer = Tokenizer(tiny.tokenizer(), max_tokens=2000)
    assert len(tokenizer.prompt_from_messages([USER] * 199, None, {}, param="prompt")) <= 2000


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ([f"role{place}" for place in range(65)], "65 different roles, the limit is 64"),
        (["r" * 257], "a role of 257 characters, the limit is 256"),
    ],
    ids=["many", "long"],
)
def test_roles_are_few_and_short_because_each_is_tried_and_kept(
    monkeypatch: pytest.MonkeyPatch, roles: list[str], reason: str
) -> None:
    theirs = copy.copy(tiny.tokenizer())
    monkeypatch.setattr(type(theirs), "apply_chat_template", unexpected)
    messages = [{"role": role, "content": "a"} for role in roles]
    with pytest.raises(UnsupportedText, match=reason):
        ChatTemplate(theirs).prompt(messages, param="prompt")


def test_the_arguments_of_rendering_are_looked_up_once_however_many_variables_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_calls = 0
    signature = inspect.signature

    def counted(function: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        return signature(function)

    monkeypatch.setattr("tokenreward.text.chat_template.inspect.signature", counted)
    variables = {f"v{place}": 1 for place in range(100)}
    ChatTemplate(tiny.tokenizer()).prompt([USER], None, variables, param="prompt")
    assert num_calls == 1
