"""The packed layout against float64 truth, on every architecture whose attention goes through the
interface."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PhimoeConfig, PhimoeForCausalLM, RobertaConfig, RobertaForCausalLM
from transformers.models.qwen3_next import modeling_qwen3_next

from fakes import oracle, tiny
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.plain import PlainLayout
from tokenreward.forward.probe import choose_layout

LENGTHS = ((5, 9), (1, 1), (11, 30), (3, 1), (40, 17))
TEMPERATURES = (1.0, 0.7)


def responses(seed: int = 0) -> list[oracle.Response]:
    """Ragged, and longer than the sliding windows of 8; without the pad token, which a classifier
    would skip."""
    generator = np.random.default_rng(seed)
    draw = lambda size: generator.integers(3, tiny.VOCAB_SIZE, size=size)  # noqa: E731
    return [oracle.Response(draw(p), draw(r)) for p, r in LENGTHS]


def work(items: list[oracle.Response], needs: Needs) -> list[RowRequest]:
    return [RowRequest(Row(what.ids, len(what.prompt), len(what.ids)), needs) for what in items]


def checkpoint(model: object, task: str) -> Checkpoint:
    return Checkpoint(model=model, tokenizer=None, task=task)


def assert_as_exact_as(fast: np.ndarray, naive: np.ndarray, truth: np.ndarray) -> None:
    """|fast - truth| <= |naive - truth| + the contract's bound, and the same length."""
    assert fast.shape == truth.shape
    assert fast.dtype == np.float32
    bound = 1e-5 * max(1.0, np.abs(truth).max())
    assert np.abs(fast - truth).max() <= np.abs(naive - truth).max() + bound


@pytest.mark.parametrize("architecture", tiny.PACKED)
def test_packed_logits_are_as_exact_as_the_models_own_forward(architecture: str) -> None:
    model = tiny.model(architecture)
    exact, items = oracle.double(model), responses()
    needs = Needs(temperatures=frozenset(TEMPERATURES))
    naive = PlainLayout(checkpoint(model, "causal_lm")).run(work(items, needs))
    packed = PackedLayout(checkpoint(model, "causal_lm")).run(work(items, needs))
    for what, fast, slow in zip(items, packed, naive, strict=True):
        z = oracle.logits(exact, what.ids)
        rows = z[len(what.prompt) - 1 :]
        assert_as_exact_as(
            fast.chosen, slow.chosen, rows[np.arange(len(what.response)), what.response]
        )
        for t in TEMPERATURES:
            assert_as_exact_as(fast.lse[t], slow.lse[t], oracle.logsumexp(rows / t))


@pytest.mark.parametrize("num_labels", [1, 2])
@pytest.mark.parametrize("architecture", tiny.REWARD_MODELS)
def test_packed_values_and_attention_are_as_exact_as_the_models_own(
    architecture: str, num_labels: int
) -> None:
    model = tiny.model(architecture, "reward_model", num_labels=num_labels)
    exact, items = oracle.double(model), responses()
    needs = Needs(values=True, attention=frozenset({"last"}))
    naive = PlainLayout(checkpoint(model, "reward_model")).run(work(items, needs))
    packed = PackedLayout(checkpoint(model, "reward_model")).run(work(items, needs))
    for what, fast, slow in zip(items, packed, naive, strict=True):
        values = oracle.head_values(exact, what.ids)
        assert_as_exact_as(fast.values, slow.values, values[len(what.prompt) - 1 :])
        assert abs(fast.pooled - values[-1]) <= 1e-5 * max(1.0, np.abs(values).max())
        assert_as_exact_as(
            fast.attention["last"],
            slow.attention["last"],
            oracle.last_attention_row(exact, what.ids),
        )


