"""Text to tokens: BOS at most once, end-of-turn as the template has it, ends that tile, nothing
truncated."""

from __future__ import annotations

import copy
import sys
import threading
import tracemalloc

import numpy as np
import pytest

from fakes import tiny, vocabularies
from fakes.pairs import PAIRS, pairing_tokenizer
from fakes.tiny import tokenizer_of
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.errors import EmptyPrompt, SequenceTooLong, UnsupportedText
from tokenreward.text.tokenizer import Tokenizer


def tokenizer_with(**changes: object) -> Tokenizer:
    """The tests' tokenizer with some of its attributes changed."""
    theirs = copy.deepcopy(tiny.tokenizer())
    for name, value in changes.items():
        setattr(theirs, name, value)
    return Tokenizer(theirs, frozenset({tiny.END_ID}))


def tokenizer_with_bos() -> Tokenizer:
    """One that puts BOS before raw text."""
    from tokenizers.processors import TemplateProcessing

    theirs = copy.deepcopy(tiny.tokenizer())
    theirs.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tiny.BOS_ID)]
    )
    return Tokenizer(theirs)


TEXTS = [
    "It is 4.",
    " leading and trailing \n",
    "naïve café 東京 👩‍👩‍👧",
    "مرحبا\r\n\tتم",
    "a\u0301\u200d\u0000",
]


@pytest.mark.parametrize("text", TEXTS)
def test_response_ends_tile_the_text_and_end_of_turn_is_appended(text: str) -> None:
    ids, ends = tokenizer_with().response(text, finished=True, param="p")
    assert ends is not None
    assert len(ids) == len(ends) + 1
    assert ids[-1] == tiny.END_ID
    assert (np.diff(ends) >= 0).all()
    assert ends[-1] == len(text)


@pytest.mark.parametrize("text", [*TEXTS, ""])
def test_the_pieces_of_a_text_are_an_unfinished_responses_tokens_and_ends(text: str) -> None:
    ids, ends = tokenizer_with().pieces(text, param="p")
    response_ids, response_ends = tokenizer_with().response(text, finished=False, param="p")
    np.testing.assert_array_equal(ids, response_ids)
    np.testing.assert_array_equal(ends, response_ends)


@pytest.mark.parametrize("name", PAIRS)
def test_special_tokens_around_one_text_and_around_the_first_of_two_are_the_tokenizers_own(
    name: str,
) -> None:
    theirs = pairing_tokenizer(name)
    ours = Tokenizer(theirs, reads_pairs=True)
    alone = theirs("2+2?")["input_ids"]
    for ids in (ours.encoder.ids("2+2?"), np.array(alone)):
        assert ours.with_bos(ids).tolist() == alone
    prompt = ours.prompt_from_text("2+2?", param="p").tolist()
    behind = [*ours.encoder.ids("4"), *ours.around_pair[2]]
    assert [*prompt, *behind] == theirs("2+2?", "4")["input_ids"]


def test_an_unfinished_response_gets_no_end_of_turn() -> None:
    finished, _ = tokenizer_with().response("It is 4.", finished=True, param="p")
    unfinished, ends = tokenizer_with().response("It is 4.", finished=False, param="p")
    np.testing.assert_array_equal(unfinished, finished[:-1])
    assert ends is not None
    assert len(unfinished) == len(ends)


def test_a_text_that_spells_its_end_of_turn_gets_no_second_one() -> None:
    ids, _ = tokenizer_with().response("It is 4.<|end|>", finished=True, param="p")
    assert ids.tolist().count(tiny.END_ID) == 1


def test_the_response_is_tokenised_alone() -> None:
    tokenizer = tokenizer_with()
    ids, _ = tokenizer.response("It is 4.", finished=False, param="p")
    assert ids.tolist() == tiny.tokenizer()("It is 4.", add_special_tokens=False)["input_ids"]


def test_messages_go_through_the_template_with_its_generation_prompt() -> None:
    ids = tokenizer_with().prompt_from_messages(
        [{"role": "user", "content": "2+2?"}], None, {}, param="p"
    )
    expected = tiny.tokenizer()("<|user|>2+2?<|end|>\n<|assistant|>", add_special_tokens=False)[
        "input_ids"
    ]
    assert ids.tolist() == expected


def test_template_kwargs_reach_the_template_but_not_our_own_arguments() -> None:
    tokenizer = tokenizer_with(chat_template="{{ mood }}{{ messages[0].content }}")
    ids = tokenizer.prompt_from_messages(
        [{"role": "user", "content": "x"}], None, {"mood": "calm "}, param="p"
    )
    assert ids.tolist() == tiny.tokenizer()("calm x", add_special_tokens=False)["input_ids"]
    for name in ("tokenize", "chat_template", "documents", "truncation"):
        with pytest.raises(UnsupportedText, match=f"may not set `{name}`"):
            tokenizer.prompt_from_messages(
                [{"role": "user", "content": "x"}], None, {name: "{{ 1 }}"}, param="p"
            )


