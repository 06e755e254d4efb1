"""Process reward models through the whole engine, against the published formats written by hand and
float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fakes import prm, tiny
from tokenreward import errors
from tokenreward.scorers.process import Scorer
from tokenreward.settings import SettingsError
from tokenreward.wire import RewardsRequest, parse

STEPS = ["The manager is Ada.", "It is 4.\nNo doubt, 東京!", "Yes, \\boxed{4}"]
MESSAGES = [{"role": "user", "content": prm.QUESTION}]
ITEM: dict[str, Any] = {"prompt": MESSAGES, "response": "\n\n".join(STEPS)}
LINES = ["The manager is Ada.", "  It is 4.", "Yes."]
SKYWORK: dict[str, Any] = {"prompt": prm.QUESTION, "response": "\n".join(LINES)}
DASHLESS = {"bad_token": "="}  # for the tokenizer that has no `-`
PURE = {"step_tag": "\n", "scale": "signed", "form": "softmin"}

Ask = Callable[..., Any]


@pytest.fixture(scope="session", params=[1, 2], ids=["one_label", "two_labels"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reward model whose tokenizer has the tag."""
    return prm.save(
        tmp_path_factory.mktemp("prm"), prm.with_tag(), "reward_model", num_labels=request.param
    )


@pytest.fixture(
    scope="session", params=[prm.with_tag, prm.like_mistral], ids=["byte_level", "like_mistral"]
)
def lm_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prm.save(tmp_path_factory.mktemp("lm"), request.param(), "causal_lm")


async def score(engine: Any, *items: dict[str, Any], **more: Any) -> list[Any]:
    try:
        reply = await engine.score(
            parse(RewardsRequest, {"scorer": "process", "items": list(items), **more})
        )
    finally:
        await engine.close()
    for item in reply.items:
        if item.step_scores is not None:
            item.step_scores = np.array(item.step_scores)
            item.step_ids = np.array(item.step_ids)
    return reply.items