@pytest.mark.parametrize("architecture", tiny.PACKED)
def test_entropies_labels_and_steps_of_attention_are_as_exact_as_the_models_own(
    architecture: str,
) -> None:
    model = tiny.model(architecture)
    exact, items = oracle.double(model), responses()
    needs = Needs(
        frozenset({1.0, *TEMPERATURES}),
        frozenset(TEMPERATURES),
        attention=frozenset({"last_step", "mean_step"}),
    )
    asked = [
        RowRequest(row, replace(needs, labels=frozenset({7, 200 + i})))
        for i, (row, _) in enumerate(work(items, needs))
    ]
    naive = PlainLayout(checkpoint(model, "causal_lm")).run(asked)
    packed = PackedLayout(checkpoint(model, "causal_lm")).run(asked)
    for i, (what, fast, slow) in enumerate(zip(items, packed, naive, strict=True)):
        rows = oracle.logits(exact, what.ids)[len(what.prompt) - 1 :]
        for t in TEMPERATURES:
            assert_as_exact_as(fast.entropy[t], slow.entropy[t], oracle.entropy(rows / t))
        for label in (7, 200 + i):
            assert_as_exact_as(fast.logits[label], slow.logits[label], rows[:, label])
        attention = oracle.last_layer_attention(exact, what.ids)
        for reading, truth in (
            ("last_step", attention[-2]),
            ("mean_step", oracle.mean_step(attention, what)),
        ):
            assert_as_exact_as(fast.attention[reading], slow.attention[reading], truth)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "mistral", "gpt_oss"])
def test_a_row_is_the_same_alone_and_in_any_company(architecture: str) -> None:
    layout = PackedLayout(checkpoint(tiny.model(architecture), "causal_lm"))
    items = responses()
    needs = Needs(temperatures=frozenset({1.0}))
    together = layout.run(work(items, needs))
    backwards = layout.run(work(items[::-1], needs))[::-1]
    for what, first, second in zip(items, together, backwards, strict=True):
        (alone,) = layout.run(work([what], needs))
        bound = 1e-5 * max(1.0, float(np.abs(alone.lse[1.0]).max()))
        for other in (first, second):
            assert np.abs(alone.chosen - other.chosen).max() <= bound
            assert np.abs(alone.lse[1.0] - other.lse[1.0]).max() <= bound


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_neox"])
def test_bf16_in_a_batch_errs_no_more_than_twice_what_it_errs_alone(architecture: str) -> None:
    model = tiny.model(architecture)
    exact, items = oracle.double(model), responses()
    needs = Needs(temperatures=frozenset({1.0}))
    layout = PackedLayout(checkpoint(model.to(torch.bfloat16), "causal_lm"))
    batched = layout.run(work(items, needs))
    for what, fast in zip(items, batched, strict=True):
        (alone,) = layout.run(work([what], needs))
        rows = oracle.logits(exact, what.ids)[len(what.prompt) - 1 :]
        truth = rows[np.arange(len(what.response)), what.response]
        assert fast.chosen.dtype == np.float32
        bound = 1e-5 * max(1.0, float(np.abs(rows).max()))
        assert np.abs(fast.chosen - truth).max() <= 2 * np.abs(alone.chosen - truth).max() + bound


def test_rows_with_different_needs_share_a_pass() -> None:
    layout = PackedLayout(checkpoint(tiny.model("llama"), "causal_lm"))
    items = responses()[:3]
    wants = [Needs(frozenset({1.0})), Needs(), Needs(frozenset({0.5}))]
    outputs = layout.run(
        [RowRequest(row, need) for (row, _), need in zip(work(items, Needs()), wants, strict=True)]
    )
    assert outputs[1].chosen is None
    for index, temperature in ((0, 1.0), (2, 0.5)):
        (alone,) = layout.run(work([items[index]], wants[index]))
        np.testing.assert_allclose(
            outputs[index].lse[temperature], alone.lse[temperature], atol=1e-5
        )


def test_no_tensor_of_tokens_by_vocabulary_is_made() -> None:
    """The largest tensor of a pass must not grow with tokens x vocabulary."""
    layout = PackedLayout(checkpoint(tiny.model("llama"), "causal_lm"))
    layout.language_head.weight.data = torch.randn(50_000, 32)
    generator = np.random.default_rng(0)
    row = Row(generator.integers(3, tiny.VOCAB_SIZE, size=500), 1, 500)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and func.overloadpacket.__name__ not in (
                "t",
                "slice",
                "transpose",
            ):
                largest = max(largest, out.numel())
            return out

    with Watch():
        layout.run([RowRequest(row, Needs(frozenset({1.0})))])
    assert 0 < largest <= 256 * 4096


