"""The padded layout against float64 truth: ALiBi, partial rotary, a state-space model and a hybrid;
and which rows go through a call together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from fakes import oracle, tiny
from tokenreward.contract import Needs, Outputs, Row, RowRequest
from tokenreward.forward.padded import PaddedLayout, calls_of
from tokenreward.forward.plain import PlainLayout

LENGTHS = ((5, 9), (1, 1), (11, 30), (3, 1), (40, 17))
NEEDS = Needs(frozenset({1.0, 0.7}), frozenset({1.0}), frozenset({7}))
READINGS = frozenset({"last", "last_step", "mean_step"})
ONE_CALL = 10**6


def responses() -> list[oracle.Response]:
    """Ragged, and without the pad token, which a classifier would skip."""
    generator = np.random.default_rng(0)
    draw = lambda size: generator.integers(3, tiny.VOCAB_SIZE, size=size)  # noqa: E731
    return [oracle.Response(draw(p), draw(r)) for p, r in LENGTHS]


def work(items: list[oracle.Response], needs: Needs) -> list[RowRequest]:
    return [RowRequest(Row(what.ids, len(what.prompt), len(what.ids)), needs) for what in items]


def both(model: object, task: str, requests: list[RowRequest]) -> Iterator[tuple[Outputs, Outputs]]:
    """Each row as the padded layout gives it, all rows filled up to the longest, and as the plain
    layout does."""
    padded = PaddedLayout(tiny.checkpoint(model, task))
    padded.call_tokens = ONE_CALL
    plain = PlainLayout(tiny.checkpoint(model, task))
    return zip(padded.run(requests), plain.run(requests), strict=True)


def assert_as_exact_as(padded: np.ndarray, plain: np.ndarray, truth: np.ndarray) -> None:
    """|padded - truth| <= |plain - truth| + the contract's bound, and the same length."""
    assert padded.shape == truth.shape
    bound = 1e-5 * max(1.0, np.abs(truth).max())
    assert np.abs(padded - truth).max() <= np.abs(plain - truth).max() + bound


@pytest.mark.parametrize("architecture", [*tiny.PADDED, "phi3_longrope"])
def test_padded_logits_are_as_exact_as_the_models_own_forward(architecture: str) -> None:
    model, items = tiny.model(architecture), responses()
    exact = oracle.double(model) if architecture != "mamba" else model
    for what, (fast, slow) in zip(items, both(model, "causal_lm", work(items, NEEDS)), strict=True):
        z = oracle.logits(exact, what.ids)[len(what.prompt) - 1 :]
        chosen = z[np.arange(len(what.response)), what.response]
        assert_as_exact_as(fast.chosen, slow.chosen, chosen)
        assert_as_exact_as(fast.logits[7], slow.logits[7], z[:, 7])
        assert_as_exact_as(fast.entropy[1.0], slow.entropy[1.0], oracle.entropy(z))
        for t in (1.0, 0.7):
            assert_as_exact_as(fast.lse[t], slow.lse[t], oracle.logsumexp(z / t))


@pytest.mark.parametrize("architecture", ["bloom", "gptj", "qwen3_next"])
def test_padded_values_and_attention_are_as_exact_as_the_models_own(architecture: str) -> None:
    model, items = tiny.model(architecture, "reward_model"), responses()
    exact, has_map = oracle.double(model), architecture != "qwen3_next"  # not in its last layer
    needs = Needs(values=True, attention=READINGS if has_map else frozenset())
    for what, (fast, slow) in zip(
        items, both(model, "reward_model", work(items, needs)), strict=True
    ):
        values = oracle.head_values(exact, what.ids)
        assert_as_exact_as(fast.values, slow.values, values[len(what.prompt) - 1 :])
        assert abs(fast.pooled - values[-1]) <= 1e-5 * max(1.0, np.abs(values).max())
        if has_map:
            attention = oracle.last_layer_attention(exact, what.ids)
            assert_as_exact_as(fast.attention["last"], slow.attention["last"], attention[-1])
            truth = oracle.mean_step(attention, what)
            assert_as_exact_as(fast.attention["mean_step"], slow.attention["mean_step"], truth)


@pytest.mark.parametrize("architecture", ["bloom", "qwen3_next"])
def test_in_bf16_rows_in_company_err_no_more_than_twice_what_they_err_alone(
    architecture: str,
) -> None:
    model, items = tiny.model(architecture), responses()
    exact = oracle.double(model)
    requests = work(items, Needs(frozenset({1.0})))
    truth = [
        oracle.logsumexp(oracle.logits(exact, what.ids)[len(what.prompt) - 1 :]) for what in items
    ]
    errors: dict[str, float] = {"padded": 0.0, "plain": 0.0}
    for rows, outputs in zip(
        truth, both(model.to(torch.bfloat16), "causal_lm", requests), strict=True
    ):
        for name, of_row in zip(errors, outputs, strict=True):
            errors[name] = max(errors[name], float(np.abs(of_row.lse[1.0] - rows).max()))
    largest = max(float(np.abs(rows).max()) for rows in truth)
    assert errors["padded"] <= 2 * errors["plain"] + 1e-5 * largest


def test_padding_counts_as_computed() -> None:
    layout = PaddedLayout(tiny.checkpoint(tiny.model("bloom")))
    rows = [row for row, _ in work(responses(), NEEDS)]
    layout.call_tokens = ONE_CALL
    assert layout.num_computed(rows) == len(rows) * max(len(row.ids) for row in rows)
    layout.call_tokens = 0
    assert layout.num_computed(rows) == sum(len(row.ids) for row in rows)
    assert layout.num_computed([]) == 0
    assert layout.run([]) == []


def least_cost(lengths: list[int], call_tokens: int) -> int:
    """Of all ways to cut the sorted lengths into calls."""
    ordered, places = sorted(lengths), range(1, len(lengths))
    costs = []
    for num_cuts in range(len(lengths)):
        for cuts in combinations(places, num_cuts):
            bounds = [0, *cuts, len(lengths)]
            parts = [ordered[i:j] for i, j in pairwise(bounds)]
            costs.append(sum(len(part) * part[-1] + call_tokens for part in parts))
    return min(costs)


@pytest.mark.parametrize("call_tokens", [0, 3, 20, 1000])
def test_the_rows_of_calls_cost_the_least(call_tokens: int) -> None:
    generator = np.random.default_rng(4)
    for size in (1, 2, 7):
        lengths = generator.integers(1, 60, size=size).tolist()
        calls = calls_of(lengths, call_tokens)
        assert sorted(place for call in calls for place in call) == list(range(size))
        longest = [max(lengths[place] for place in call) for call in calls]
        cost = sum(len(call) * most for call, most in zip(calls, longest, strict=True))
        assert cost + len(calls) * call_tokens == least_cost(lengths, call_tokens)
