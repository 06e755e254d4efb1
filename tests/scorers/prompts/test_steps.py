"""Rows of process reward models on tokenizers of every family: whose step a token is, and where the
tags stand."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fakes import prm, tiny, vocabularies
from fakes.tiny import tokenizer_of
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Sample
from tokenreward.errors import EmptyResponse, UnsupportedText
from tokenreward.scorers._prompts.steps import StepLayout, StepRow, step_row
from tokenreward.text.tokenizer import Tokenizer
from tokenreward.wire import Item

LAYOUTS = {
    "qwen": StepLayout("qwen", "\n\n", "\n"),
    "math_shepherd": StepLayout("math_shepherd", "\n", " #", joiner="\n", opening=" "),
    "skywork": StepLayout("skywork", "\n", "\n", opening="\n"),
}
ALPHABET = "ab 4.\n\r\t東é#"
RESPONSES = st.text(ALPHABET, max_size=40).filter(lambda text: text.strip() != "")


def words_of(tokenizer: Any) -> Tokenizer:
    return tokenizer_of(Checkpoint(tiny.model("llama"), tokenizer, "causal_lm"))


BYTES = words_of(prm.with_tag())
MISTRAL = words_of(prm.like_mistral())


def sample_of(
    words: Tokenizer, response: str, *, finished: bool = True, prompt: Any = "2+2?"
) -> Sample:
    response_ids, ends = words.response(response, finished=finished, param="response")
    ids = (
        words.prompt_from_text(prompt, param="prompt")
        if isinstance(prompt, str)
        else np.asarray(prompt)
    )
    return Sample(
        ids,
        response_ids,
        terminal=int(response_ids[-1]) in words.terminal_ids,
        keep=np.ones(len(response_ids), dtype=bool),
        item=Item(prompt=prompt, response=response),
        tokenizer=words,
        ends=ends,
    )


def row_of(words: Tokenizer, name: str, response: str, **more: Any) -> StepRow:
    return step_row(sample_of(words, response, **more), LAYOUTS[name])


@pytest.mark.parametrize("words", [BYTES, MISTRAL], ids=["byte_level", "like_mistral"])
@pytest.mark.parametrize("name", LAYOUTS)
@given(response=RESPONSES, finished=st.booleans())
def test_every_token_has_one_step_and_every_step_a_tag(
    words: Tokenizer, name: str, response: str, finished: bool
) -> None:
    if name == "qwen" and words is MISTRAL:
        return  # alone, its line break is two tokens
    if name == "math_shepherd":
        assume(not response.rstrip().endswith("#"))  # it spells the tag, which ends a step
    row = row_of(words, name, response, finished=finished)
    sample = sample_of(words, response, finished=finished)
    num_steps = len([piece for piece in response.split(LAYOUTS[name].separator) if piece.strip()])
    assert len(row.step_of) == len(sample.response_ids)
    assert (np.diff(row.step_of) >= 0).all()
    assert set(row.step_of.tolist()) == set(range(num_steps))
    assert len(row.tags) == num_steps
    assert (np.diff(row.tags) > 0).all()
    assert row.tags[-1] == len(row.ids) - 1
    tag = words.pieces("a" + LAYOUTS[name].tag, param="tag")[0][-1]
    assert (row.ids[row.tags] == tag).all()


@given(response=RESPONSES)
def test_a_tokens_step_is_that_of_its_last_character(response: str) -> None:
    row, sample = (
        row_of(BYTES, "skywork", response, finished=False),
        sample_of(BYTES, response, finished=False),
    )
    assert sample.ends is not None
    step, owner = -1, []
    for line in response.split("\n"):
        step += bool(line.strip())
        owner += [max(step, 0)] * (len(line) + 1)
    assert row.step_of.tolist() == [owner[end - 1] for end in sample.ends]


@pytest.mark.parametrize(
    ("tokenizer", "bos"),
    [(tiny.tokenizer(), [tiny.BOS_ID]), (prm.like_mistral(), [prm.like_mistral().bos_token_id])],
    ids=["has_one", "puts_one_itself"],
)
def test_skywork_begins_with_one_bos(tokenizer: Any, bos: list[int]) -> None:
    words = words_of(tokenizer)
    row = row_of(words, "skywork", "4")
    opening = words.pieces("2+2?\n", param="p")[0].tolist()
    assert row.ids[: len(opening) + 1].tolist() == bos + opening
    spelled = row_of(words, "skywork", "4", prompt=tokenizer.bos_token + "2+2?")
    np.testing.assert_array_equal(spelled.ids[:1], bos)
    assert spelled.ids.tolist().count(bos[0]) == 1


def test_skywork_begins_with_the_problem_where_there_is_no_bos() -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.bos_token = None
    words = words_of(tokenizer)
    row = row_of(words, "skywork", "4")
    assert row.ids[0] == words.pieces("2+2?\n", param="p")[0][0]


def test_prompt_ids_are_read_as_they_are_or_refused() -> None:
    ids = [7, 3, 250, 9]
    for name in ("qwen", "skywork"):
        assert row_of(BYTES, name, "4", prompt=ids).ids[:4].tolist() == ids
    with pytest.raises(UnsupportedText, match="send text") as caught:
        row_of(BYTES, "math_shepherd", "4", prompt=[250, 251, 252])
    assert caught.value.param == "prompt"
    problem = BYTES.pieces("2+2?", param="p")[0].tolist()
    np.testing.assert_array_equal(
        row_of(BYTES, "math_shepherd", "4", prompt=problem).ids,
        row_of(BYTES, "math_shepherd", "4").ids,
    )


def test_a_tag_that_runs_into_the_next_line_is_refused() -> None:
    layout = StepLayout("math_shepherd", "\n", "\n", joiner="\n")
    double = copy.deepcopy(tiny.tokenizer())
    double.add_tokens(["\n\n"])
    with pytest.raises(UnsupportedText, match="no token end with the step tag"):
        step_row(sample_of(words_of(double), "a\nb"), layout)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    words = words_of(vocabularies.python_bytes())
    with pytest.raises(UnsupportedText, match="cannot say where tokens end"):
        row_of(words, "skywork", "a\nb")


@pytest.mark.parametrize("name", LAYOUTS)
def test_white_space_alone_has_no_step(name: str) -> None:
    with pytest.raises(EmptyResponse, match="no step"):
        row_of(BYTES, name, " \n\n\t ")


def test_a_row_is_made_once_for_each_layout_and_kept_no_longer_than_its_sample() -> None:
    sample = sample_of(BYTES, "a\nb")
    rows = {name: step_row(sample, layout) for name, layout in LAYOUTS.items()}
    assert all(step_row(sample, replace(layout)) is rows[name] for name, layout in LAYOUTS.items())
    assert len({tuple(row.ids.tolist()) for row in rows.values()}) == len(LAYOUTS)
    assert step_row(sample_of(BYTES, "a\nb"), LAYOUTS["skywork"]) is not rows["skywork"]
    assert set(sample.memo) == set(LAYOUTS.values())


def test_math_shepherds_text_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    words, texts = words_of(prm.like_mistral()), []
    own = words.encoder.read
    monkeypatch.setattr(words.encoder, "read", lambda text: texts.append(text) or own(text))
    sample = sample_of(words, "a\nb")
    assert words.bos_id is not None
    for _ in range(2):
        ids = step_row(sample, LAYOUTS["math_shepherd"]).ids
    assert texts.count("2+2? a #\nb #") == 1
    np.testing.assert_array_equal(ids, words.prompt_from_text("2+2? a #\nb #", param="p"))