def test_linear_layers_that_are_told_where_rows_start_are_packed_and_share_no_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the place of the kernels of optional packages stands transformers' own reference, called
    with a row at a time."""
    conv = modeling_qwen3_next.causal_conv1d_fn
    rule = modeling_qwen3_next.torch_chunk_gated_delta_rule

    def conv_of_rows(
        x: Any, *args: Any, activation: str, seq_idx: Any = None, **_: object
    ) -> torch.Tensor:
        sizes = [x.shape[2]]
        if seq_idx is not None:
            sizes = seq_idx[0].unique_consecutive(return_counts=True)[1].tolist()
        rows = [conv(row, *args, activation=activation) for row in x.split(sizes, dim=2)]
        return torch.cat(rows, dim=2)

    def rule_of_rows(*qkv: Any, g: Any, beta: Any, cu_seqlens: Any = None, **_: object) -> Any:
        sizes = [g.shape[1]] if cu_seqlens is None else cu_seqlens.diff().tolist()
        rows = zip(*(tensor.split(sizes, dim=1) for tensor in (*qkv, g, beta)), strict=True)
        outputs = [
            rule(*of_row[:3], g=of_row[3], beta=of_row[4], use_qk_l2norm_in_kernel=True)[0]
            for of_row in rows
        ]
        return torch.cat(outputs, dim=1), None

    model, items = tiny.model("qwen3_next"), responses()
    exact, requests = oracle.double(model), work(items, Needs(temperatures=frozenset({1.0})))
    naive = PlainLayout(checkpoint(model, "causal_lm")).run(requests)
    with monkeypatch.context() as patch:
        patch.setattr(modeling_qwen3_next, "causal_conv1d_fn", conv_of_rows)
        patch.setattr(modeling_qwen3_next, "torch_chunk_gated_delta_rule", rule_of_rows)
        layout = choose_layout(checkpoint(model, "causal_lm"), Needs(), say=lambda line: None)
        packed = layout.run(requests)
    assert (layout.name, layout.shares, layout.reason) == ("packed", False, None)
    for what, fast, slow in zip(items, packed, naive, strict=True):
        rows = oracle.logits(exact, what.ids)[len(what.prompt) - 1 :]
        assert_as_exact_as(fast.lse[1.0], slow.lse[1.0], oracle.logsumexp(rows))


def test_a_model_that_counts_positions_behind_padding_is_packed_also_with_padding_inside() -> None:
    config = RobertaConfig(
        vocab_size=tiny.VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=130,
        pad_token_id=tiny.PAD_ID,
        is_decoder=True,
    )
    torch.manual_seed(0)
    own = checkpoint(RobertaForCausalLM(config).eval(), "causal_lm")
    assert own.max_positions == 130 - tiny.PAD_ID - 1
    layout = choose_layout(own, Needs(), say=lambda line: None)
    assert layout.name == "packed"
    items = responses()
    items[0].response[3] = tiny.PAD_ID
    needs = Needs(temperatures=frozenset({1.0}))
    exact = oracle.double(own.model)
    for what, outputs in zip(items, layout.run(work(items, needs)), strict=True):
        rows = oracle.logits(exact, what.ids)[len(what.prompt) - 1 :]
        truth = rows[np.arange(len(what.response)), what.response]
        np.testing.assert_allclose(outputs.chosen, truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("window", "name"), [(3000, "padded"), (8192, "packed"), (None, "packed")])
def test_a_model_whose_window_is_in_its_mask_alone_is_not_packed(
    window: int | None, name: str
) -> None:
    config = PhimoeConfig(
        vocab_size=tiny.VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=8192,
        sliding_window=window,
        num_local_experts=2,
    )
    torch.manual_seed(0)
    own = checkpoint(PhimoeForCausalLM(config).eval(), "causal_lm")
    layout = choose_layout(own, Needs(), say=lambda line: None)
    assert layout.name == name
    assert name == "packed" or "sliding window" in str(layout.reason)