@pytest.fixture
def ask(make_engine: Callable[..., Any], folder: Path) -> Ask:
    """`await ask(item, ..., **options)`: answers of a fresh engine on the reward model."""

    async def answers(
        *items: dict[str, Any], body: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        engine = make_engine("reward_model", ["process"], checkpoint=folder)
        results = await score(engine, *items, options=options, return_tokens=True, **(body or {}))
        return results[0] if len(items) == 1 else results

    return answers


@pytest.fixture
def published(folder: Path) -> Callable[..., np.ndarray]:
    """`published(prm.qwen, steps)`: p of each step, from the model's own forward on the format
    written by hand."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)

    def read(
        layout: Callable[..., tuple[list[int], list[int]]], steps: list[str], **more: Any
    ) -> np.ndarray:
        ids, places = layout(AutoTokenizer.from_pretrained(folder), steps, **more)
        assert len(places) == len(steps)
        return prm.probabilities(model, ids)[places]

    return read


def ends_of(item: dict[str, Any], texts: list[str]) -> list[int]:
    """The response token that holds the last character of each of these stretches, which make up
    the response."""
    token_ends = np.array([token.span[1] for token in item.tokens])
    stops = np.cumsum([len(text) for text in texts])
    last = [int(np.flatnonzero(token_ends >= stop)[0]) for stop in stops]
    return [*last[:-1], len(token_ends) - 1]


async def test_qwen_is_the_model_cards_conversation_read_at_every_tag(
    ask: Ask, published: Any
) -> None:
    item = await ask(ITEM)
    truth = published(prm.qwen, STEPS)
    assert 0.01 < truth.min() < truth.max()
    np.testing.assert_allclose(item.step_scores, truth, atol=1e-5)
    assert item.score == pytest.approx(truth.min(), abs=1e-5)
    expected = np.zeros(len(item.tokens))
    expected[ends_of(item, [STEPS[0] + "\n\n", STEPS[1] + "\n\n", STEPS[2]])] = truth
    np.testing.assert_allclose(item.rewards, expected, atol=1e-5)


async def test_a_head_of_two_layers_and_two_labels_is_read_as_it_is_stored(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    folder, positive = prm.save_with_two_layers(tmp_path)
    ids, places = prm.qwen(AutoTokenizer.from_pretrained(folder), STEPS)
    (item,) = await score(make_engine("reward_model", ["process"], checkpoint=folder), ITEM)
    np.testing.assert_allclose(item.step_scores, positive(ids)[places], atol=1e-5)
    assert np.ptp(item.step_scores) > 0.01


@pytest.mark.parametrize("own", ["Be kind.", None], ids=["own_system", "no_system"])
async def test_a_system_message_of_their_own_or_none_at_all(
    ask: Ask, published: Any, own: str | None
) -> None:
    system = [{"role": "system", "content": own}] if own is not None else []
    item = await ask(
        {**ITEM, "prompt": [*system, *MESSAGES]}, **({} if own is not None else {"system": None})
    )
    np.testing.assert_allclose(item.step_scores, published(prm.qwen, STEPS, system=own), atol=1e-5)


async def test_a_raw_prompt_is_read_as_it_is(ask: Ask) -> None:
    raw = f"<|system|>{prm.SYSTEM}<|end|>\n<|user|>{prm.QUESTION}<|end|>\n<|assistant|>"
    written, templated = await ask({**ITEM, "prompt": raw}, ITEM)
    np.testing.assert_allclose(written.step_scores, templated.step_scores, atol=1e-6)


async def test_math_shepherd_is_plus_against_minus_at_every_tag(
    make_engine: Callable[..., Any], lm_folder: Path
) -> None:
    tokenizer, model = (
        AutoTokenizer.from_pretrained(lm_folder),
        AutoModelForCausalLM.from_pretrained(lm_folder),
    )
    steps = ["Step 1: It is 2.", "Step 2: and so on;", "the answer is 4"]
    ids, places = prm.math_shepherd(tokenizer, steps)
    assert len(places) == len(steps)
    options = (
        {"layout": "math_shepherd"}
        if "-" in tokenizer.get_vocab()
        else {"layout": "math_shepherd", **DASHLESS}
    )
    good, bad = (tokenizer.encode(mark)[-1] for mark in ("+", options.get("bad_token", "-")))
    truth = prm.plus_over_minus(model, ids, [good, bad])[places]
    engine = make_engine(
        "causal_lm", [{"type": "process", "options": options}], checkpoint=lm_folder
    )
    (item,) = await score(engine, {"prompt": prm.QUESTION, "response": "\n".join(steps)})
    np.testing.assert_allclose(item.step_scores, truth, atol=1e-5)
    assert len({round(float(p), 4) for p in truth}) == 3


async def test_math_shepherds_other_words_are_options(
    make_engine: Callable[..., Any], lm_folder: Path
) -> None:
    tokenizer, model = (
        AutoTokenizer.from_pretrained(lm_folder),
        AutoModelForCausalLM.from_pretrained(lm_folder),
    )
    options = {
        "layout": "math_shepherd",
        "step_tag": " #",
        "good_token": "4",
        "bad_token": "a",
        "separator": "; ",
    }
    ids = tokenizer.encode(f"{prm.QUESTION} It is 2 #\nIt is 4 #")
    labels = [tokenizer.encode(mark)[-1] for mark in "4a"]
    tag = tokenizer.encode(f"{prm.QUESTION} It is 2 #")[-1]
    truth = prm.plus_over_minus(model, ids, labels)[
        [place for place, token in enumerate(ids) if token == tag]
    ]
    engine = make_engine(
        "causal_lm", [{"type": "process", "options": options}], checkpoint=lm_folder
    )
    (item,) = await score(engine, {"prompt": prm.QUESTION, "response": "It is 2; It is 4"})
    np.testing.assert_allclose(item.step_scores, truth, atol=1e-5)


async def test_skywork_is_its_inference_codes_ids_read_at_every_line_break(
    ask: Ask, published: Any
) -> None:
    item = await ask(SKYWORK, layout="skywork")
    np.testing.assert_allclose(item.step_scores, published(prm.skywork, LINES), atol=1e-5)


async def test_skywork_reads_blank_lines_as_published_but_they_are_no_steps(
    ask: Ask, published: Any
) -> None:
    lines = ["", "The manager is Ada.", "", " ", "It is 4.", ""]
    item = await ask({**SKYWORK, "response": "\n".join(lines)}, layout="skywork")
    np.testing.assert_allclose(item.step_scores, published(prm.skywork, lines)[[1, 4]], atol=1e-5)


async def test_formats_of_a_problem_read_the_user_message_and_no_other(ask: Ask) -> None:
    with_system = [{"role": "system", "content": "Be kind."}, *MESSAGES]
    turns = [*MESSAGES, {"role": "assistant", "content": "4"}, *MESSAGES]
    parts = [{"role": "user", "content": [{"type": "text", "text": prm.QUESTION}]}]
    raw, user, also, chat, rich = await ask(
        *(
            {**SKYWORK, "prompt": prompt}
            for prompt in (prm.QUESTION, MESSAGES, with_system, turns, parts)
        ),
        layout="skywork",
    )
    for item in (user, also):
        np.testing.assert_allclose(item.step_scores, raw.step_scores, atol=1e-6)
    for item in (chat, rich):
        assert item.error.code == "unsupported_text"
        assert item.error.param.endswith(".prompt")


async def test_pure_is_a_raw_question_and_steps_tagged_with_a_line_break(
    ask: Ask, folder: Path
) -> None:
    encode = lambda text: AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)[  # noqa: E731
        "input_ids"
    ]
    ids, places = encode(prm.QUESTION), []
    for step in STEPS:
        ids += [*encode(step), *encode("\n")]
        places.append(len(ids) - 1)
    s = (
        2
        * prm.probabilities(AutoModelForSequenceClassification.from_pretrained(folder), ids)[places]
        - 1
    )
    weights = np.exp(-s / 0.1) / np.exp(-s / 0.1).sum()
    item = await ask({**ITEM, "prompt": prm.QUESTION}, **PURE)
    np.testing.assert_allclose(item.step_scores, s, atol=1e-5)
    np.testing.assert_allclose(item.rewards[np.flatnonzero(item.rewards)], weights * s, atol=1e-5)
    assert item.score == pytest.approx(s.min(), abs=1e-5)


async def test_a_softmin_of_low_temperature_gives_the_minimum_to_its_step_alone(ask: Ask) -> None:
    item = await ask(ITEM, form="softmin", temperature=1e-4)
    worst = int(np.argmin(item.step_scores))
    at = np.flatnonzero(np.append(np.diff(item.step_ids), 1))[worst]
    assert item.rewards[at] == pytest.approx(item.step_scores[worst], rel=1e-5)
    assert np.abs(np.delete(item.rewards, at)).max() < 1e-6


@pytest.mark.parametrize(
    ("reduction", "reduce"),
    [("min", np.min), ("mean", np.mean), ("product", np.prod), ("last", lambda scores: scores[-1])],
)
async def test_the_score_is_the_reduction_of_the_step_scores(
    ask: Ask, reduction: str, reduce: Any
) -> None:
    item = await ask(ITEM, reduction=reduction)
    assert item.score == pytest.approx(reduce(item.step_scores.astype(np.float64)), rel=1e-5)


@pytest.mark.parametrize("form", ["plain", "softmin"])
async def test_a_spread_step_has_the_same_reward_on_each_token_and_the_same_sum(
    ask: Ask, form: str
) -> None:
    spread, last = [
        await ask(ITEM, form=form, placement=where) for where in ("spread", "last_token")
    ]
    for step in range(len(STEPS)):
        tokens = spread.step_ids == step
        assert len(set(spread.rewards[tokens].tolist())) == 1
        assert spread.rewards[tokens].sum() == pytest.approx(last.rewards[tokens].sum(), rel=1e-5)
        assert np.count_nonzero(last.rewards[tokens]) == 1


@pytest.mark.parametrize("placement", ["spread", "last_token"])
async def test_masked_tokens_move_a_steps_reward_and_a_masked_step_counts_nowhere(
    ask: Ask, placement: str
) -> None:
    whole = await ask(ITEM, placement=placement)
    lowest = int(np.argmin(whole.step_scores))
    mask = np.ones(len(whole.rewards), dtype=int)
    mask[whole.step_ids == lowest] = 0
    other = (lowest + 1) % 3
    mask[np.flatnonzero(whole.step_ids == other)[-1]] = 0
    item = await ask({**ITEM, "mask": mask.tolist()}, placement=placement, reduction="mean")
    np.testing.assert_allclose(item.step_scores, whole.step_scores, atol=1e-6)
    assert item.score == pytest.approx(np.delete(whole.step_scores, lowest).mean(), rel=1e-5)
    assert (item.rewards[mask == 0] == 0).all()
    tokens = item.step_ids == other
    assert item.rewards[tokens].sum() == pytest.approx(whole.step_scores[other], rel=1e-5)
    assert np.count_nonzero(item.rewards[tokens]) == (
        tokens.sum() - 1 if placement == "spread" else 1
    )


async def test_a_masked_step_is_in_no_softmin(ask: Ask) -> None:
    whole = await ask(ITEM)
    mask = (whole.step_ids != 0).astype(int)
    item = await ask({**ITEM, "mask": mask.tolist()}, form="softmin", temperature=0.3)
    s = whole.step_scores[1:].astype(np.float64)
    weights = np.exp(-s / 0.3) / np.exp(-s / 0.3).sum()
    np.testing.assert_allclose(item.rewards[np.flatnonzero(item.rewards)], weights * s, rtol=1e-4)


async def test_spans_get_the_steps_that_end_in_them_and_name_the_step_they_end_in(ask: Ask) -> None:
    first, second, third = (len(text) for text in (STEPS[0] + "\n\n", STEPS[1] + "\n\n", STEPS[2]))
    cuts = [0, 4, 4, first + 3, first + second + 2, first + second + third]
    item = await ask({**ITEM, "spans": [[a, b] for a, b in pairwise(cuts)]})
    p = item.step_scores
    np.testing.assert_allclose(item.rewards, [0, 0, p[0], p[1], p[2]], atol=1e-6)
    assert item.step_ids.tolist() == [0, 0, 1, 2, 2]


async def test_a_span_can_hold_several_steps(ask: Ask) -> None:
    item = await ask({**ITEM, "spans": [[0, len(ITEM["response"])]]})
    assert item.rewards[0] == pytest.approx(item.step_scores.sum(), rel=1e-5)
    assert item.step_ids.tolist() == [2]


async def test_step_scores_do_not_depend_on_what_else_is_in_the_batch(ask: Ask) -> None:
    others = [{**ITEM, "response": f"{n} is it.\n\nIt is {n}.\n\n" * n} for n in (1, 5, 3)]
    together = await ask(others[0], ITEM, *others[1:])
    backwards = await ask(*others[::-1], ITEM)
    alone = await ask(ITEM)
    for result in (together[1], backwards[3]):
        np.testing.assert_allclose(result.step_scores, alone.step_scores, rtol=0, atol=1e-6)
        np.testing.assert_allclose(result.rewards, alone.rewards, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("response", "steps"),
    [
        ("It is 4.", ["It is 4."]),
        ("\n\nIt is 4.\n\n", ["It is 4."]),
        ("It is\n\n\n\n\nYes.  \n\n \t \n\n", ["It is", "Yes."]),
        ("It is\r\n\r\nYes.", ["It is\r\n\r\nYes."]),
        ("  It is \n\n no.", ["It is", "no."]),
    ],
)
async def test_what_is_a_step_and_what_is_not(
    ask: Ask, published: Any, response: str, steps: list[str]
) -> None:
    item = await ask({**ITEM, "response": response})
    np.testing.assert_allclose(item.step_scores, published(prm.qwen, steps), atol=1e-5)
    assert set(item.step_ids.tolist()) == set(range(len(steps)))
    assert len(item.rewards) == len(item.tokens)


async def test_carriage_returns_are_cut_where_the_separator_says_so(
    ask: Ask, published: Any
) -> None:
    item = await ask({**ITEM, "response": "It is\r\n\r\nYes."}, separator="\r\n\r\n")
    np.testing.assert_allclose(item.step_scores, published(prm.qwen, ["It is", "Yes."]), atol=1e-5)


BLANK = ["Step 1: add.\n\nThat is, 2 and 2.", "Step 2: it is 4.", "Yes."]
"""Steps of which one holds a blank line, which the separator would cut."""


async def test_tags_that_the_response_spells_end_its_steps_as_on_the_model_card(
    ask: Ask, published: Any
) -> None:
    item = await ask({**ITEM, "response": prm.TAG.join(BLANK) + prm.TAG})
    np.testing.assert_allclose(item.step_scores, published(prm.qwen, BLANK), atol=1e-5)
    assert set(item.step_ids.tolist()) == {0, 1, 2}
    middle = await ask({**ITEM, "response": f"It is{prm.TAG} 4.\n\n{prm.TAG}\n\nYes."})
    truth = published(prm.qwen, ["It is", "4.", "Yes."])
    np.testing.assert_allclose(middle.step_scores, truth, atol=1e-5)


@pytest.mark.parametrize("joiner", ["\n\n", " ", prm.TAG])
@pytest.mark.parametrize("are_spans", [False, True])
async def test_steps_of_the_item_are_its_steps_whatever_they_hold(
    ask: Ask, published: Any, joiner: str, are_spans: bool
) -> None:
    response, steps, start = joiner.join(BLANK), list[Any](BLANK), 0
    if are_spans:
        steps = []
        for text in BLANK:
            steps.append([start, start + len(text)])
            start += len(text) + len(joiner)
    item, tiled = await ask(
        {**ITEM, "response": response, "steps": steps},
        {**ITEM, "response": "".join(BLANK), "steps": [f" {text}\n" for text in BLANK]},
    )
    truth = published(prm.qwen, BLANK)
    np.testing.assert_allclose(item.step_scores, truth, atol=1e-5)
    np.testing.assert_allclose(tiled.step_scores, truth, atol=1e-5)
    ends = ends_of(item, [text + joiner for text in BLANK[:2]] + BLANK[2:])
    assert np.flatnonzero(item.rewards).tolist() == ends


@pytest.mark.parametrize(
    ("steps", "param"),
    [
        (["It is 4.", "No."], "steps[1]"),
        (["is 4.", "Yes."], "steps[0]"),
        (["It is 4."], "steps[0]"),
        (["It is 4.", " ", "Yes."], "steps[1]"),
        ([[0, 5], [8, 14]], "steps[1]"),
        ([[0, 8], [6, 14]], "steps[1]"),
        ([[0, 8], [10, 99]], "steps[1]"),
        ([[0, 8], [8, 10], [10, 14]], "steps[1]"),
    ],
)
async def test_steps_that_are_not_the_response_fail_alone_and_name_the_step(
    ask: Ask, steps: Any, param: str
) -> None:
    bad, good = await ask({**ITEM, "response": "It is 4.\n\nYes.", "steps": steps}, ITEM)
    assert (bad.error.code, bad.error.param) == ("unsupported_text", f"items[0].{param}")
    assert good.error is None


async def test_math_shepherds_own_tags_in_a_response_end_its_steps(
    make_engine: Callable[..., Any], lm_folder: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(lm_folder)
    marks = {} if "-" in tokenizer.get_vocab() else DASHLESS
    options = {"layout": "math_shepherd", **marks}
    steps = ["Step 1: It is 2.", "Step 2: and so on;"]
    engine = make_engine(
        "causal_lm", [{"type": "process", "options": options}], checkpoint=lm_folder
    )
    plain, tagged = await score(
        engine,
        {"prompt": prm.QUESTION, "response": "\n".join(steps)},
        {"prompt": prm.QUESTION, "response": " ки\n".join(steps) + " ки"},
    )
    np.testing.assert_allclose(tagged.step_scores, plain.step_scores, atol=1e-6)
    assert len(plain.step_scores) == 2


async def test_turns_are_the_reference_loop_of_one_forward_a_step(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    folder = prm.save(tmp_path, tiny.tokenizer(), "causal_lm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    good, bad = (tokenizer.encode(mark, add_special_tokens=False)[0] for mark in "+-")
    system = {"role": "system", "content": "Be strict."}
    messages, truth = [system], []
    for place, step in enumerate(BLANK):
        content = step if place else f"{prm.QUESTION} {step}"
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": "+"}]
        ids = tokenizer.encode(
            tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False
        )
        last = max(position for position, token in enumerate(ids) if token == good)
        truth.append(prm.plus_over_minus(model, ids, [good, bad])[last - 1])
    options = {"layout": "turns"}
    engine = make_engine("causal_lm", [{"type": "process", "options": options}], checkpoint=folder)
    response = "\n\n".join(BLANK)
    prompt = [system, *MESSAGES]
    item, single = await score(
        engine,
        {"prompt": prompt, "response": response, "steps": BLANK},
        {"prompt": prompt, "response": BLANK[0], "steps": BLANK[:1]},
    )
    np.testing.assert_allclose(item.step_scores, truth, atol=1e-5)
    np.testing.assert_allclose(single.step_scores, truth[:1], atol=1e-5)
    assert np.ptp(truth) > 0.01


async def test_turns_begin_with_the_templates_bos_and_not_with_another_of_the_problem(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    folder = prm.save(tmp_path, tiny.tokenizer(), "causal_lm")
    engine = make_engine(
        "causal_lm",
        [{"type": "process", "options": {"layout": "turns"}}],
        checkpoint=folder,
        chat_template="{{ bos_token }}" + tiny.TEMPLATE,
    )
    ids = tiny.tokenizer()(f"<|bos|>{prm.QUESTION}", add_special_tokens=False)["input_ids"]
    prompts = [prm.QUESTION, f"<|bos|>{prm.QUESTION}", ids]
    response = "\n\n".join(BLANK)
    plain, *spelled = await score(
        engine, *({"prompt": prompt, "response": response} for prompt in prompts)
    )
    for item in spelled:
        np.testing.assert_allclose(item.step_scores, plain.step_scores, atol=1e-6)


@pytest.mark.parametrize("joiner", [None, "", " "])
async def test_a_tag_of_line_breaks_is_its_own_joiner_or_has_another(
    make_engine: Callable[..., Any], lm_folder: Path, joiner: str | None
) -> None:
    """OpenR's models: question, space, steps that each end in a space and five line breaks."""
    tokenizer = AutoTokenizer.from_pretrained(lm_folder)
    model = AutoModelForCausalLM.from_pretrained(lm_folder)
    tag, steps = " \n\n\n\n\n", ["It is 2.", "It is 4."]
    options: dict[str, Any] = {"layout": "math_shepherd", "separator": "\n\n", "step_tag": tag}
    options |= {"good_token": "4", "bad_token": "a"}
    if joiner is not None:
        options["joiner"] = joiner
    first = f"{prm.QUESTION} {steps[0]}{tag}"
    ids = tokenizer.encode(f"{first}{joiner or ''}{steps[1]}{tag}")
    places = [len(tokenizer.encode(first)) - 1, len(ids) - 1]
    truth = prm.plus_over_minus(model, ids, [tokenizer.encode(mark)[-1] for mark in "4a"])[places]
    engine = make_engine(
        "causal_lm", [{"type": "process", "options": options}], checkpoint=lm_folder
    )
    joined, spelled = await score(
        engine,
        {"prompt": prm.QUESTION, "response": "\n\n".join(steps)},
        {"prompt": prm.QUESTION, "response": "".join(step + tag for step in steps)},
    )
    np.testing.assert_allclose(joined.step_scores, truth, atol=1e-5)
    np.testing.assert_allclose(spelled.step_scores, truth, atol=1e-5)


async def test_a_joiner_stands_before_each_further_step_of_a_reward_model(
    ask: Ask, folder: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    ids, (place,) = prm.qwen(tokenizer, STEPS[:1])
    ids = ids[: place + 1]
    ids += tokenizer.encode(f"\n{STEPS[2]}", add_special_tokens=False)
    truth = prm.probabilities(model, [*ids, tokenizer.convert_tokens_to_ids(prm.TAG)])
    item = await ask({**ITEM, "response": f"{STEPS[0]}\n\n{STEPS[2]}"}, joiner="\n")
    np.testing.assert_allclose(item.step_scores[1], truth[-1], atol=1e-5)


@pytest.mark.parametrize("response", ["", " \n\n\t"])
async def test_a_response_without_any_step_is_an_error_and_not_a_zero(
    ask: Ask, response: str
) -> None:
    bad, good = await ask({**ITEM, "response": response, "finished": True}, ITEM)
    assert (bad.error.code, bad.error.param) == ("empty_response", "items[0].response")
    assert bad.step_scores is None
    assert good.error is None


async def test_ids_that_are_a_texts_tokens_are_scored_as_the_text(ask: Ask, folder: Path) -> None:
    encode = lambda text: AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)[  # noqa: E731
        "input_ids"
    ]
    raw = f"<|system|>{prm.SYSTEM}<|end|>\n<|user|>{prm.QUESTION}<|end|>\n<|assistant|>"
    ids = {"prompt": encode(raw), "response": [*encode(ITEM["response"]), tiny.END_ID]}
    unfinished = {**ids, "response": ids["response"][:-1]}
    text, same, open_end = await ask(ITEM, ids, unfinished)
    for name in ("rewards", "step_scores", "step_ids"):
        np.testing.assert_allclose(getattr(same, name), getattr(text, name), atol=1e-6)
    np.testing.assert_allclose(open_end.step_scores, text.step_scores, atol=1e-6)
    assert open_end.rewards[-1] == pytest.approx(text.rewards[-1], abs=1e-6)


async def test_ids_that_are_no_texts_tokens_fail_alone_and_say_what_to_send(
    ask: Ask, folder: Path
) -> None:
    encode = lambda text: AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)[  # noqa: E731
        "input_ids"
    ]
    letters = [token for letter in "It is 4." for token in encode(letter)]
    half = [encode("é")[0]] if len(encode("é")) > 1 else [encode("東")[0]]
    spelled, broken, good = await ask(
        {**ITEM, "response": letters}, {**ITEM, "response": half}, ITEM
    )
    for item in (spelled, broken):
        assert item.error.code == "unsupported_text"
        assert "send text" in item.error.message
    assert good.error is None


