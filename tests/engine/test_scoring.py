"""A request through the whole engine, against float64 oracles: three scorers, credits, masks,
spans, both encodings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fakes import oracle, tiny
from tokenreward import errors
from tokenreward.wire import RewardsRequest, decode_rewards, encode_ids, parse
from tokenreward.wire.reply import parse_reply, write_reply

PROMPT = [{"role": "user", "content": "2+2?"}]
RESPONSE = "It is 4. Yes, no doubt."
SHARING = ("reward_model", "attention_dense")


def ids_of(text: str) -> list[int]:
    return tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]


WHAT = oracle.Response(
    np.array(ids_of("<|user|>2+2?<|end|>\n<|assistant|>")),
    np.array([*ids_of(RESPONSE), tiny.END_ID]),
)


async def ask(
    engine: Any, scorer: str, item: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    body = {
        "scorer": scorer,
        "items": [{"prompt": PROMPT, "response": RESPONSE, **(item or {})}],
        **more,
    }
    reply = await engine.score(parse(RewardsRequest, body))
    return reply.items[0]


@pytest.fixture
def exact_lm(language_model: Path) -> Any:
    return oracle.double(AutoModelForCausalLM.from_pretrained(language_model))


@pytest.fixture
def exact_rm(reward_model: Path) -> Any:
    return oracle.double(AutoModelForSequenceClassification.from_pretrained(reward_model))


async def test_endogenous_rewards_are_the_formula_one_per_token(
    make_engine: Callable[..., Any], exact_lm: Any
) -> None:
    item = await ask(make_engine("causal_lm", ["endogenous"]), "endogenous", return_tokens=True)
    truth = oracle.soft_bellman(
        oracle.logits(exact_lm, WHAT.ids), WHAT, alpha=1.0, terminal_is_zero=True
    )
    assert item.rewards.dtype == np.float32
    np.testing.assert_allclose(item.rewards, truth, atol=1e-4)
    assert item.score == pytest.approx(truth.sum(), abs=1e-3)
    assert [token.id for token in item.tokens] == WHAT.response.tolist()
    assert "".join(token.text for token in item.tokens[:-1]) == RESPONSE


async def test_an_unfinished_text_bootstraps_and_has_no_end_of_turn(
    make_engine: Callable[..., Any], exact_lm: Any
) -> None:
    item = await ask(make_engine("causal_lm", ["endogenous"]), "endogenous", {"finished": False})
    what = oracle.Response(WHAT.prompt, WHAT.response[:-1])
    truth = oracle.soft_bellman(
        oracle.logits(exact_lm, what.ids), what, alpha=1.0, terminal_is_zero=False
    )
    np.testing.assert_allclose(item.rewards, truth, atol=1e-4)


async def test_ids_are_scored_as_they_are_and_equal_the_text(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    text = await ask(engine, "endogenous")
    for form in (lambda ids: ids.tolist(), encode_ids):
        ids = await ask(
            engine, "endogenous", {"prompt": form(WHAT.prompt), "response": form(WHAT.response)}
        )
        np.testing.assert_allclose(ids.rewards, text.rewards, atol=1e-4)


async def test_an_end_of_turn_inside_ids_is_an_ordinary_token(
    make_engine: Callable[..., Any], exact_lm: Any
) -> None:
    what = oracle.Response(WHAT.prompt, np.array([10, tiny.END_ID, 11, 12]))
    item = await ask(
        make_engine("causal_lm", ["endogenous"]),
        "endogenous",
        {"prompt": what.prompt.tolist(), "response": what.response.tolist()},
    )
    truth = oracle.soft_bellman(
        oracle.logits(exact_lm, what.ids), what, alpha=1.0, terminal_is_zero=False
    )
    np.testing.assert_allclose(item.rewards, truth, atol=1e-4)


async def test_all_labels_of_a_reward_model_come_beside_the_one_that_is_the_reward(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    """The weights of labels are of the deployment; the other labels are told, and no more."""
    folder = tiny.save(tmp_path, task="reward_model", num_labels=3)
    exact = oracle.double(tiny.model("llama", "reward_model", num_labels=3))
    weights, scorers = [1.0, -0.5, 0.25], ["reward_model", "attention_dense"]
    engine = make_engine(
        "reward_model", scorers, checkpoint=folder, head={"label_weights": weights}
    )
    ids = np.arange(3, 12)
    body = {
        "scorers": scorers,
        "items": [{"prompt": ids[:4].tolist(), "response": ids[4:].tolist()}],
    }
    reply = await engine.score(parse(RewardsRequest, body))
    single = {"scorer": "reward_model", "items": body["items"]}
    alone = await engine.score(parse(RewardsRequest, single))
    await engine.close()
    with torch.no_grad():
        labels = exact(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    results = reply.items[0].scorers
    assert results is not None
    for result in (*results.values(), alone.items[0]):
        assert result.score == pytest.approx(labels @ weights, abs=1e-4)
        assert list(result.scores or ()) == ["LABEL_0", "LABEL_1", "LABEL_2"]
        np.testing.assert_allclose(list((result.scores or {}).values()), labels, atol=1e-4)
    written = parse_reply(orjson.dumps(write_reply(reply), option=orjson.OPT_SERIALIZE_NUMPY))
    assert written.items[0].scorers is not None
    assert written.items[0].scorers["reward_model"].scores == results["reward_model"].scores


async def test_reward_model_puts_the_head_at_the_last_response_token_on_the_last_unit(
    make_engine: Callable[..., Any], exact_rm: Any
) -> None:
    engine = make_engine("reward_model", ["reward_model"])
    values = oracle.head_values(exact_rm, WHAT.ids)
    item = await ask(engine, "reward_model")
    np.testing.assert_allclose(
        item.rewards, [*np.zeros(len(WHAT.response) - 1), values[-1]], atol=1e-4
    )
    levels = await ask(engine, "reward_model", credit={"name": "values"})
    np.testing.assert_allclose(levels.rewards, values[len(WHAT.prompt) :], atol=1e-4)


async def test_attention_dense_is_abc_on_the_models_own_attention(
    make_engine: Callable[..., Any], exact_rm: Any
) -> None:
    item = await ask(
        make_engine("reward_model", ["attention_dense"]), "attention_dense", credit={"beta": 0.6}
    )
    score = oracle.head_values(exact_rm, WHAT.ids)[-1]
    keep = np.ones(len(WHAT.response))
    weights = oracle.dense_weights(oracle.last_attention_row(exact_rm, WHAT.ids), WHAT, keep)
    truth = 0.6 * score * weights
    truth[-1] += 0.4 * score
    np.testing.assert_allclose(item.rewards, truth, atol=1e-5)
    assert item.score == pytest.approx(score, abs=1e-4)


async def test_masked_units_get_zero_no_weight_and_are_in_no_sum(
    make_engine: Callable[..., Any], exact_rm: Any
) -> None:
    mask = [int(t % 3 != 1) for t in range(len(WHAT.response))]
    keep = np.array(mask, dtype=bool)
    item = await ask(
        make_engine("reward_model", ["attention_dense"]), "attention_dense", {"mask": mask}
    )
    weights = oracle.dense_weights(oracle.last_attention_row(exact_rm, WHAT.ids), WHAT, keep)
    assert (item.rewards[~keep] == 0.0).all()
    truth = 0.8 * item.score * weights
    truth[np.flatnonzero(keep)[-1]] += 0.2 * item.score
    np.testing.assert_allclose(item.rewards, truth, atol=1e-5)
    lm = await ask(make_engine("causal_lm", ["endogenous"]), "endogenous", {"mask": mask})
    assert (lm.rewards[~keep] == 0.0).all()
    assert lm.score == pytest.approx(lm.rewards.sum(), abs=1e-3)


async def test_spans_get_the_sum_of_their_tokens_and_end_of_turn_goes_to_the_last(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    tokens = await ask(engine, "endogenous", return_tokens=True)
    spans = [[0, 4], [4, 4], [4, 8], [8, len(RESPONSE)]]
    item = await ask(engine, "endogenous", {"spans": spans})
    expected = [0.0, 0.0, 0.0, 0.0]
    for token, reward in zip(tokens.tokens, tokens.rewards, strict=True):
        end = token.span[1] if token.span[1] > token.span[0] else len(RESPONSE)
        owner = next(i for i, (a, b) in enumerate(spans) if a <= end - 1 < b)
        expected[owner] += float(reward)
    np.testing.assert_allclose(item.rewards, expected, atol=1e-4)
    assert item.rewards[1] == 0.0


async def test_a_final_zero_width_span_is_end_of_turn(make_engine: Callable[..., Any]) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    tokens = await ask(engine, "endogenous")
    item = await ask(engine, "endogenous", {"spans": [[0, len(RESPONSE)], [len(RESPONSE)] * 2]})
    assert item.rewards[1] == pytest.approx(tokens.rewards[-1], abs=1e-4)
    unfinished = {"spans": [[0, len(RESPONSE)], [len(RESPONSE)] * 2], "finished": False}
    assert (await ask(engine, "endogenous", unfinished)).rewards[1] == 0.0


async def test_base64_and_float_are_the_same_numbers(make_engine: Callable[..., Any]) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    floats = await ask(engine, "endogenous")
    packed = await ask(engine, "endogenous", encoding_format="base64")
    np.testing.assert_allclose(decode_rewards(packed.rewards), floats.rewards, atol=1e-5)


async def test_kl_is_taken_from_every_unmasked_unit(make_engine: Callable[..., Any]) -> None:
    engine = make_engine("causal_lm", ["constant"])
    n = len(WHAT.response)
    policy, reference = np.linspace(-3, -1, n), np.linspace(-1, -4, n)
    mask = [1] * (n - 1) + [0]
    item = {"policy_logprobs": policy.tolist(), "ref_logprobs": reference.tolist(), "mask": mask}
    kl = {"coef": 0.1, "estimator": "k3"}
    got = await ask(engine, "constant", item, credit={"kl": kl})
    d = policy - reference
    truth = np.where(mask, 1.0 - 0.1 * (np.exp(-d) - 1 + d), 0.0)
    np.testing.assert_allclose(got.rewards, truth, atol=1e-5)


async def test_a_suffix_is_read_pooled_and_owns_no_entry(
    make_engine: Callable[..., Any], exact_rm: Any
) -> None:
    engine = make_engine("reward_model", ["attention_dense"], suffix_text="\n<|pad|>")
    item = await ask(engine, "attention_dense")
    ids = np.concatenate([WHAT.ids, ids_of("\n"), [tiny.PAD_ID]])
    hidden_pad = exact_rm.config.pad_token_id
    exact_rm.config.pad_token_id = None  # the model's own call would not pool on a pad token
    score = oracle.head_values(exact_rm, ids)[-1]
    exact_rm.config.pad_token_id = hidden_pad
    weights = oracle.dense_weights(
        oracle.last_attention_row(exact_rm, ids), WHAT, np.ones(len(WHAT.response))
    )
    assert item.score == pytest.approx(score, abs=1e-4)
    truth = 0.8 * score * weights
    truth[-1] += 0.2 * score
    np.testing.assert_allclose(item.rewards, truth, atol=1e-5)


@pytest.mark.parametrize("names", [SHARING, SHARING[::-1]], ids="-".join)
async def test_scorers_on_one_checkpoint_share_one_pass_which_has_what_each_needs(
    make_engine: Callable[..., Any], names: Sequence[str]
) -> None:
    engine = make_engine("reward_model", list(SHARING))
    passes: list[int] = []
    run = engine.runner.layout.run
    engine.runner.layout.run = lambda work: passes.append(len(work)) or run(work)
    credit = {"attention_dense": {"beta": 1.0}, "reward_model": {"name": "values"}}
    body = {"items": [{"prompt": PROMPT, "response": RESPONSE}], "credit": credit}
    reply = await engine.score(parse(RewardsRequest, {**body, "scorers": list(names)}))
    assert passes == [1]
    for name, result in reply.items[0].scorers.items():
        alone = await ask(engine, name, credit=credit[name])
        np.testing.assert_allclose(result.rewards, alone.rewards, atol=1e-6)
        assert result.score == pytest.approx(alone.score, abs=1e-6)


async def test_the_reply_is_the_wires(make_engine: Callable[..., Any]) -> None:
    engine = make_engine("causal_lm", ["endogenous"], version=3)
    body = {
        "scorer": "endogenous",
        "items": [{"prompt": PROMPT, "response": RESPONSE}] * 2,
        "return_tokens": True,
    }
    reply = await engine.score(
        parse(RewardsRequest, {**body, "encoding_format": "base64"}), request_id="mine"
    )
    parsed = reply
    assert parsed.id == "mine"
    assert parsed.version == 3
    assert [item.index for item in parsed.items] == [0, 1]
    assert parsed.usage.response_tokens == 2 * len(WHAT.response)
    assert parsed.timing.compute_s > 0


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"scorer": "nobody"}, errors.UnknownScorer),
        ({"options": {"beta": 1}}, errors.UnknownOption),
        ({"options": {"alpha": "high"}}, errors.InvalidField),
        ({"options": {"temperature": 2.0}}, errors.InvalidField),
        ({"credit": {"name": "attention"}}, errors.CreditNotSupported),
        ({"credit": {"gamma": 0.5}}, errors.InvalidField),
        ({"credit": {"nmae": "last"}}, errors.UnknownField),
        ({"credit": {"kl": {"coef": 0.1, "reference": "sft"}}}, errors.InvalidField),
        ({"min_version": 2}, errors.VersionNotReached),
    ],
)
async def test_what_is_wrong_as_a_whole_is_refused_as_a_whole(
    make_engine: Callable[..., Any], more: dict[str, Any], error: type[errors.RequestError]
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    body = {"scorer": "endogenous", "items": [{"prompt": "x", "response": "y"}], **more}
    with pytest.raises(error):
        await engine.score(parse(RewardsRequest, body))


async def test_what_names_another_scorer_is_sent_to_the_front(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    body = {"scorer": "endogenous", "items": [{"prompt": "x", "response": "y"}]}
    with pytest.raises(errors.InvalidField, match="send the request to the gateway") as caught:
        await engine.score(
            parse(RewardsRequest, {**body, "credit": {"kl": {"coef": 0.1, "reference": "sft"}}})
        )
    assert caught.value.param == "credit.kl.reference"


async def test_a_score_is_ignored_by_a_scorer_that_takes_none(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    items = [{"prompt": "x", "response": "y"}, {"prompt": "x", "response": "y", "score": 7.0}]
    without, given = (
        await engine.score(parse(RewardsRequest, {"scorer": "endogenous", "items": items}))
    ).items
    np.testing.assert_allclose(given.rewards, without.rewards, rtol=1e-6)
    assert given.error is None


@pytest.mark.parametrize(
    ("item", "code", "param"),
    [
        ({"response": ""}, "empty_response", "items[1].response"),
        ({"response": []}, "empty_response", "items[1].response"),
        ({"response": [5, 320]}, "token_out_of_vocabulary", "items[1].response"),
        ({"prompt": [-1]}, "token_out_of_vocabulary", "items[1].prompt"),
        ({"response": "a" * 600}, "sequence_too_long", "items[1].response"),
        ({"spans": [[0, 4], [5, 23]]}, "spans_do_not_tile", "items[1].spans[1]"),
        ({"spans": [[0, 4], [3, 23]]}, "spans_do_not_tile", "items[1].spans[1]"),
        ({"spans": [[0, 4], [4, 22]]}, "spans_do_not_tile", "items[1].spans[1]"),
        ({"spans": []}, "spans_do_not_tile", "items[1].spans"),
        ({"mask": [1, 0]}, "length_mismatch", "items[1].mask"),
        ({"policy_logprobs": [0.0]}, "length_mismatch", "items[1].policy_logprobs"),
        ({"mask": [0, 0], "spans": [[0, 4], [4, 23]]}, "empty_response", "items[1].mask"),
        (
            {
                "prompt": [{"role": "user", "content": "x"}],
                "chat_template_kwargs": {"tokenize": True},
            },
            "unsupported_text",
            "items[1].prompt",
        ),
    ],
)
async def test_a_wrong_item_fails_alone(
    make_engine: Callable[..., Any], item: dict[str, Any], code: str, param: str
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    good = {"prompt": PROMPT, "response": RESPONSE}
    body = {"scorer": "endogenous", "items": [good, {**good, **item}, good]}
    items = (await engine.score(parse(RewardsRequest, body))).items
    assert items[1].error.code == code
    assert items[1].error.param == param
    assert ("`finished: true`" in items[1].error.message) == (item == {"response": ""})
    assert items[1].rewards is None
    assert items[1].score is None
    np.testing.assert_allclose(items[0].rewards, items[2].rewards, atol=1e-5)


async def test_an_empty_prompt_is_an_item_error_without_bos(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tiny.save(tmp_path)
    import json

    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["bos_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    engine = make_engine("causal_lm", ["endogenous"], checkpoint=folder)
    item = await ask(engine, "endogenous", {"prompt": ""})
    assert item.error.code == "empty_prompt"


async def test_a_default_that_the_callers_choice_makes_idle_is_dropped_but_not_one_the_caller_sent(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", [{"type": "endogenous", "options": {"alpha": 2.0}}])
    chosen = await ask(engine, "endogenous", options={"form": "logprob"})
    plain = await ask(
        make_engine("causal_lm", ["endogenous"]), "endogenous", options={"form": "logprob"}
    )
    np.testing.assert_allclose(chosen.rewards, plain.rewards, atol=1e-5)
    with pytest.raises(errors.InvalidField, match="`alpha` has no effect"):
        await ask(engine, "endogenous", options={"form": "logprob", "alpha": 1.0})
    logprob = make_engine("causal_lm", [{"type": "endogenous", "options": {"form": "logprob"}}])
    with pytest.raises(errors.InvalidField, match="`alpha` has no effect"):
        await ask(logprob, "endogenous", options={"alpha": 1.0})


async def test_missing_logprobs_are_found_before_the_model_runs(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    engine.runner.ask = None  # would fail if it were called
    item = await ask(engine, "endogenous", credit={"kl": {"coef": 0.1}})
    assert item.error.code == "length_mismatch"
    assert item.error.param == "items[0].policy_logprobs"


async def test_a_policy_that_stops_at_once_says_so_and_is_scored(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    ids = await ask(engine, "endogenous", {"response": [tiny.END_ID]})
    text = await ask(engine, "endogenous", {"response": "", "finished": True, "spans": [[0, 0]]})
    np.testing.assert_allclose(text.rewards, ids.rewards, atol=1e-5)


async def test_a_row_of_another_temperature_does_not_change_its_neighbours(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    alone = [await ask(engine, "endogenous", options={"alpha": alpha}) for alpha in (0.5, 1.0, 2.0)]
    together = await asyncio.gather(
        *(ask(engine, "endogenous", options={"alpha": a}) for a in (0.5, 1.0, 2.0))
    )
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.rewards, other.rewards, atol=1e-4)


async def test_of_levels_the_last_token_of_a_span_stands(
    make_engine: Callable[..., Any], exact_rm: Any
) -> None:
    engine = make_engine("reward_model", ["reward_model"])
    tokens = await ask(engine, "reward_model", credit={"name": "values"}, return_tokens=True)
    spans = [[0, 5], [5, len(RESPONSE)]]
    item = await ask(engine, "reward_model", {"spans": spans}, credit={"name": "values"})
    ends = [token.span[1] for token in tokens.tokens]
    last_of_first = max(t for t, end in enumerate(ends) if end <= 5)
    expected = oracle.head_values(exact_rm, WHAT.ids)[len(WHAT.prompt) :][[last_of_first, -1]]
    np.testing.assert_allclose(item.rewards, expected, atol=1e-4)


async def test_a_prompt_that_the_items_of_a_request_share_is_tokenised_once(
    make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    assert engine.tokenizer.end_of_turn == tiny.END_ID  # which is found by tokenising, once
    encoder, read = engine.tokenizer.encoder, []
    encode = encoder.read
    monkeypatch.setattr(encoder, "read", lambda text: read.append(text) or encode(text))
    other = [{"role": "user", "content": "3+3?"}]
    prompts = [PROMPT, PROMPT, other, "2+2?", PROMPT, "2+2?"]
    items = [{"prompt": prompt, "response": RESPONSE + "!" * i} for i, prompt in enumerate(prompts)]
    together = (
        await engine.score(parse(RewardsRequest, {"scorer": "endogenous", "items": items}))
    ).items
    assert len(read) == len(items) + 3
    for item, result in zip(items, together, strict=True):
        alone = (
            await engine.score(parse(RewardsRequest, {"scorer": "endogenous", "items": [item]}))
        ).items[0]
        np.testing.assert_allclose(result.rewards, alone.rewards, atol=1e-4)


async def test_prompts_of_equal_messages_under_other_template_variables_are_other_prompts(
    make_engine: Callable[..., Any],
) -> None:
    template = tiny.TEMPLATE + "{{ mood or '' }}"
    engine = make_engine("causal_lm", ["endogenous"], chat_template=template)
    moods: list[dict[str, str]] = [{}, {"mood": "good"}, {"mood": "bad mood"}, {}]
    items = [
        {"prompt": PROMPT, "response": RESPONSE, "chat_template_kwargs": mood} for mood in moods
    ]
    reply = await engine.score(parse(RewardsRequest, {"scorer": "endogenous", "items": items}))
    lengths = [
        len(ids_of("<|user|>2+2?<|end|>\n<|assistant|>" + mood.get("mood", ""))) for mood in moods
    ]
    assert reply.usage.prompt_tokens == sum(lengths)
    assert len(set(lengths)) == 3


async def test_a_raw_prompt_that_spells_another_items_messages_is_read_as_its_own_text(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    raw = {"prompt": json.dumps([PROMPT, None, {}]), "response": RESPONSE}
    chat = {"prompt": PROMPT, "response": RESPONSE}
    replies = []
    for items in ([raw], [chat], [chat, raw]):
        body = {"scorer": "endogenous", "items": items}
        replies.append(await engine.score(parse(RewardsRequest, body)))
    alone, other, together = replies
    num_prompt_tokens = alone.usage.prompt_tokens + other.usage.prompt_tokens
    assert together.usage.prompt_tokens == num_prompt_tokens
    np.testing.assert_allclose(together.items[1].rewards, alone.items[0].rewards, atol=1e-4)


async def test_each_item_of_a_group_whose_prompt_is_refused_names_its_own_place(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["endogenous"], chat_template="{{ raise_exception('no') }}")
    items = [{"prompt": PROMPT, "response": RESPONSE}] * 3
    reply = await engine.score(parse(RewardsRequest, {"scorer": "endogenous", "items": items}))
    assert [item.error.param for item in reply.items] == [f"items[{i}].prompt" for i in range(3)]


@pytest.mark.parametrize(
    ("items", "more", "light"),
    [
        ([{"prompt": "2+2?", "response": RESPONSE}], {}, True),
        ([{"prompt": [5] * 100, "response": encode_ids([6] * 100)}], {}, True),
        ([{"prompt": "2+2?", "response": RESPONSE}], {"return_tokens": True}, False),
        ([{"prompt": "2+2?", "response": "It is 4. " * 200}], {}, False),
        ([{"prompt": PROMPT, "response": RESPONSE}], {}, False),
        ([{"prompt": [5], "response": [6]}] * 20, {}, False),
    ],
)
async def test_only_a_light_request_is_made_ready_without_another_thread(
    make_engine: Callable[..., Any], items: list[dict[str, Any]], more: dict[str, Any], light: bool
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    engine.preprocess.threads.close()
    scoring = engine.score(parse(RewardsRequest, {"scorer": "endogenous", "items": items, **more}))
    if light:
        assert (await scoring).items[0].error is None
    else:
        with pytest.raises(errors.InternalError, match="closing"):
            await scoring
