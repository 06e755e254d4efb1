"""The implicit reward through the whole engine: two checkpoints, an adapter, shared rows, refusals
at start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from fakes import lora, oracle, tiny
from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Row, Sample, Signals
from tokenreward.engine import Engine
from tokenreward.settings import DeploymentSettings, SettingsError
from tokenreward.wire import RewardsRequest, parse

WHAT = [
    oracle.Response(
        np.random.default_rng(n).integers(3, 320, size=5 + 4 * n), np.arange(10, 13 + n)
    )
    for n in range(4)
]
BETA = 0.25


def item(what: oracle.Response, **more: Any) -> dict[str, Any]:
    return {"prompt": what.prompt.tolist(), "response": what.response.tolist(), **more}


async def ask(engine: Any, *items: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    body = {"scorer": "implicit", "items": list(items), "options": {"beta": BETA}, **more}
    return list((await engine.score(parse(RewardsRequest, body))).items)


def truth(policy: Any, reference: Any, what: oracle.Response) -> np.ndarray:
    ours, theirs = (
        oracle.log_probs(oracle.logits(m, what.ids), what, temperature=1.0)
        for m in (policy, reference)
    )
    return np.asarray(BETA * (ours - theirs))


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with other weights than `language_model`."""
    return tiny.save(tmp_path_factory.mktemp("other"), seed=1)


async def test_rewards_are_the_formula_on_both_models_own_forwards(
    make_engine: Callable[..., Any], language_model: Path, other: Path
) -> None:
    engine = make_engine("causal_lm", ["implicit"], reference_checkpoint=str(other))
    models = [
        oracle.double(AutoModelForCausalLM.from_pretrained(folder))
        for folder in (language_model, other)
    ]
    for what, got in zip(WHAT, await ask(engine, *map(item, WHAT)), strict=True):
        expected = truth(*models, what)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(got.rewards, expected, atol=1e-4)
        assert got.score == pytest.approx(expected.sum(), abs=1e-3)


async def test_swapped_models_give_the_negative(
    make_engine: Callable[..., Any], language_model: Path, other: Path
) -> None:
    there = make_engine("causal_lm", ["implicit"], reference_checkpoint=str(other))
    back = make_engine(
        "causal_lm", ["implicit"], checkpoint=other, reference_checkpoint=str(language_model)
    )
    for ours, theirs in zip(
        await ask(there, *map(item, WHAT)), await ask(back, *map(item, WHAT)), strict=True
    ):
        np.testing.assert_array_equal(ours.rewards, -theirs.rewards)


async def test_the_same_weights_twice_give_exactly_zero_alone_and_zero_to_tolerance_in_company(
    make_engine: Callable[..., Any], language_model: Path
) -> None:
    scorers = ["implicit", {"type": "endogenous", "options": {"form": "logprob"}}]
    engine = make_engine("causal_lm", scorers, reference_checkpoint=str(language_model))
    for got in [*(await ask(engine, item(WHAT[3]))), *(await ask(engine, *map(item, WHAT)))]:
        assert (got.rewards == 0.0).all()
        assert got.score == 0.0
    # A neighbour that only the policy reads: the two passes now differ in their rows.
    uneven = [([0, 1], "implicit"), ([2], "endogenous"), ([3], "implicit")]
    replies = await gathered(engine, uneven)
    for got in (
        reply
        for (_, scorer), items in zip(uneven, replies, strict=True)
        if scorer == "implicit"
        for reply in items
    ):
        assert np.abs(got.rewards).max() <= 1e-5 * 50


async def gathered(
    engine: Any, asked: Sequence[tuple[list[int], str]]
) -> list[list[dict[str, Any]]]:
    """Requests that wait for one batch."""
    import asyncio

    bodies = [
        {"scorer": scorer, "items": [item(WHAT[i]) for i in places]} for places, scorer in asked
    ]
    replies = await asyncio.gather(*(engine.score(parse(RewardsRequest, body)) for body in bodies))
    return [list(reply.items) for reply in replies]