async def test_a_text_that_spells_its_end_of_turn_is_scored_as_one_that_does_not(ask: Ask) -> None:
    spelled, plain = await ask({**ITEM, "response": ITEM["response"] + "<|end|>"}, ITEM)
    np.testing.assert_allclose(spelled.step_scores, plain.step_scores, atol=1e-6)
    np.testing.assert_allclose(spelled.rewards, plain.rewards, atol=1e-6)


async def test_steps_that_share_their_last_token_are_refused(ask: Ask, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (token,) = (
        tokenizer.convert_ids_to_tokens(i)
        for i in tokenizer("salary", add_special_tokens=False)["input_ids"][:1]
    )
    assert len(token) > 2
    item = await ask({**ITEM, "response": token + "s"}, separator=token[1])
    assert item.error.code == "unsupported_text"
    assert "separator" in item.error.message


async def test_a_row_longer_than_the_model_takes_is_an_error_of_its_item(
    make_engine: Callable[..., Any], folder: Path
) -> None:
    engine = make_engine(
        "reward_model", ["process", "reward_model"], checkpoint=folder, max_sequence_tokens=70
    )
    own = [{"role": "system", "content": ""}, *MESSAGES]
    body = {"scorers": ["process", "reward_model"], "items": [ITEM, {**ITEM, "prompt": own}]}
    long, good = (await engine.score(parse(RewardsRequest, body))).items
    await engine.close()
    assert (
        long.scorers["process"].error.code == "sequence_too_long"
    )  # with the layout's system message
    assert long.scorers["reward_model"].error is None
    assert good.scorers["process"].error is None


async def test_a_tag_that_the_model_has_no_embedding_for_is_an_error_of_its_item(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    tiny.save(tmp_path, "llama", "reward_model")
    prm.with_tag().save_pretrained(tmp_path)
    (item,) = await score(make_engine("reward_model", ["process"], checkpoint=tmp_path), ITEM)
    assert item.error.code == "token_out_of_vocabulary"


async def test_a_tag_or_answer_that_the_tokenizer_lacks_is_an_error_that_names_the_option(
    make_engine: Callable[..., Any],
) -> None:
    line_by_line = [{"type": "process", "options": {"layout": "skywork"}}]
    (item,) = await score(
        make_engine("reward_model", line_by_line), ITEM, options={"layout": "qwen"}
    )
    assert item.error.code == "unsupported_text"
    assert "`step_tag`" in item.error.message
    tagged = [{"type": "process", "options": {"layout": "math_shepherd"}}]
    for name, value in (("good_token", "東京の天気"), ("bad_token", "+")):
        (item,) = await score(make_engine("causal_lm", tagged), SKYWORK, options={name: value})
        assert item.error.code == "unsupported_text"
        assert f"`{name}`" in item.error.message


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("reward_model", {}, "`step_tag`"),
        ("causal_lm", {"layout": "math_shepherd", "good_token": "東京の天気"}, "`good_token`"),
        ("causal_lm", {"layout": "skywork"}, "reads a reward_model"),
        ("reward_model", {"layout": "turns"}, "reads a causal_lm"),
    ],
)
def test_a_checkpoint_that_an_operators_options_do_not_fit_is_refused_at_load(
    make_engine: Callable[..., Any], task: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        make_engine(task, [{"type": "process", "options": options}])


async def test_a_layout_for_the_other_kind_of_checkpoint_is_refused_with_the_request(
    ask: Ask,
) -> None:
    with pytest.raises(errors.InvalidField, match="causal_lm") as caught:
        await ask(ITEM, layout="math_shepherd")
    assert caught.value.param == "options"


async def test_steps_stand_in_keyed_replies_of_the_scorers_that_have_them(
    make_engine: Callable[..., Any], folder: Path
) -> None:
    engine = make_engine("reward_model", ["process", "reward_model"], checkpoint=folder)
    body = {"scorers": ["process", "reward_model"], "items": [ITEM], "encoding_format": "base64"}
    reply = await engine.score(parse(RewardsRequest, body))
    await engine.close()
    results = reply.items[0].scorers
    assert results is not None
    assert results["process"].step_scores is not None
    assert len(results["process"].step_scores) == len(STEPS)
    assert results["process"].step_ids is not None
    assert reply.items[0].scorers["reward_model"].step_scores is None
    assert reply.items[0].scorers["reward_model"].step_ids is None


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "skywork", "system": "Be kind."},
        {"good_token": "+"},
        {"layout": "skywork", "bad_token": "-"},
        {"temperature": 0.1},
        {"form": "softmin", "temperature": 0.0},
        {"scale": "signed", "reduction": "product"},
        {"separator": ""},
        {"step_tag": ""},
        {"layout": "trl"},
        {"layout": "turns", "step_tag": "+"},
        {"layout": "turns", "joiner": ""},
        {"layout": "qwen", "opening": " "},
        {"layout": "math_shepherd", "step_tag": " +"},
    ],
)
def test_options_without_effect_or_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Scorer.Options(**options)
