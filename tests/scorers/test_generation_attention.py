"""Attention of the model that wrote, against generation played step by step in float64 with whole
attention maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV32Config, DogeConfig

from fakes import oracle, tiny
from fakes.tiny import tokenizer_of
from tokenreward.checkpoints.checkpoint import Checkpoint, CheckpointRefused
from tokenreward.contract import Outputs, RowRequest, Sample
from tokenreward.errors import ScorerFailed
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.plain import PlainLayout
from tokenreward.scorers.generation_attention import Scorer
from tokenreward.settings import SettingsError
from tokenreward.wire import Item, RewardsRequest, parse

VARIANTS = ("abc_d", "abc_d2")
LENGTHS = ((5, 9), (1, 1), (11, 30), (3, 2), (20, 11))


@torch.no_grad()
def steps_of_generation(exact: Any, what: oracle.Response) -> list[np.ndarray]:
    """For each generated token: what its query, the token before it, pays the tokens generated so
    far."""
    steps = []
    for num_generated in range(len(what.response)):
        prefix = torch.from_numpy(np.concatenate([what.prompt, what.response[:num_generated]]))[
            None
        ]
        maps = exact.base_model(
            input_ids=prefix, use_cache=False, output_attentions=True
        ).attentions
        steps.append(maps[-1][0, :, -1].double().mean(dim=0).numpy()[len(what.prompt) :])
    return steps


def simulated_weights(
    exact: Any, what: oracle.Response, variant: str, keep: np.ndarray | None = None
) -> np.ndarray:
    """Ragged rows padded with zeros, averaged over the non-zero ones (0 if there are none), moved
    one token on, renormalised."""
    steps, r = steps_of_generation(exact, what), len(what.response)
    assert [len(step) for step in steps] == list(range(r))
    if variant == "abc_d":
        padded = np.stack([np.concatenate([step, np.zeros(r - len(step))]) for step in steps])
        num_non_zero = np.maximum(np.count_nonzero(padded, axis=0), 1)
        averages = [padded[:, j].sum() / num_non_zero[j] for j in range(r - 1)]
    else:
        averages = steps[-1].tolist()
    weights = np.array([0.0, *averages]) * (np.ones(r) if keep is None else keep)
    return weights / weights.sum()


def sample_of(
    what: oracle.Response, *, score: float | None = 1.0, keep: np.ndarray | None = None
) -> Sample:
    item = Item(prompt=what.prompt.tolist(), response=what.response.tolist(), score=score)
    words = tokenizer_of(Checkpoint(tiny.model("llama"), tiny.tokenizer(), "causal_lm"))
    flags = np.ones(len(what.response), dtype=np.bool_) if keep is None else keep
    return Sample(
        what.prompt,
        what.response,
        terminal=False,
        keep=flags,
        item=item,
        tokenizer=words,
    )


def weights_by(
    layout: PackedLayout | PlainLayout, items: list[oracle.Response], variant: str
) -> list[np.ndarray]:
    scorer, options = Scorer(), Scorer.Options(variant=variant)
    samples = [sample_of(what) for what in items]
    rows = [row for sample in samples for row in scorer.rows(sample, options)]
    outputs = layout.run([RowRequest(row, scorer.needs(options)) for row in rows])
    return [
        scorer.score(sample, [outputs_of_row], options).weights
        for sample, outputs_of_row in zip(samples, outputs, strict=True)
    ]


def responses() -> list[oracle.Response]:
    """Ragged; the longest are longer than the sliding windows of 8, in prompt and in response."""
    generator = np.random.default_rng(3)
    draw = lambda size: generator.integers(3, tiny.VOCAB_SIZE, size=size)  # noqa: E731
    return [oracle.Response(draw(p), draw(r)) for p, r in LENGTHS]


# Generation reads the first tokens of a row with other rotary factors than the whole row has.
SWITCHING = {"phi3_longrope"}


@pytest.mark.parametrize("architecture", sorted({*tiny.PACKED, "bloom"} - SWITCHING))
def test_weights_are_those_of_generation_played_step_by_step(architecture: str) -> None:
    model = tiny.model(architecture)
    exact, items = oracle.double(model), responses()
    checkpoint = Checkpoint(model=model, tokenizer=None, task="causal_lm")
    layouts = [
        PlainLayout,
        *([PackedLayout] if architecture in tiny.PACKED else []),
    ]  # packing switches the model
    for layout in layouts:
        of_checkpoint = layout(checkpoint)
        for variant in VARIANTS:
            for what, weights in zip(items, weights_by(of_checkpoint, items, variant), strict=True):
                truth = (
                    np.ones(1)
                    if len(what.response) == 1
                    else simulated_weights(exact, what, variant)
                )
                assert weights.dtype == np.float32
                np.testing.assert_allclose(weights, truth, rtol=0, atol=1e-5)


def top_k_model(config: Any) -> Any:
    """Weights large enough that the top-k has no ties."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.mul_(12.0)
        elif name.endswith(".A"):
            parameter.normal_()
    return model


