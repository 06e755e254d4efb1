"""Scorers that are asked on behalf of others, over real HTTP to real replicas:
`credit.kl.reference`, `score_from`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from fakes import oracle
from tokenreward.http.request_limits import Limits
from tokenreward.wire import decode_rewards, read_reply

SPANS: dict[str, Any] = {"prompt": "2+2?", "response": "It is 4.", "spans": [[0, 3], [3, 8]]}
TEXT: dict[str, Any] = {"prompt": [{"role": "user", "content": "2+2?"}], "response": "It is 4. Yes"}
IDS: dict[str, Any] = {"prompt": [5, 6, 7], "response": [8, 90, 31]}
MASKED: dict[str, Any] = {**IDS, "mask": [1, 0, 1]}
LONG: dict[str, Any] = {"prompt": [5] * 60, "response": [8, 9]}  # too long for `sft` only
FORMS = {"spans": SPANS, "text": TEXT, "ids": IDS, "masked": MASKED}


def kl(reference: str, coef: float = 0.3, **more: Any) -> dict[str, Any]:
    return {"kl": {"coef": coef, "reference": reference, **more}}


async def ask(client: Any, status: int = 200, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/rewards", json=body)
    assert response.status_code == status, response.text
    return dict(response.json())


async def rewards_of(client: Any, scorer: str, item: dict[str, Any], **body: Any) -> np.ndarray:
    (got,) = (await ask(client, scorer=scorer, items=[item], **body))["items"]
    assert got["error"] is None
    return decode_rewards(got["rewards"]).astype(np.float64)


def bare(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != "mask"}


def with_policy(item: dict[str, Any], num_units: int) -> dict[str, Any]:
    return {**item, "policy_logprobs": np.linspace(-3.0, -0.5, num_units).tolist()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scorer", ["endogenous", "reward_model"])
async def test_kl_to_a_reference_is_kl_to_the_log_probs_it_gives_when_asked_itself(
    sourced_gateway: Any, scorer: str, form: str
) -> None:
    async with sourced_gateway() as client:
        plain = await rewards_of(client, scorer, FORMS[form])
        reference = await rewards_of(client, "sft", bare(FORMS[form]))
        item = with_policy(FORMS[form], len(plain))
        got = await rewards_of(client, scorer, item, credit=kl("sft", estimator="k3"))
    d = np.asarray(item["policy_logprobs"]) - reference
    keep = np.asarray(FORMS[form].get("mask", [1] * len(d)))
    np.testing.assert_allclose(got, plain - 0.3 * keep * (np.exp(-d) - 1 + d), rtol=1e-5, atol=1e-4)
    assert np.abs(got - plain)[keep == 1].min() > 1e-3


@pytest.mark.parametrize(
    ("name", "temperature"), [("sft", 0.7), ("soft", 1.0), ("endogenous", 1.0)]
)
async def test_reference_gives_log_probs_at_its_own_temperature_whatever_its_form(
    sourced_gateway: Any, sourced: Any, name: str, temperature: float
) -> None:
    folder: Path = sourced["folders"]["lm" if name == "endogenous" else "sft"]
    what = oracle.Response(np.array(IDS["prompt"]), np.array(IDS["response"]))
    z = oracle.logits(oracle.double(AutoModelForCausalLM.from_pretrained(folder)), what.ids)
    truth = oracle.log_probs(z, what, temperature=temperature)
    item = {**IDS, "policy_logprobs": [-1.0, -2.0, -3.0]}
    async with sourced_gateway() as client:
        got = await rewards_of(client, "one", item, credit=kl(name, coef=1.0))
    np.testing.assert_allclose(got, 1.0 - (np.array([-1.0, -2.0, -3.0]) - truth), atol=1e-4)


async def test_reference_of_another_tokenizer_serves_spans(sourced_gateway: Any) -> None:
    async with sourced_gateway() as client:
        plain = await rewards_of(client, "one", SPANS)
        reference = await rewards_of(client, "other", SPANS, options={"form": "logprob"})
        got = await rewards_of(client, "one", with_policy(SPANS, 2), credit=kl("other"))
    np.testing.assert_allclose(got, plain - 0.3 * (np.array([-3.0, -0.5]) - reference), atol=1e-5)


@pytest.mark.parametrize(
    ("item", "asked", "param"),
    [
        (IDS, {"credit": kl("other")}, "items[1]"),
        (TEXT, {"credit": kl("other")}, "items[1]"),
        ({**SPANS, "prompt": [5, 6]}, {"credit": kl("other")}, "items[1]"),
        (IDS, {"options": {"score_from": "other"}}, "items[1]"),
        (
            {**SPANS, "prompt": {"ids_b64": "BQAAAA=="}},
            {"options": {"score_from": "other"}},
            "items[1]",
        ),
        ({**TEXT, "mask": [1] * 9}, {"options": {"score_from": "other"}}, "items[1]"),
    ],
)
async def test_tokens_that_two_tokenizers_would_count_otherwise_are_refused(
    sourced_gateway: Any, sourced: Any, item: dict[str, Any], asked: dict[str, Any], param: str
) -> None:
    async with sourced_gateway() as client:
        reply = await ask(client, 422, scorer="free", items=[SPANS, item], **asked)
    assert (reply["error"]["code"], reply["error"]["param"]) == ("units_differ", param)
    assert "`free`" in reply["error"]["message"]
    assert "`other`" in reply["error"]["message"]
    assert sourced["asked"] == []


@pytest.mark.parametrize(
    ("names", "param"),
    [
        ({"credit": kl("label=one")}, "credit.kl.reference"),
        ({"options": {"score_from": "label=reward_model"}}, "options.score_from"),
        ({"options": {"score_from": "label=free"}}, "options.score_from"),
    ],
)
async def test_label_in_the_name_of_a_dependency_is_an_unknown_scorer(
    sourced_gateway: Any, sourced: Any, names: dict[str, Any], param: str
) -> None:
    async with sourced_gateway() as client:
        reply = await ask(client, 404, scorer="free", items=[with_policy(SPANS, 2)], **names)
    assert (reply["error"]["code"], reply["error"]["param"]) == ("unknown_scorer", param)
    assert sourced["asked"] == []


@pytest.mark.parametrize(
    "item", [TEXT, SPANS, {**SPANS, "mask": [1, 0]}], ids=["text", "spans", "masked spans"]
)
async def test_score_from_another_tokenizer_needs_no_equal_units(
    sourced_gateway: Any, item: dict[str, Any]
) -> None:
    async with sourced_gateway() as client:
        source = (await ask(client, scorer="other", items=[item]))["items"][0]["score"]
        reply = await ask(client, scorer="free", items=[item], options={"score_from": "other"})
    assert reply["items"][0]["score"] == pytest.approx(source, rel=1e-5)


async def test_score_from_is_the_score_that_is_spread(sourced_gateway: Any, sourced: Any) -> None:
    own = {**TEXT, "score": -7.0}
    async with sourced_gateway() as client:
        score = (await ask(client, scorer="reward_model", items=[TEXT]))["items"][0]["score"]
        given = await ask(client, scorer="free", items=[{**TEXT, "score": score}])
        sourced["asked"].clear()
        reply = await ask(client, scorer="spread", items=[own, TEXT, own])
        asked = list(sourced["asked"])
        named = await ask(
            client, scorer="free", items=[TEXT], options={"score_from": "reward_model"}
        )
    assert [item["score"] for item in reply["items"]] == pytest.approx(
        [-7.0, score, -7.0], rel=1e-5
    )
    assert [item["index"] for item in reply["items"]] == [0, 1, 2]
    for got in (reply["items"][1], named["items"][0]):
        np.testing.assert_allclose(
            got["rewards"], given["items"][0]["rewards"], rtol=1e-4, atol=1e-5
        )
    assert [path for path, _, _ in asked] == ["/d/rm/v1/rewards", "/d/lm/v1/rewards"]
    assert len(asked[0][2]["items"]) == 1
    assert reply["sources"]["reward_model"]["version"] == 3


async def test_scores_of_ones_own_ask_nobody_and_null_overrides_the_operator(
    sourced_gateway: Any, sourced: Any
) -> None:
    async with sourced_gateway() as client:
        reply = await ask(client, scorer="spread", items=[{**TEXT, "score": 1.5}])
        free = await ask(client, scorer="spread", items=[TEXT], options={"score_from": None})
    assert (reply["items"][0]["score"], reply["sources"]) == (1.5, {})
    assert free["items"][0]["error"]["code"] == "scorer_failed"
    assert {path for path, _, _ in sourced["asked"]} == {"/d/lm/v1/rewards"}


SEVERAL: dict[str, Any] = {
    "scorers": ["one", "reward_model", "endogenous", "spread"],
    "items": [with_policy(IDS, 3), with_policy(SPANS, 2)],
    "credit": {"endogenous": kl("sft"), "one": kl("soft"), "reward_model": kl("sft")},
    "options": {"endogenous": {"form": "logprob"}},
    "combine": {"one": 2.0, "endogenous": -1.0},
}


async def test_scorers_with_several_references_are_answered_as_each_alone(
    sourced_gateway: Any,
) -> None:
    async with sourced_gateway() as client:
        reply = await ask(client, **SEVERAL)
        alone = {}
        for name in SEVERAL["scorers"]:
            body = {key: SEVERAL[key].get(name, {}) for key in ("credit", "options")}
            alone[name] = await ask(client, scorer=name, items=SEVERAL["items"], **body)
    read_reply(reply)
    for index, item in enumerate(reply["items"]):
        assert list(item["scorers"]) == SEVERAL["scorers"]
        for name, result in item["scorers"].items():
            assert result["error"] is None
            np.testing.assert_allclose(
                result["rewards"], alone[name]["items"][index]["rewards"], rtol=1e-4, atol=1e-4
            )
        one, endogenous = (
            np.array(item["scorers"][name]["rewards"]) for name in SEVERAL["combine"]
        )
        np.testing.assert_allclose(item["rewards"], 2 * one - endogenous, rtol=1e-5, atol=1e-5)


async def test_each_of_several_references_is_asked_once_and_named_with_its_version(
    sourced_gateway: Any, sourced: Any
) -> None:
    async with sourced_gateway() as client:
        sources = (await ask(client, **SEVERAL))["sources"]
    asked = [(path, body.get("scorer"), body.get("scorers")) for path, _, body in sourced["asked"]]
    assert sorted(asked, key=str) == sorted(
        [
            ("/d/sft/v1/rewards", "sft", None),
            ("/d/sft/v1/rewards", "soft", None),
            ("/d/rm/v1/rewards", "reward_model", None),
            ("/d/lm/v1/rewards", None, ["one"]),
            ("/d/lm/v1/rewards", None, ["endogenous"]),
            ("/d/lm/v1/rewards", None, ["spread"]),
            ("/d/rm/v1/rewards", None, ["reward_model"]),
        ],
        key=str,
    )
    versions = {name: source["version"] for name, source in sources.items()}
    assert versions == {"sft": 4, "soft": 4, "reward_model": 3}


@pytest.mark.parametrize("keyed", [False, True])
async def test_item_whose_reference_failed_fails_alone_and_others_keep_their_numbers(
    sourced_gateway: Any, keyed: bool
) -> None:
    short = {**IDS, "policy_logprobs": [0.0]}  # wrong for the scorer, fine for the reference
    good = with_policy(IDS, 3)
    items = [good, with_policy(LONG, 2), {**short, "response": [8, 999]}, good, short]
    which = (
        {"scorers": ["one"], "credit": {"one": kl("sft")}}
        if keyed
        else {"scorer": "one", "credit": kl("sft")}
    )
    async with sourced_gateway() as client:
        reply = await ask(client, items=items, **which)
        alone = await rewards_of(client, "one", good, credit=kl("sft"))
    read_reply(reply)
    results = [item["scorers"]["one"] if keyed else item for item in reply["items"]]
    assert [item["index"] for item in reply["items"]] == [0, 1, 2, 3, 4]
    for index in (0, 3):
        np.testing.assert_allclose(results[index]["rewards"], alone, rtol=1e-5)
    details = [results[index]["error"] for index in (1, 2, 4)]
    assert [detail["code"] for detail in details] == [
        "sequence_too_long",
        "token_out_of_vocabulary",
        "length_mismatch",
    ]
    params = ["items[1].response", "items[2].response", "items[4].policy_logprobs"]
    assert [detail["param"] for detail in details] == params
    for detail in details[:2]:
        assert detail["message"].startswith("reference `sft`: ")
        assert detail["retryable"] is False
    assert not any("items[" in detail["message"] for detail in details)
    assert all(results[index]["rewards"] is None for index in (1, 2, 4))
    assert reply["usage"] == {
        "prompt_tokens": 2 * 3,
        "response_tokens": 2 * 3,
    }  # those that the scorer itself read


async def test_item_that_fails_in_one_scorers_reference_is_answered_by_the_others(
    sourced_gateway: Any,
) -> None:
    items = [with_policy(LONG, 2), with_policy(IDS, 3)]
    async with sourced_gateway() as client:
        body = {
            "scorers": ["one", "endogenous"],
            "credit": {"endogenous": kl("sft")},
            "items": items,
        }
        long, good = (await ask(client, **body))["items"]
    assert long["scorers"]["one"]["error"] is None
    assert long["scorers"]["endogenous"]["error"]["code"] == "sequence_too_long"
    assert good["scorers"]["endogenous"]["error"] is None


@pytest.mark.parametrize("items", [[LONG], [LONG, LONG]])
async def test_nothing_is_forwarded_when_every_item_failed_in_the_reference(
    sourced_gateway: Any, sourced: Any, items: list[Any]
) -> None:
    async with sourced_gateway() as client:
        items = [with_policy(item, 2) for item in items]
        reply = await ask(client, scorer="one", items=items, credit=kl("sft"))
    read_reply(reply)
    assert [item["error"]["code"] for item in reply["items"]] == ["sequence_too_long"] * len(items)
    assert reply["usage"] == {"prompt_tokens": 0, "response_tokens": 0}
    assert reply["timing"]["tokenize_s"] > 0
    assert {path for path, _, _ in sourced["asked"]} == {"/d/sft/v1/rewards"}


async def test_reference_that_is_down_is_a_503_alone_and_a_retryable_error_among_others(
    sourced_gateway: Any,
) -> None:
    loaded = {name: {"r1": []} for name in ("lm", "rm", "other")}
    items = [with_policy(SPANS, 2)] * 2
    async with sourced_gateway(loaded=loaded) as client:
        alone = await client.post(
            "/v1/rewards", json={"scorer": "one", "items": items, "credit": kl("sft")}
        )
        names = ["one", "endogenous", "reward_model"]
        credit = {"one": kl("sft"), "endogenous": kl("other")}
        reply = await ask(
            client, scorers=names, items=items, credit=credit, combine={"one": 1, "endogenous": 1}
        )
        names, items = (
            ["one", "reward_model"],
            [with_policy(IDS, 3)],
        )  # ids: its tokenizer cannot be asked for
        ids = await ask(client, scorers=names, items=items, credit={"one": kl("sft")})
    assert (alone.status_code, alone.json()["error"]["code"]) == (503, "loading")
    assert alone.headers["retry-after"] == "2"
    assert alone.json()["error"]["message"].startswith("reference `sft`: ")
    for item in reply["items"]:
        failed = item["scorers"]["one"]["error"]
        assert (failed["code"], failed["retryable"]) == ("loading", True)
        assert failed["message"].startswith("reference `sft`: ")
        assert item["scorers"]["endogenous"]["error"] is None
        assert item["scorers"]["reward_model"]["error"] is None
        assert (item["rewards"], item["score"]) == (None, None)
    (item,) = ids["items"]
    assert item["scorers"]["one"]["error"]["code"] == "loading"
    assert item["scorers"]["reward_model"]["error"] is None


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"credit": kl("nobody")}, 404, "unknown_scorer", "credit.kl.reference"),
        ({"credit": kl("reward_model")}, 422, "invalid_field", "credit.kl.reference"),
        ({"credit": kl("free")}, 422, "invalid_field", "credit.kl.reference"),
        (
            {"credit": {"kl": {"coef": 1.0, "reference": 3}}},
            422,
            "invalid_field",
            "credit.kl.reference",
        ),
        ({"credit": {"kl": {"reference": "sft"}}}, 422, "invalid_field", "credit.kl.coef"),
        (
            {"credit": kl("sft"), "items": [SPANS, {**SPANS, "ref_logprobs": [0.0, 0.0]}]},
            422,
            "invalid_field",
            "items[1].ref_logprobs",
        ),
        ({"options": {"score_from": "nobody"}}, 404, "unknown_scorer", "options.score_from"),
        ({"options": {"score_from": "free"}}, 422, "invalid_field", "options.score_from"),
        ({"options": {"score_from": "spread"}}, 422, "invalid_field", "options.score_from"),
        ({"options": {"score_from": 3}}, 422, "invalid_field", "options.score_from"),
        (
            {"options": {"score_from": "reward_model"}, "items": [{**SPANS, "score": 0.0}]},
            422,
            "invalid_field",
            "items[0].score",
        ),
        (
            {"scorer": None, "scorers": ["one", "free"], "credit": {"one": kl("nobody")}},
            404,
            "unknown_scorer",
            "credit.one.kl.reference",
        ),
        (
            {
                "scorer": None,
                "scorers": ["one", "free"],
                "options": {"free": {"score_from": "free"}},
            },
            422,
            "invalid_field",
            "options.free.score_from",
        ),
        ({"items": [SPANS] * 9, "credit": kl("sft")}, 413, "too_many_items", "items"),
    ],
)
async def test_source_that_cannot_be_asked_is_refused_before_anybody_is_asked(
    sourced_gateway: Any, sourced: Any, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    async with sourced_gateway() as client:
        reply = await ask(client, status, **{"scorer": "free", "items": [SPANS], **fields})
    assert (reply["error"]["code"], reply["error"]["param"]) == (code, param)
    assert sourced["asked"] == []


@pytest.mark.parametrize(
    "body",
    [
        {"scorer": "endogenous", "options": {"score_from": "reward_model"}},
        {"scorer": "one", "credit": kl("sft"), "options": {"volume": 11}},
        {
            "scorers": ["one", "reward_model"],
            "credit": {"one": kl("sft")},
            "options": {"one": {"volume": 11}},
        },
        {"scorers": ["one"], "credit": {"one": {**kl("sft"), "name": "attention"}}},
    ],
)
async def test_what_the_asked_scorer_refuses_is_refused(
    sourced_gateway: Any, body: dict[str, Any]
) -> None:
    async with sourced_gateway() as client:
        reply = await ask(client, 422, items=[with_policy(SPANS, 2)], **body)
    assert reply["error"]["code"] in ("unknown_option", "credit_not_supported")


READ_BY_ALL: dict[str, Any] = {
    "prompt": [{"role": "user", "content": "x"}],
    "response": "a b",
    "spans": [[0, 1], [1, 3]],
    "finished": False,
    "tools": [{"type": "function"}],
    "chat_template_kwargs": {"deep": True},
}
OF_SCORES: dict[str, Any] = {"mask": [1, 0], "steps": ["a", "b"]}
FULL: dict[str, Any] = {
    "scorer": "spread",
    "items": [{**READ_BY_ALL, **OF_SCORES, "policy_logprobs": [-1.0, -1.0]}],
    "credit": kl("sft"),
    "min_version": 1,
    "return_tokens": True,
    "encoding_format": "base64",
}


async def test_source_is_asked_only_what_it_reads(sourced_gateway: Any, sourced: Any) -> None:
    async with sourced_gateway() as client:
        await ask(client, **FULL)
    by_path = {path: body for path, _, body in sourced["asked"]}
    assert by_path["/d/sft/v1/rewards"] == {
        "scorer": "sft",
        "items": [READ_BY_ALL],
        "options": {"form": "logprob"},
        "credit": {"name": "values"},
        "encoding_format": "base64",
    }
    assert by_path["/d/rm/v1/rewards"] == {
        "scorer": "reward_model",
        "items": [{**READ_BY_ALL, **OF_SCORES}],
        "encoding_format": "base64",
    }


async def test_scorer_gets_the_callers_request_with_what_its_sources_answered(
    sourced_gateway: Any, sourced: Any
) -> None:
    async with sourced_gateway() as client:
        await ask(client, **FULL)
    (forwarded,) = (body for path, _, body in sourced["asked"] if path == "/d/lm/v1/rewards")
    (item,) = forwarded.pop("items")
    ref_logprobs, score = item.pop("ref_logprobs"), item.pop("score")
    assert (len(ref_logprobs), type(score)) == (2, float)
    assert [item] == FULL["items"]
    assert forwarded == {
        **{name: value for name, value in FULL.items() if name != "items"},
        "options": {"score_from": None},
        "credit": {"kl": {"coef": 0.3}},
    }


async def test_min_version_is_the_asked_scorers_and_not_the_references(
    sourced_gateway: Any,
) -> None:
    item = with_policy(SPANS, 2)
    async with sourced_gateway() as client:
        body = {
            "scorer": "reward_model",
            "items": [item],
            "credit": kl("other"),
        }  # versions 3 and 1
        reply = await ask(client, **body, min_version=3)
        refused = await ask(client, 409, **body, min_version=4)
    assert (reply["version"], reply["sources"]["other"]["version"]) == (3, 1)
    assert refused["error"]["code"] == "version_not_reached"


async def test_large_request_is_answered_in_threads_all_the_same(
    sourced_gateway: Any, sourced: Any
) -> None:
    limits = Limits(max_body_bytes=10**6, max_request_items=8, request_timeout_s=20)
    body = {"scorer": "one", "items": [with_policy(IDS, 3)], "credit": kl("sft")}
    async with sourced_gateway(limits=limits) as client:
        small = await ask(client, **body)
        large = await client.post("/v1/rewards", content=json.dumps(body) + " " * 300_000)
    np.testing.assert_allclose(
        large.json()["items"][0]["rewards"], small["items"][0]["rewards"], rtol=1e-6
    )
