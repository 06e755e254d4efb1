"""A reward model is read at the tokens that it was trained on: the truth is the call of its own
class on `apply_chat_template` over the whole conversation."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fakes import tiny
from tokenreward.engine import Engine
from tokenreward.forward.own_call import compare_with_own_call
from tokenreward.settings import DeploymentSettings
from tokenreward.text.tokenizer import Tokenizer
from tokenreward.text.trained_tokens import SHAPES
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
UNTHINKING = (  # a generation prompt that closes the block unless it is told to think
    tiny.TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|>{% if not enable_thinking %}")
    + "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
MARKING = UNTHINKING.replace(  # and the variable marks answers, too
    "{{ message.content }}",
    "{% if enable_thinking and message.role == 'assistant' %}!{% endif %}{{ message.content }}",
)
CUTTING = (  # what stands before a think block's end is left out, as DeepSeek R1's template does
    tiny.TEMPLATE.replace("message.content", "message.content.split('</think>')[-1]")
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
    with torch.no_grad():
        return float(own_model(folder)(input_ids=torch.tensor([ids])).logits[0, 0])


@lru_cache
def own_model(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder).double()


async def ask(engine: Any, scorer: str, credit: dict[str, Any] | None = None, **item: Any) -> Any:
    body = {"scorer": scorer, "items": [{"prompt": [USER], **item}], "return_tokens": True}
    if credit is not None:
        body["credit"] = credit
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


async def test_an_end_of_turn_that_the_response_spells_is_read_once(
    make_engine: Callable[..., Any], folder: Path
) -> None:
    engine = make_engine(
        "reward_model",
        ["reward_model", "attention_dense"],
        checkpoint=folder,
        chat_template=TRIMMING,
        scored_text="conversation",
    )
    values = {"scorer": "reward_model", "credit": {"name": "values"}}
    for response in ("It is 4.", "It is 4. \n"):
        spelled = f"{response}<|end|>"
        plain = await ask(engine, response=response, **values)
        item = await ask(engine, response=spelled, **values)
        assert item.score == pytest.approx(own_score(folder, TRIMMING, response), abs=1e-5)
        assert [token.id for token in item.tokens] == [token.id for token in plain.tokens]
        np.testing.assert_allclose(item.rewards, plain.rewards, atol=1e-6)
        assert "".join(token.text for token in item.tokens) == spelled
        spans = [[0, len(response)], [len(response), len(spelled)]]
        units = await ask(engine, "attention_dense", response=spelled, spans=spans)
        tokens = await ask(engine, "attention_dense", response=response)
        assert units.rewards[1] == pytest.approx(tokens.rewards[-1], abs=1e-6)


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


CONVERSATION = {"scored_text": "conversation"}
SWITCHED_OFF = {"chat_template_kwargs": {"enable_thinking": False}}
SWITCHED_ON = {"chat_template_kwargs": {"enable_thinking": True}}
BREAK = {"suffix_text": "\n"}
NONE = {"suffix_text": None}


@pytest.mark.parametrize(
    ("template", "settings", "advice"),
    [
        (tiny.TEMPLATE, {}, BREAK),
        (tiny.TEMPLATE, BREAK, None),
        (tiny.TEMPLATE.replace("<|end|>\n", "<|end|>"), BREAK, NONE),
        (TRIMMING, {}, CONVERSATION),
        (TRIMMING, BREAK, {**CONVERSATION, **NONE}),
        (THINKING, {}, CONVERSATION),
        (THINKING, SWITCHED_OFF, CONVERSATION),
        (THINKING, CONVERSATION, None),
        (ALWAYS_THINKING, BREAK, SWITCHED_OFF),
        (ALWAYS_THINKING, SWITCHED_OFF, BREAK),
        (ALWAYS_THINKING, {}, {**SWITCHED_OFF, **BREAK}),
        (UNTHINKING, BREAK, SWITCHED_ON),
        (UNTHINKING, {**BREAK, **SWITCHED_OFF}, SWITCHED_ON),
        (MARKING, BREAK, {**CONVERSATION, **NONE}),
        (CUTTING, {}, CONVERSATION),
        (OPENING, {}, CONVERSATION),
        (REWRITING, {}, {}),
    ],
)
async def test_settings_that_are_named_at_load_give_the_score_of_the_models_own_call(
    make_engine: Callable[..., Any],
    folder: Path,
    template: str,
    settings: dict[str, Any],
    advice: dict[str, Any] | None,
) -> None:
    line = line_at_load(folder, template, settings)
    assert ("they differ" in line) == (advice is not None)
    assert ("no setting makes them equal" in line) == (advice == {})
    named: dict[str, Any] = {}
    for setting in re.findall(r"`([a-z_]+: [^`]*)`", line):  # as they stand in a file
        named |= yaml.safe_load(setting)
    assert named == (advice or {})
    if advice == {}:
        return
    settings = {**settings, **named}
    assert "they differ" not in line_at_load(folder, template, settings)
    engine = make_engine(
        "reward_model", ["reward_model"], checkpoint=folder, chat_template=template, **settings
    )
    num_scored = 0
    for response in SHAPES.values():
        item = await ask(engine, "reward_model", response=response)
        if item.error is None:
            assert item.score == pytest.approx(own_score(folder, template, response), abs=1e-5)
            num_scored += 1
        else:
            assert "rewrites this response" in item.error.message
    assert num_scored == len(SHAPES) - (template == CUTTING)


def line_at_load(folder: Path, template: str, settings: dict[str, Any]) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    checkpoint = tiny.Checkpoint(model.eval(), tokenizer, "reward_model")
    return compare_with_own_call(
        checkpoint,
        Tokenizer(tokenizer, template_kwargs=settings.get("chat_template_kwargs")),
        settings.get("suffix_text"),
        reads_conversation="scored_text" in settings,
    )


def test_shapes_that_the_template_rewrites_are_named_as_refused(folder: Path) -> None:
    for settings in ({}, CONVERSATION):
        line = line_at_load(folder, CUTTING, settings)
        assert "1 of 5 shapes of a response" in line
        assert "refused (a response with an empty think block: the chat template rewrites" in line


async def test_padding_behind_end_of_turn_is_no_difference_and_no_suffix(
    make_engine: Callable[..., Any], padded_by_eos: Path
) -> None:
    template = tiny.TEMPLATE.replace("<|end|>\n", "<|end|><|end|>")
    assert "they differ" not in line_at_load(padded_by_eos, template, {})
    assert "suffix_text: null" in line_at_load(padded_by_eos, template, {"suffix_text": "<|end|>"})
    engine = make_engine(
        "reward_model", ["reward_model"], checkpoint=padded_by_eos, chat_template=template
    )
    item = await ask(engine, "reward_model", response="It is 4.")
    assert item.score == pytest.approx(own_score(padded_by_eos, template, "It is 4."), abs=1e-5)


@pytest.mark.parametrize(
    ("scorer", "is_named"),
    [
        ({"type": "reward_model"}, True),
        ({"type": "attention_dense"}, True),
        ({"type": "process", "options": {"step_tag": "+"}}, False),
    ],
)
def test_a_setting_is_named_at_load_if_a_scorer_pools(
    folder: Path, scorer: dict[str, Any], is_named: bool
) -> None:
    lines: list[str] = []
    settings = DeploymentSettings(
        name="rm", checkpoint=str(folder), task="reward_model", scorers=[scorer]
    )
    Engine.load(settings, say=lines.append)
    (line,) = (line for line in lines if "pooled value" in line)
    assert ("set `suffix_text" in line) == is_named


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