def test_a_template_that_fails_is_unsupported_text_and_its_message_is_not_quoted() -> None:
    tokenizer = tokenizer_with(chat_template="{{ 1 / messages[0].content | int }}")
    with pytest.raises(UnsupportedText, match="failed on these messages: ZeroDivisionError"):
        tokenizer.prompt_from_messages([{"role": "user", "content": "0"}], None, {}, param="p")


def test_messages_without_a_template_or_that_it_refuses_are_unsupported_text() -> None:
    with pytest.raises(UnsupportedText, match="no chat template"):
        tokenizer_with(chat_template=None).prompt_from_messages(
            [{"role": "user", "content": "x"}], None, {}, param="p"
        )
    refusing = tokenizer_with(chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UnsupportedText, match="roles must alternate"):
        refusing.prompt_from_messages([{"role": "user", "content": "x"}], None, {}, param="p")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (tiny.TEMPLATE, tiny.END_ID),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", tiny.END_ID),  # emits nothing: EOS
        (
            "{% for m in messages %}{{ m.content }}<|pad|>\n{% endfor %}",
            tiny.PAD_ID,
        ),  # its own marker
        (None, tiny.END_ID),
    ],
)
def test_end_of_turn_is_what_the_template_emits_else_eos(
    template: str | None, expected: int
) -> None:
    assert tokenizer_with(chat_template=template).end_of_turn == expected


def test_every_eos_of_the_generation_config_ends_a_turn() -> None:
    model, theirs = tiny.model("llama"), tiny.tokenizer()
    checkpoint = Checkpoint(model, theirs, "causal_lm")
    assert tokenizer_of(checkpoint).terminal_ids == {tiny.END_ID}
    model.generation_config.eos_token_id = [7, 9]
    many = tokenizer_of(checkpoint)
    assert many.terminal_ids == {7, 9, tiny.END_ID}


def test_raw_text_gets_one_bos_if_the_tokenizer_puts_one() -> None:
    assert tokenizer_with().prompt_from_text("abc", param="p")[0] != tiny.BOS_ID
    tokenizer = tokenizer_with_bos()
    assert tokenizer.prompt_from_text("abc", param="p")[0] == tiny.BOS_ID
    assert tokenizer.prompt_from_text("<|bos|>abc", param="p").tolist().count(tiny.BOS_ID) == 1


def test_an_empty_prompt_is_bos_or_refused() -> None:
    assert tokenizer_with().prompt_from_text("", param="p").tolist() == [tiny.BOS_ID]
    assert tokenizer_with_bos().prompt_from_text("", param="p").tolist() == [tiny.BOS_ID]
    with pytest.raises(EmptyPrompt, match="no BOS"):
        tokenizer_with(bos_token=None).prompt_from_ids(np.empty(0, dtype=np.int64), param="p")