async def test_an_adapter_makes_the_policy_and_its_base_is_the_reference(
    make_engine: Callable[..., Any], language_model: Path, tmp_path: Path
) -> None:
    adapter = lora.save(tmp_path / "adapter")
    engine = make_engine("causal_lm", ["implicit", "endogenous"], adapter=str(adapter))
    base = oracle.double(AutoModelForCausalLM.from_pretrained(language_model))
    policy = lora.merged(oracle.double(base), adapter)
    for what, got in zip(WHAT, await ask(engine, *map(item, WHAT)), strict=True):
        np.testing.assert_allclose(got.rewards, truth(policy, base, what), atol=2e-4)
    (got,) = await ask(engine, item(WHAT[2]), scorer="endogenous", options={"form": "logprob"})
    expected = oracle.log_probs(oracle.logits(policy, WHAT[2].ids), WHAT[2], temperature=1.0)
    np.testing.assert_allclose(got.rewards, expected, atol=2e-4)


async def test_an_adapter_that_has_learned_nothing_gives_exactly_zero(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    adapter = lora.save(tmp_path / "adapter")
    lora.forget(adapter)
    engine = make_engine("causal_lm", ["implicit"], adapter=str(adapter))
    for got in await ask(engine, *map(item, WHAT)):
        assert got.rewards.tolist() == [0.0] * len(got.rewards)


async def test_an_adapter_alone_is_served_to_any_scorer_without_a_second_probe(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    adapter = lora.save(tmp_path / "adapter")
    engine = make_engine("causal_lm", ["endogenous"], adapter=str(adapter))
    (entry,) = engine.describe()
    assert entry["model"].endswith(f" + {adapter}")
    assert entry["reference"] is None
    assert entry["layout"] == "packed"
    reply = await engine.score(
        parse(RewardsRequest, {"scorer": "endogenous", "items": [item(WHAT[0])]})
    )
    assert reply.model == entry["model"]


def test_the_base_that_an_adapter_names_is_told_if_it_is_another(
    language_model: Path, tmp_path: Path
) -> None:
    adapter, said = lora.save(tmp_path / "adapter"), list[str]()
    named = {
        "checkpoint": str(language_model),
        "adapter": str(adapter),
        "scorers": [{"type": "constant"}],
    }
    settings = DeploymentSettings(name="t", task="causal_lm", **named)
    for base, is_told in ((None, False), (str(language_model), False), ("org/base", True)):
        lora.config(adapter, base_model_name_or_path=base)
        said.clear()
        Engine.load(settings, say=said.append)
        assert any("names `org/base` as its base" in line for line in said) is is_told


class Counting:
    """The real layouts of a pair, counting what each of them is given."""

    def __init__(self, engine: Any) -> None:
        layouts = engine.runner.layout.layouts
        self.rows: dict[str, list[int]] = {model: [] for model in layouts}
        for model, layout in layouts.items():
            layouts[model] = self.counted(model, layout)

    def counted(self, model: str, layout: Any) -> Any:
        def launch(work: Any) -> Any:
            self.rows[model].append(len(work))
            return layout.launch(work)

        return type(
            "Counted",
            (),
            {"launch": staticmethod(launch), "num_computed": staticmethod(layout.num_computed)},
        )


async def test_scorers_of_a_pair_share_the_policys_row_and_each_distinct_row_is_computed_once(
    make_engine: Callable[..., Any], other: Path
) -> None:
    scorers = [
        "implicit",
        "endogenous",
        {"type": "implicit", "name": "prime", "options": {"last_token": "zero"}},
    ]
    engine = make_engine("causal_lm", scorers, reference_checkpoint=str(other))
    counting = Counting(engine)
    body = {
        "scorers": ["implicit", "endogenous", "prime"],
        "items": [item(what) for what in WHAT[:3]],
    }
    (first, *_) = (await engine.score(parse(RewardsRequest, body))).items
    assert counting.rows == {"policy": [3], "reference": [3]}
    results = first.scorers
    np.testing.assert_array_equal(results["prime"].rewards[:-1], results["implicit"].rewards[:-1])
    assert results["prime"].rewards[-1] == 0.0
    await engine.score(parse(RewardsRequest, {"scorer": "endogenous", "items": [item(WHAT[0])]}))
    assert counting.rows == {"policy": [3, 1], "reference": [3]}


async def test_every_token_of_both_models_is_measured(
    make_engine: Callable[..., Any], other: Path
) -> None:
    told: dict[str, list[float]] = {}
    report = lambda name, value=1.0, **labels: told.setdefault(name, []).append(value)  # noqa: E731
    engine = make_engine("causal_lm", ["implicit"], reference_checkpoint=str(other), report=report)
    await ask(engine, item(WHAT[0]))
    assert told["computed_tokens_total"] == [2 * len(WHAT[0].ids)]
    assert told["batch_tokens"] == [2 * len(WHAT[0].ids)]
    assert sum(told["tokens_total"]) == len(WHAT[0].ids)


async def test_ids_that_only_one_of_the_models_knows_are_refused(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    smaller = tiny.model("llama")
    smaller.resize_token_embeddings(310)
    smaller.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    engine = make_engine("causal_lm", ["implicit"], reference_checkpoint=str(tmp_path))
    beyond, fine = await ask(
        engine, {"prompt": [5], "response": [310]}, {"prompt": [5], "response": [309]}
    )
    assert beyond.error.code == "token_out_of_vocabulary"
    assert "0 to 309" in beyond.error.message
    assert fine.error is None


async def test_sequences_must_fit_both_models(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    short = tiny.save(tmp_path, "llama_dynamic")
    engine = make_engine("causal_lm", ["implicit"], reference_checkpoint=str(short))
    long, fits = await ask(
        engine, {"prompt": [5] * 30, "response": [6] * 3}, {"prompt": [5] * 30, "response": [6] * 2}
    )
    assert long.error.code == "sequence_too_long"
    assert fits.error is None


def test_the_listing_names_the_reference_and_both_layouts_if_they_differ(
    make_engine: Callable[..., Any], other: Path, tmp_path: Path
) -> None:
    (entry,) = make_engine("causal_lm", ["implicit"], reference_checkpoint=str(other)).describe()
    assert entry["reference"] == str(other)
    assert (entry["layout"], entry["layout_reason"]) == ("packed", None)
    padded = tiny.save(tmp_path, "bloom")
    (entry,) = make_engine("causal_lm", ["implicit"], reference_checkpoint=str(padded)).describe()
    assert entry["layout"] == "policy packed, reference padded"
    assert entry["layout_reason"].startswith("reference: ")


def test_without_a_reference_the_scorer_is_refused_naming_both_settings(
    make_engine: Callable[..., Any],
) -> None:
    with pytest.raises(
        SettingsError, match=r"scorer `implicit`.*`reference_checkpoint` or `adapter`"
    ):
        make_engine("causal_lm", ["endogenous", "implicit"])


def test_a_reference_that_no_scorer_reads_is_refused_before_it_is_loaded(
    make_engine: Callable[..., Any],
) -> None:
    with pytest.raises(SettingsError, match="`reference_checkpoint` has no effect"):
        make_engine("causal_lm", ["endogenous"], reference_checkpoint="/nowhere")


def test_a_reward_model_has_no_implicit_reward(
    make_engine: Callable[..., Any], reward_model: Path
) -> None:
    with pytest.raises(SettingsError, match="reads a causal_lm, this is a reward_model"):
        make_engine("reward_model", ["implicit"], reference_checkpoint=str(reward_model))


class Unsaid(contract.Scorer):
    """Asks the reference without saying so."""

    class Options(contract.Options):
        pass

    task, gives, default_credit, score_is = "causal_lm", frozenset({"values"}), "values", "none"

    def rows(self, sample: Sample, options: Any) -> tuple[Row, ...]:
        return tuple(replace(row, model="reference") for row in super().rows(sample, options))

    def needs(self, options: Any) -> Needs:
        return Needs(temperatures=frozenset({1.0}))

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Any) -> Signals:
        return Signals(values=outputs[0].chosen)


async def test_a_scorer_never_gets_another_models_numbers_for_rows_it_did_not_announce(
    make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    monkeypatch.setitem(sys.modules, "unsaid", module := types.ModuleType("unsaid"))
    module.Scorer = Unsaid  # type: ignore[attr-defined]
    engine = make_engine("causal_lm", [{"type": "unsaid:Scorer", "name": "unsaid"}])
    (got,) = await ask(engine, item(WHAT[0]), scorer="unsaid", options={})
    assert got.error.code == "scorer_failed"
