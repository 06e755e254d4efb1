"""T-REG's token rewards: the formula on both instructed prompts, written out by hand, in
float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from fakes import oracle, tiny
from tokenreward.scorers.treg import Scorer
from tokenreward.wire import RewardsRequest, parse

GOOD, BAD = "Be good.", "Be bad."
OPTIONS = {"better": GOOD, "worse": BAD}
RESPONSE = "It is 4. Yes, no doubt."
USER = {"role": "user", "content": "2+2?"}


def ids_of(text: str) -> list[int]:
    return tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]


def truth(exact: Any, better: str, worse: str, *, temperature: float = 1.0) -> np.ndarray:
    """The formula, given both prompts as the model reads them."""
    response = np.array([*ids_of(RESPONSE), tiny.END_ID])
    log_probs = []
    for prompt in (better, worse):
        what = oracle.Response(np.array(ids_of(prompt)), response)
        log_probs.append(
            oracle.log_probs(oracle.logits(exact, what.ids), what, temperature=temperature)
        )
    return 1 / (1 + np.exp(log_probs[1] - log_probs[0])) - 0.5


@pytest.fixture
def exact(language_model: Path) -> Any:
    return oracle.double(AutoModelForCausalLM.from_pretrained(language_model))


async def ask(engine: Any, items: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    body = {"scorer": "treg", "items": items, "options": {**OPTIONS, **options}}
    return (await engine.score(parse(RewardsRequest, body))).items


TURNS = "<|user|>2+2?<|end|>\n<|assistant|>"
PROMPTS = [
    ("2+2?", "{}\n\n2+2?"),
    ([USER], "<|system|>{}<|end|>\n" + TURNS),
    ([{"role": "system", "content": "Short."}, USER], "<|system|>Short.\n\n{}<|end|>\n" + TURNS),
    ([{"role": "system", "content": None}, USER], "<|system|>{}<|end|>\n" + TURNS),
    (
        [USER, {"role": "assistant", "content": "4"}, {"role": "system", "content": "Short."}],
        "<|system|>{}<|end|>\n<|user|>2+2?<|end|>\n<|assistant|>4<|end|>\n<|system|>Short.<|end|>\n<|assistant|>",
    ),
]


@pytest.mark.parametrize(("prompt", "instructed"), PROMPTS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
async def test_rewards_are_the_formula_on_the_instructed_prompts(
    make_engine: Callable[..., Any], exact: Any, prompt: Any, instructed: str, temperature: float
) -> None:
    engine = make_engine("causal_lm", ["treg"])
    (item,) = await ask(engine, [{"prompt": prompt, "response": RESPONSE}], temperature=temperature)
    expected = truth(
        exact, instructed.format(GOOD), instructed.format(BAD), temperature=temperature
    )
    np.testing.assert_allclose(item.rewards, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.05  # the instruction made a difference
    assert item.score == pytest.approx(expected.sum(), abs=1e-4)


async def test_a_system_message_of_parts_gets_one_more_part(
    make_engine: Callable[..., Any], exact: Any
) -> None:
    template = tiny.TEMPLATE.replace(
        "{{ message.content }}",
        "{% if message.content is string %}{{ message.content }}{% else %}"
        "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}",
    )
    engine = make_engine("causal_lm", ["treg"], chat_template=template)
    prompt = [{"role": "system", "content": [{"type": "text", "text": "Short."}]}, USER]
    (item,) = await ask(engine, [{"prompt": prompt, "response": RESPONSE}])
    instructed = "<|system|>Short.\n\n{}<|end|>\n" + TURNS
    np.testing.assert_allclose(
        item.rewards, truth(exact, instructed.format(GOOD), instructed.format(BAD)), atol=1e-5
    )


async def test_tools_and_template_variables_stay_with_the_prompt(
    make_engine: Callable[..., Any], exact: Any
) -> None:
    engine = make_engine(
        "causal_lm", ["treg"], chat_template="{{ mood }}{{ tools[0].name }}" + tiny.TEMPLATE
    )
    item = {
        "prompt": [USER],
        "response": RESPONSE,
        "tools": [{"name": "f"}],
        "chat_template_kwargs": {"mood": "ok"},
    }
    (result,) = await ask(engine, [item])
    instructed = "okf<|system|>{}<|end|>\n" + TURNS
    expected = truth(exact, instructed.format(GOOD), instructed.format(BAD))
    np.testing.assert_allclose(result.rewards, expected, atol=1e-5)


@pytest.mark.parametrize("is_put", [True, False], ids=["puts_bos", "puts_none"])
async def test_an_instruction_stands_behind_the_one_bos_that_a_prompt_or_it_spells(
    make_engine: Callable[..., Any], exact: Any, tmp_path: Path, is_put: bool
) -> None:
    folder = tiny.save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if is_put:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", tiny.BOS_ID)]
        )
        tokenizer.save_pretrained(folder)
    engine = make_engine("causal_lm", ["treg"], checkpoint=folder)
    rows: list[np.ndarray] = []
    launch = engine.runner.launch
    engine.runner.launch = lambda batch: (
        rows.extend(request.row.ids for requests in batch for request in requests) or launch(batch)
    )
    raw = {"prompt": "2+2?", "response": RESPONSE}
    chat = {"prompt": "", "response": TURNS + RESPONSE, "whole": "conversation"}
    for item, field, prompt in ((raw, "prompt", "2+2?"), (chat, "response", TURNS)):
        spelled = {**item, field: f"<|bos|>{item[field]}"}
        expected = truth(exact, *(f"<|bos|>{each}\n\n{prompt}" for each in (GOOD, BAD)))
        (one,) = await ask(engine, [spelled])
        (both,) = await ask(engine, [spelled], better=f"<|bos|>{GOOD}", worse=f"<|bos|>{BAD}")
        np.testing.assert_allclose([one.rewards, both.rewards], [expected] * 2, atol=1e-5)
        if is_put:
            (none,) = await ask(engine, [item])
            np.testing.assert_allclose(none.rewards, expected, atol=1e-5)
    assert {row.tolist().count(tiny.BOS_ID) for row in rows} == {1}


async def test_both_rows_are_read_in_one_pass_and_one_is_shared_with_a_prompt_that_says_the_same(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["treg", "endogenous"])
    passes: list[int] = []
    run = engine.runner.layout.run
    engine.runner.layout.run = lambda work: passes.append(len(work)) or run(work)
    body = {"scorers": ["treg", "endogenous"], "options": {"treg": OPTIONS}}
    for prompt in ("2+2?", [{"role": "system", "content": "Short."}, USER]):
        await engine.score(
            parse(RewardsRequest, {**body, "items": [{"prompt": prompt, "response": RESPONSE}]})
        )
    assert passes == [3, 3]
    await ask(engine, [{"prompt": "2+2?", "response": RESPONSE}])
    assert passes == [3, 3, 2]


async def test_instructions_that_change_places_change_the_sign(
    make_engine: Callable[..., Any],
) -> None:
    engine, item = make_engine("causal_lm", ["treg"]), {"prompt": [USER], "response": RESPONSE}
    (there,), (back,) = await ask(engine, [item]), await ask(engine, [item], better=BAD, worse=GOOD)
    np.testing.assert_allclose(there.rewards, -back.rewards, atol=1e-6)


async def test_rewards_over_spans_add_up_and_masked_tokens_are_in_no_sum(
    make_engine: Callable[..., Any],
) -> None:
    engine, item = make_engine("causal_lm", ["treg"]), {"prompt": [USER], "response": RESPONSE}
    spans = [[0, 9], [9, len(RESPONSE)]]
    tokens, cut, masked = await ask(
        engine, [item, {**item, "spans": spans}, {**item, "spans": spans, "mask": [0, 1]}]
    )
    assert cut.rewards.sum() == pytest.approx(tokens.score, abs=1e-5)
    assert masked.rewards.tolist() == [0.0, cut.rewards[1]]
    assert masked.score == pytest.approx(float(cut.rewards[1]), abs=1e-5)


async def test_ids_as_prompt_are_refused_and_ids_as_response_are_not(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["treg"])
    response = [*ids_of(RESPONSE), tiny.END_ID]
    text, ids, refused = await ask(
        engine,
        [
            {"prompt": "2+2?", "response": RESPONSE},
            {"prompt": "2+2?", "response": response},
            {"prompt": ids_of("2+2?"), "response": response},
        ],
    )
    np.testing.assert_array_equal(text.rewards, ids.rewards)
    assert refused.error.code == "unsupported_text"
    assert refused.error.param == "items[2].prompt"
    assert "send messages or text" in refused.error.message


async def test_a_template_without_system_messages_refuses_its_item(
    make_engine: Callable[..., Any],
) -> None:
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        + tiny.TEMPLATE
    )
    engine = make_engine("causal_lm", ["treg"], chat_template=template)
    messages, text = await ask(
        engine, [{"prompt": p, "response": RESPONSE} for p in ([USER], "2+2?")]
    )
    assert messages.error.code == "unsupported_text"
    assert "no system here" in messages.error.message
    assert text.error is None


@pytest.mark.parametrize(
    "options", [{"better": ""}, {"better": "x", "worse": "x"}, {"temperature": 0.0}, {"beta": 1.0}]
)
def test_instructions_that_say_nothing_or_the_same_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Scorer.Options(**options)


def test_the_default_instructions_differ() -> None:
    assert Scorer.Options().better != Scorer.Options().worse