def test_a_tokenizer_that_truncates_or_pads_is_told_not_to() -> None:
    theirs = copy.deepcopy(tiny.tokenizer())
    theirs.backend_tokenizer.enable_truncation(4)
    theirs.backend_tokenizer.enable_padding(length=64)
    ids, _ = Tokenizer(theirs).response("a b c d e f g h", finished=False, param="p")
    assert (
        ids.tolist() == tiny.tokenizer()("a b c d e f g h", add_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize("text", ["\ud800", "\ud800" + "long " * 1000])
def test_a_lone_surrogate_is_unsupported_text(text: str) -> None:
    with pytest.raises(UnsupportedText):
        tokenizer_with().response(text, finished=False, param="items[0].response")


@pytest.mark.parametrize("text", TEXTS)
def test_a_long_text_has_the_tokens_and_ends_that_it_would_have_by_itself(text: str) -> None:
    long = (text + " ") * (2000 // len(text))
    ids, ends = tokenizer_with().response(long, finished=False, param="p")
    alone = tiny.tokenizer().backend_tokenizer.encode(long, add_special_tokens=False)
    assert ids.tolist() == alone.ids
    assert ends is not None
    assert ends[-1] == len(long)


def test_other_threads_go_on_while_a_long_text_is_tokenised() -> None:
    tokenizer, turns, done = tokenizer_with(), [0], threading.Event()

    def turn() -> None:
        while not done.is_set():
            turns[0] += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(5)  # nobody has to give way: a thread runs only while another lets go
    other = threading.Thread(target=turn)
    try:
        other.start()
        before = turns[0]
        tokenizer.encoder.ids("It is 4. " * 30_000)
        went_on = turns[0] - before
    finally:
        done.set()
        sys.setswitchinterval(interval)
        other.join()
    assert went_on > 0


def test_ends_cover_white_space_even_if_the_tokenizer_trims_its_offsets() -> None:
    from tokenizers.processors import ByteLevel

    theirs = copy.deepcopy(tiny.tokenizer())
    theirs.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    text = "a \n   b  "
    _, trimming = Tokenizer(theirs).response(text, finished=False, param="p")
    _, plain = tokenizer_with().response(text, finished=False, param="p")
    np.testing.assert_array_equal(trimming, plain)
    assert trimming is not None
    assert trimming[-1] == len(text)


@pytest.mark.parametrize("kind", ["byte_level", "unigram", "llama_2", "gemma", "word_piece"])
def test_a_text_without_special_tokens_spells_none_even_where_one_was_cut_out_of_another(
    kind: str,
) -> None:
    theirs = vocabularies.KINDS[kind]()
    tokenizer = Tokenizer(theirs)

    def ids_of(text: str) -> set[int]:
        return set(tokenizer.response(text, finished=False, param="p")[0].tolist())

    words = (vocabularies.EOS, vocabularies.BOS, vocabularies.RESERVED)
    special = {theirs.convert_tokens_to_ids(word) for word in words}
    text = "".join(words) + "<|e<|end|>nd|>" + "It is 4."
    assert special & ids_of(text) == special
    assert special & ids_of(tokenizer.without_special(text)) == set()
    assert tokenizer.without_special("It is 4.\n< |end| > <s>") == "It is 4.\n< |end| > <s>"


def test_a_chat_template_is_there_or_not() -> None:
    assert tokenizer_with().has_chat_template
    assert not tokenizer_with(chat_template=None).has_chat_template


def test_a_tokenizer_that_splits_special_tokens_does_so_before_it_was_ever_called() -> None:
    tokenizer = tokenizer_with(split_special_tokens=True)
    ids, _ = tokenizer.response("a<|end|>b", finished=False, param="p")
    assert tiny.END_ID not in ids
    theirs = copy.deepcopy(tiny.tokenizer())
    theirs.split_special_tokens = True
    assert ids.tolist() == theirs("a<|end|>b", add_special_tokens=False)["input_ids"]


def test_a_tokenizer_in_plain_python_gives_tokens_but_cannot_say_where_they_end() -> None:
    ids, ends = Tokenizer(vocabularies.python_bytes()).response("é", finished=True, param="p")
    assert len(ids) == 3
    assert ids[-1] == vocabularies.python_bytes().eos_token_id
    assert ends is None


def test_ends_that_cannot_be_trusted_are_none_and_the_tokens_are_there() -> None:
    tokenizer = Tokenizer(vocabularies.characters())
    ids, ends = tokenizer.response("a\u4e01b", finished=False, param="p")
    assert len(ids) == 2
    assert ends is None


def test_a_text_is_a_single_token_unless_it_is_none_several_or_unknown() -> None:
    tokenizer = tokenizer_with()
    assert [tokenizer.single(text) for text in ("7", "", "77")] == [
        tokenizer.pieces("7", param="p")[0][0],
        None,
        None,
    ]
    unknowing = Tokenizer(vocabularies.KINDS["word_piece"]())
    assert unknowing.single("answer") is not None
    assert unknowing.single("Ω") is None


def test_what_a_short_text_is_is_asked_of_the_tokenizer_once_and_a_long_one_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, texts = tokenizer_with(), []
    own = tokenizer.encoder.read
    monkeypatch.setattr(tokenizer.encoder, "read", lambda text: texts.append(text) or own(text))
    short, long = "7", "7" * 257
    assert {tokenizer.single(short) for _ in range(3)} == {own(short).ids[0]}
    assert {tokenizer.single(long) for _ in range(3)} == {None}
    assert texts == [short, long, long, long]
    for n in range(1024):
        tokenizer.single(f"{n} ")
    tokenizer.single(short)  # so many others came since that it was let go
    assert texts[-1] == short


def test_a_text_of_more_tokens_than_a_sequence_has_is_refused_before_lists_are_made_of_it() -> None:
    text, most = "It is 4. " * 400, 200
    num_tokens = len(Tokenizer(tiny.tokenizer()).pieces(text, param="p")[0])
    exactly = Tokenizer(tiny.tokenizer(), max_tokens=num_tokens)
    less = Tokenizer(tiny.tokenizer(), max_tokens=most)
    assert len(exactly.response(text, finished=False, param="p")[0]) == num_tokens
    with pytest.raises(
        SequenceTooLong, match=f"the text is {num_tokens} tokens, `max_sequence_tokens` is {most}"
    ):
        less.prompt_from_text(text, param="p")
    tracemalloc.start()
    try:
        with pytest.raises(SequenceTooLong):
            less.response(text, finished=True, param="p")
        assert tracemalloc.get_traced_memory()[1] < 8 * num_tokens
    finally:
        tracemalloc.stop()