TOP_K_SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


@pytest.mark.parametrize(
    "config",
    [
        DogeConfig(**TOP_K_SIZES, keep_window_size=16),
        DeepseekV32Config(
            **TOP_K_SIZES,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            moe_intermediate_size=16,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
            index_topk=16,
            index_n_heads=16,
            index_head_dim=32,
        ),
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_token_that_a_top_k_drops_is_averaged_over_the_steps_that_kept_it(config: Any) -> None:
    model = top_k_model(config)
    exact, draw = oracle.double(model), np.random.default_rng(3)
    items = [
        oracle.Response(*(draw.integers(3, tiny.VOCAB_SIZE, size=size) for size in sizes))
        for sizes in ((5, 40), (20, 3))
    ]
    layout = PlainLayout(tiny.checkpoint(model))
    for what, weights in zip(items, weights_by(layout, items, "abc_d"), strict=True):
        # In float64, a top-k may take the other one of two keys that are nearly equal.
        truth = simulated_weights(exact, what, "abc_d")
        np.testing.assert_allclose(weights, truth, rtol=0, atol=1e-3)


PROMPT = [{"role": "user", "content": "2+2?"}]
RESPONSE = "It is 4. Yes, no doubt."
IDS = tiny.tokenizer()(RESPONSE, add_special_tokens=False)["input_ids"]
WHAT = oracle.Response(
    np.array(
        tiny.tokenizer()("<|user|>2+2?<|end|>\n<|assistant|>", add_special_tokens=False)[
            "input_ids"
        ]
    ),
    np.array([*IDS, tiny.END_ID]),
)


async def ask(engine: Any, item: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    entry = {"prompt": PROMPT, "response": RESPONSE, "score": -2.5, **(item or {})}
    body = {"scorer": "generation_attention", "items": [entry], **more}
    return (await engine.score(parse(RewardsRequest, body))).items[0]


@pytest.fixture
def exact(language_model: Path) -> Any:
    return oracle.double(AutoModelForCausalLM.from_pretrained(language_model))


@pytest.mark.parametrize("variant", VARIANTS)
async def test_the_items_score_is_spread_by_abcs_rule(
    make_engine: Callable[..., Any], exact: Any, variant: str
) -> None:
    item = await ask(
        make_engine("causal_lm", ["generation_attention"]), options={"variant": variant}
    )
    truth = 0.8 * -2.5 * simulated_weights(exact, WHAT, variant)
    assert truth[0] == 0.0
    truth[-1] += 0.2 * -2.5
    assert item.score == -2.5
    np.testing.assert_allclose(item.rewards, truth, atol=2e-5)
    assert float(item.rewards.sum()) == pytest.approx(-2.5, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
async def test_masked_tokens_are_steps_but_get_nothing(
    make_engine: Callable[..., Any], exact: Any, variant: str
) -> None:
    keep = np.ones(len(WHAT.response), dtype=np.bool_)
    keep[[2, 3, 7]] = False
    item = await ask(
        make_engine("causal_lm", ["generation_attention"]),
        {"mask": keep.astype(int).tolist()},
        options={"variant": variant},
        credit={"beta": 1.0},
    )
    np.testing.assert_allclose(
        item.rewards, -2.5 * simulated_weights(exact, WHAT, variant, keep), atol=2e-5
    )
    assert (item.rewards[~keep] == 0.0).all()


async def test_a_single_unmasked_token_gets_all_of_it(make_engine: Callable[..., Any]) -> None:
    engine = make_engine("causal_lm", ["generation_attention"])
    for place in (0, 3):
        mask = [int(t == place) for t in range(len(WHAT.response))]
        item = await ask(engine, {"mask": mask}, credit={"beta": 1.0})
        assert item.rewards.tolist() == [-2.5 * flag for flag in mask]
    assert (await ask(engine, {"response": [7]})).rewards.tolist() == [-2.5]


@pytest.mark.parametrize("variant", VARIANTS)
def test_unmasked_tokens_that_nobody_pays_anything_fail_the_item(variant: str) -> None:
    what = oracle.Response(np.array([5]), np.array([6, 7, 8]))
    nothing = np.zeros(4 if variant == "abc_d2" else 3, dtype=np.float32)
    outputs = [Outputs(attention={"last_step": nothing, "mean_step": nothing})]
    with pytest.raises(ScorerFailed, match="pays attention"):
        Scorer().score(sample_of(what), outputs, Scorer.Options(variant=variant))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            "send it, or name a scorer in the option `score_from` and ask the gateway "
            "(/v1/rewards)",
        ),
        (
            {"score_from": "reward_model"},
            "send the item to the gateway (/v1/rewards), which asks `reward_model`",
        ),
    ],
)
async def test_an_item_without_a_score_fails_alone_and_says_how_to_get_one(
    make_engine: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    engine = make_engine("causal_lm", [{"type": "generation_attention", "options": settings}])
    good = {"prompt": PROMPT, "response": RESPONSE, "score": 1.0}
    body = {"scorer": "generation_attention", "items": [good, {**good, "score": None}, good]}
    first, bad, last = (await engine.score(parse(RewardsRequest, body))).items
    assert bad.error.code == "scorer_failed"
    assert bad.error.param == "items[1].score"
    assert not bad.error.retryable
    assert message in bad.error.message
    assert first.error is None
    np.testing.assert_allclose(first.rewards, last.rewards, atol=1e-6)


async def test_an_item_without_a_score_costs_no_pass(make_engine: Callable[..., Any]) -> None:
    engine = make_engine("causal_lm", ["generation_attention"])
    engine.runner.launch = None  # would fail if it were called
    assert (await ask(engine, {"score": None})).error.code == "scorer_failed"


async def test_a_score_of_zero_is_a_score(make_engine: Callable[..., Any]) -> None:
    item = await ask(make_engine("causal_lm", ["generation_attention"]), {"score": 0.0})
    assert item.error is None
    assert (item.rewards == 0.0).all()


async def test_it_shares_row_and_pass_with_endogenous(make_engine: Callable[..., Any]) -> None:
    engine = make_engine("causal_lm", ["endogenous", "generation_attention"])
    passes: list[int] = []
    run = engine.runner.layout.run
    engine.runner.layout.run = lambda work: passes.append(len(work)) or run(work)
    item = {"prompt": PROMPT, "response": RESPONSE, "score": 3.0}
    body = {
        "scorers": ["endogenous", "generation_attention"],
        "items": [item, {**item, "response": "No."}],
    }
    results = (await engine.score(parse(RewardsRequest, body))).items[0].scorers
    assert passes == [2]
    alone = await ask(engine, {"score": 3.0})
    np.testing.assert_allclose(results["generation_attention"].rewards, alone.rewards, atol=1e-6)
    assert results["endogenous"].error is None


async def test_items_of_both_variants_share_a_batch(
    make_engine: Callable[..., Any], exact: Any
) -> None:
    two = {"type": "generation_attention", "name": "second", "options": {"variant": "abc_d2"}}
    engine = make_engine("causal_lm", ["generation_attention", two])
    item = {"prompt": PROMPT, "response": RESPONSE, "score": 1.0}
    body = {"scorers": ["generation_attention", "second"], "items": [item]}
    body["credit"] = {"generation_attention": {"beta": 1.0}, "second": {"beta": 1.0}}
    results = (await engine.score(parse(RewardsRequest, body))).items[0].scorers
    for name, variant in (("generation_attention", "abc_d"), ("second", "abc_d2")):
        np.testing.assert_allclose(
            results[name].rewards, simulated_weights(exact, WHAT, variant), atol=2e-5
        )


@pytest.mark.parametrize("task", ["causal_lm", "reward_model"])
def test_a_model_without_attention_is_refused_at_load_by_name(
    make_engine: Callable[..., Any], tmp_path: Path, task: str
) -> None:
    if task == "reward_model":
        with pytest.raises(
            SettingsError,
            match="type `generation_attention` reads a causal_lm, this is a reward_mod",
        ):
            make_engine(task, ["generation_attention"])
        return
    folder = tiny.save(tmp_path, "mamba")
    with pytest.raises(
        CheckpointRefused, match=r"^MambaForCausalLM gives no attention weights, and a scorer"
    ):
        make_engine(task, ["endogenous", "generation_attention"], checkpoint=folder)
    make_engine(task, ["endogenous"], checkpoint=folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_readings_of_attention_are_probed_whatever_the_defaults(
    make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """A request may choose the other variant."""
    assert (
        make_engine("causal_lm", ["generation_attention"], dtype=dtype).runner.layout.name
        == "packed"
    )
    for broken in ("last_row", "mean_step"):
        with monkeypatch.context() as patch:
            right = getattr(
                __import__("tokenreward.forward.attention_weights", fromlist=["_"]), broken
            )
            patch.setattr(
                f"tokenreward.forward.attention_weights.{broken}",
                lambda *args, right=right: 0.5 * right(*args),
            )
            engine = make_engine("causal_lm", ["generation_attention"], dtype=dtype)
            assert engine.runner.layout.name == "padded"
            assert "attention by" in str(engine.runner.layout.reason)
