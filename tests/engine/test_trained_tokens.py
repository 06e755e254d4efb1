"""A reward model is read at the tokens that it was trained on: the truth is the call of its own
class on `apply_chat_template` over the whole conversation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fakes import tiny
from tokenreward.forward.own_call import compare_with_own_call
from tokenreward.text.conversation import SHAPES
from tokenreward.wire import RewardsRequest, parse

USER = {"role": "user", "content": "2+2?"}
TRIMMING = tiny.TEMPLATE.replace("message.content", "message.content | trim")
THINKING = (  # an empty think block in front of the last answer that has none, as Qwen3 writes it
    "{% for m in messages %}<|{{ m.role }}|>{% if loop.last and m.role == 'assistant' and "
    "'</think>' not in m.content %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{% endif %}"
)
REWRITING = tiny.TEMPLATE.replace("message.content", "message.content | replace('is', 'was')")
OPENING = THINKING.replace(  # a generation prompt that opens the think block, as Qwen3.5's
    "<|assistant|>{% if enable", "<|assistant|>{{ '<think>\n' }}{% if enable"
)
ALWAYS_THINKING = (  # a block in front of every answer, and a line break behind every turn
    THINKING.replace(" and '</think>' not in m.content", "").replace("<|end|>", "<|end|>\n")
)
TEMPLATES = {"trims": TRIMMING, "thinks": THINKING, "opens": OPENING}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("trained"), task="reward_model")


@pytest.fixture(scope="module")
def padded_by_eos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.save(tmp_path_factory.mktemp("padded"), task="reward_model")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.config.pad_token_id = tiny.END_ID
    model.save_pretrained(folder)
    return folder


def own_score(folder: Path, template: str, response: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [USER, {"role": "assistant", "content": response}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, chat_template=template)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    model = AutoModelForSequenceClassification.from_pretrained(folder).double()
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


async def ask(engine: Any, scorer: str, **item: Any) -> Any:
    body = {"scorer": scorer, "items": [{"prompt": [USER], **item}], "return_tokens": True}
    return (await engine.score(parse(RewardsRequest, body))).items[0]


@pytest.mark.parametrize("kind", list(TEMPLATES))
async def test_a_templated_response_has_the_score_of_the_models_own_call(
    make_engine: Callable[..., Any], folder: Path, kind: str
) -> None:
    engine = make_engine(
        "reward_model",
        ["reward_model", "attention_dense"],
        checkpoint=folder,
        chat_template=TEMPLATES[kind],
        scored_text="conversation",
    )
    for response in SHAPES.values():
        item = await ask(engine, "reward_model", response=response)
        assert item.score == pytest.approx(own_score(folder, TEMPLATES[kind], response), abs=1e-5)
        text = response.rstrip()
        edges = [token.span for token in item.tokens]
        assert [start for start, _ in edges[1:-1]] == [end for _, end in edges[:-2]]
        assert edges[0][0] == 0
        assert edges[-2][1] >= len(text)
        spans = [[0, 4], [4, len(response)]]
        units = await ask(engine, "attention_dense", response=response, spans=spans)
        assert len(units.rewards) == 2
        assert units.rewards.sum() == pytest.approx(units.score, abs=1e-4)


async def test_a_response_that_the_template_rewrites_is_an_items_error(
    make_engine: Callable[..., Any], folder: Path
) -> None:
    engine = make_engine(
        "reward_model",
        ["reward_model"],
        checkpoint=folder,
        chat_template=REWRITING,
        scored_text="conversation",
    )
    item = await ask(engine, "reward_model", response="It is 4.")
    assert item.error.code == "unsupported_text"
    assert item.error.param == "items[0].response"
    assert "rewrites this response" in item.error.message
    assert (await ask(engine, "reward_model", response="No.")).error is None


async def test_an_unfinished_response_ends_with_its_own_tokens(
    make_engine: Callable[..., Any], folder: Path
) -> None:
    engine = make_engine(
        "reward_model",
        ["reward_model"],
        checkpoint=folder,
        chat_template=TRIMMING,
        scored_text="conversation",
    )
    item = await ask(engine, "reward_model", response=" It is 4.", finished=False)
    plain = await ask(engine, "reward_model", response="It is 4.", finished=False)
    assert item.score == pytest.approx(plain.score, abs=1e-6)
    assert item.tokens[-1].id != tiny.END_ID


async def test_template_variables_of_the_deployment_reach_every_item(
    make_engine: Callable[..., Any], folder: Path
) -> None:
    engine = make_engine(
        "reward_model",
        ["reward_model"],
        checkpoint=folder,
        chat_template=THINKING,
        chat_template_kwargs={"enable_thinking": False},
    )
    item = await ask(engine, "reward_model", response="It is 4.")
    assert item.score == pytest.approx(own_score(folder, THINKING, "It is 4."), abs=1e-5)
    own = await ask(
        engine, "reward_model", response="It is 4.", chat_template_kwargs={"enable_thinking": True}
    )
    assert own.score != pytest.approx(item.score, abs=1e-3)


async def test_where_padding_is_eos_the_token_before_it_is_pooled_as_the_class_pools(
    make_engine: Callable[..., Any], padded_by_eos: Path
) -> None:
    template = tiny.TEMPLATE.replace("<|end|>\n", "<|end|>")
    engine = make_engine(
        "reward_model",
        ["reward_model", "attention_dense"],
        checkpoint=padded_by_eos,
        chat_template=template,
    )
    item = await ask(engine, "reward_model", response="It is 4.")
    assert item.score == pytest.approx(own_score(padded_by_eos, template, "It is 4."), abs=1e-5)
    body = {
        "scorer": "reward_model",
        "items": [{"prompt": [USER], "response": "It is 4."}],
        "credit": {"name": "values"},
    }
    values = (await engine.score(parse(RewardsRequest, body))).items[0].rewards
    assert len(values) == len(item.tokens)
    np.testing.assert_allclose(values[-2:], [item.score] * 2, atol=1e-5)
    spread = await ask(engine, "attention_dense", response="It is 4.")
    assert len(spread.rewards) == len(item.tokens)
    assert spread.score == pytest.approx(item.score, abs=1e-6)
    assert spread.rewards.sum() == pytest.approx(item.score, abs=1e-4)


@pytest.mark.parametrize(
    ("template", "more", "advice"),
    [
        (tiny.TEMPLATE, {}, r"`suffix_text: '\n'`"),
        (tiny.TEMPLATE, {"suffix_text": "\n"}, None),
        (tiny.TEMPLATE.replace("<|end|>\n", "<|end|>"), {"suffix_text": "\n"}, "suffix_text: null"),
        (TRIMMING, {}, "`scored_text: conversation`"),
        (TRIMMING, {"suffix_text": "\n"}, "`scored_text: conversation` and `suffix_text: null`"),
        (THINKING, {}, "`scored_text: conversation`"),
        (THINKING, {"reads_conversation": True}, None),
        (
            ALWAYS_THINKING,
            {"suffix_text": "\n"},
            "`chat_template_kwargs: {enable_thinking: false}`",
        ),
        (
            ALWAYS_THINKING,
            {},
            r"set `chat_template_kwargs: {enable_thinking: false}` and `suffix_text: '\n'`",
        ),
        (REWRITING, {"suffix_text": "\n"}, "no setting makes them equal"),
    ],
)
def test_the_setting_that_is_named_at_load_makes_the_tokens_equal(
    folder: Path, template: str, more: dict[str, Any], advice: str | None
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    checkpoint = tiny.Checkpoint(model.eval(), tokenizer, "reward_model", torch.device("cpu"))
    arguments = {"suffix_text": None, **more}
    line = compare_with_own_call(checkpoint, tiny.tokenizer_of(checkpoint), **arguments)
    assert ("they differ" in line) == (advice is not None)
    assert advice is None or advice in line


@pytest.mark.parametrize("more", [{}, {"scored_text": "conversation"}], ids=["alone", "templated"])
async def test_a_prompt_that_ends_in_an_assistants_turn_is_refused(
    make_engine: Callable[..., Any], folder: Path, more: dict[str, Any]
) -> None:
    engine = make_engine("reward_model", ["reward_model"], checkpoint=folder, **more)
    prompt = [USER, {"role": "assistant", "content": "It"}]
    body = {"scorer": "reward_model", "items": [{"prompt": prompt, "response": " is 4."}]}
    error = (await engine.score(parse(RewardsRequest, body))).items[0].error
    assert (error.code, error.param) == ("unsupported_text", "items[0].prompt[1]")
    assert "in front of `response`" in error.message
