"""The largest logits and the ranks of the response tokens, of tiles and of every layout, against
float64: ties in the order of the ids, and a token never behind itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fakes import oracle, tiny
from fakes.live import Live
from tokenreward.contract import Needs, Outputs, Row, RowRequest
from tokenreward.forward.language_head import LanguageHead, Ranking, best, half_product, tiling
from tokenreward.forward.language_head.ranking import keys, of_keys
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.padded import PaddedLayout
from tokenreward.forward.plain import PlainLayout

LAYOUTS = {"packed": PackedLayout, "padded": PaddedLayout, "plain": PlainLayout}


def ordered(z: np.ndarray) -> np.ndarray:
    """All ids of logits [n, vocabulary], the largest first, of equal ones the lower id."""
    return np.argsort(-z, axis=-1, kind="stable")


def ranks(z: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """From 1, by counting."""
    places = np.argsort(ordered(z), axis=-1)
    return places[np.arange(len(z)), targets] + 1


def drawn(*shape: int, seed: int, integers: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if integers:  # their products are exact, so equal logits are equal to the bit
        return torch.randint(-2, 3, shape, generator=generator).float()
    return torch.randn(*shape, generator=generator)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, the last ones incomplete, and several blocks."""
    monkeypatch.setattr(tiling, "TILES", {"cpu": (5, 8), "cuda": (5, 8)})
    monkeypatch.setattr(tiling, "BLOCK_BYTES", 7 * 4 * 4)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("k", [0, 1, 5, 30, 37])
@pytest.mark.parametrize("integers", [True, False], ids=["ties", "no_ties"])
def test_tiles_give_the_largest_logits_and_the_ranks_of_whole_ones(integers: bool, k: int) -> None:
    of = LanguageHead(drawn(37, 4, seed=1, integers=integers), None, 1.0, None)
    hidden = drawn(13, 4, seed=2, integers=integers)
    at, targets = torch.tensor([0, 3, 3, 12, 5, 1, 1, 1]), torch.tensor([0, 36, 8, 7, 9, 20, 5, 21])
    ranking = Ranking(targets, of.token_logits(hidden, at, targets), k)
    (lse,), _ = of.normalisers(hidden, at, [1.0], [], ranking=ranking)
    logits, ids, place = ranking.result()
    z = (hidden.double() @ of.weight.double().T)[at].numpy()
    assert not integers or len(np.unique(z[0])) < 30  # there are ties
    assert place.tolist() == ranks(z, targets.numpy()).tolist()
    assert ids.tolist() == ordered(z)[:, :k].tolist()
    expected = np.take_along_axis(z, ordered(z)[:, :k], axis=-1)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(lse.numpy(), oracle.logsumexp(z), rtol=0, atol=1e-5)
    if not integers:
        truth = torch.log_softmax(torch.from_numpy(z), dim=-1).topk(k)
        assert ids.tolist() == truth.indices.tolist()
        log_probs = logits.double() - lse.double()[:, None]
        torch.testing.assert_close(log_probs, truth.values, rtol=0, atol=1e-5)


def test_keys_have_the_order_of_the_floats_and_give_them_back() -> None:
    z = torch.tensor([[-torch.inf, -3e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 2.0, 2.0, torch.inf]])
    logits, ids = of_keys(keys(z, 100).sort(dim=-1, descending=True).values)
    assert ids.tolist() == [[109, 107, 108, 106, 104, 105, 103, 102, 101, 100]]
    assert torch.equal(logits, z[0, ids[0] - 100][None])


def test_a_token_is_ranked_where_the_largest_logits_have_it_however_they_are_rounded() -> None:
    """Half-precision rows are multiplied otherwise for one token than for a tile."""
    weight = drawn(64, 16, seed=3).repeat(4, 1).bfloat16()  # each row four times: near ties
    of, hidden = LanguageHead(weight, None, 1 / 3, 30.0), drawn(50, 16, seed=4).bfloat16()
    at, targets = torch.arange(50), (torch.arange(50) * 37) % 256
    ranking = Ranking(targets, of.token_logits(hidden, at, targets), 256)
    of.normalisers(hidden, at, [1.0], [], ranking=ranking)
    _, ids, place = ranking.result()
    assert torch.equal(ids.gather(1, place[:, None] - 1)[:, 0], targets)


@pytest.mark.parametrize("k", [5, 128])
def test_ranking_keeps_the_workspace_bounded(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiling.TILES, "meta", tiling.TILES["cuda"])
    weight = torch.empty(128_256, 4096, dtype=torch.bfloat16, device="meta")
    of = LanguageHead(weight, None, 0.5, 30.0, product=half_product)
    num_rows = 2049
    hidden = torch.empty(num_rows, 4096, dtype=torch.bfloat16, device="meta")
    at = torch.empty(num_rows, dtype=torch.int64, device="meta")
    with torch.inference_mode(), Live() as live:
        ranking = Ranking(at, of.token_logits(hidden, at, at), k)
        of.normalisers(hidden, at, [0.7, 1.0], [1.0], ranking=ranking)
        ranking.result()
    state = num_rows * k * 8 * 3  # the keys, and the results made of them
    assert live.most <= tiling.MAX_WORKSPACE_BYTES + state


def test_the_best_of_whole_logits_are_those_of_a_stable_sort() -> None:
    z = drawn(6, 50, seed=5, integers=True)
    logits, ids = best(z, 20)
    assert ids.tolist() == ordered(z.numpy())[:, :20].tolist()
    assert torch.equal(logits, z.gather(1, ids))


def assert_ranked(outputs: Outputs, request: RowRequest, exact: Any) -> None:
    row, needs = request
    z = oracle.logits(exact, row.ids)[row.start - 1 : row.stop - 1]
    tokens = row.ids[row.start : row.stop]
    bound = 1e-5 * max(1.0, float(np.abs(z).max()))
    k = outputs.top_ids.shape[1]
    assert k >= needs.top_k
    assert outputs.top_ids.dtype == outputs.ranks.dtype == np.int64
    assert outputs.top_ids.tolist() == ordered(z)[:, :k].tolist()
    expected = np.take_along_axis(z, outputs.top_ids, axis=-1)
    np.testing.assert_allclose(outputs.top_logits, expected, rtol=0, atol=bound)
    assert outputs.ranks.tolist() == ranks(z, tokens).tolist()
    for place, rank in enumerate(outputs.ranks):
        if rank <= k:
            assert outputs.top_logits[place, rank - 1] == outputs.chosen[place]
    truth = oracle.logsumexp(z)
    np.testing.assert_allclose(outputs.lse[0.7][:-1], oracle.logsumexp(z / 0.7), atol=bound)
    log_probs = outputs.log_probs_of(outputs.top_logits, 1.0)
    np.testing.assert_allclose(log_probs, expected - truth[:, None], rtol=0, atol=2 * bound)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi"])
def test_every_layout_ranks_as_float64_does(architecture: str, name: str) -> None:
    """Rows with another `top_k`, without one, and with a prompt in common."""
    model = tiny.model(architecture)
    exact, layout = oracle.double(model), LAYOUTS[name](tiny.checkpoint(model))
    needs = Needs(frozenset({0.7, 1.0}), top_k=200)
    generator = np.random.default_rng(1)
    shared = generator.integers(3, tiny.VOCAB_SIZE, size=12)
    rows = [Row(np.append(shared, [7, 8]), 12, 14), Row(np.append(shared, [9, 9, 30]), 12, 15)]
    requests = [RowRequest(row, needs) for row in rows]
    requests += [RowRequest(row, replace(needs, top_k=0)) for row, _ in tiny.work(needs)]
    requests += [RowRequest(row, replace(needs, top_k=None)) for row, _ in tiny.work(needs)]
    for request, outputs in zip(requests, layout.run(requests), strict=True):
        if request.needs.top_k is None:
            assert outputs.ranks is None
            assert outputs.top_ids is None
        else:
            assert_ranked(outputs, request, exact)


def test_needs_of_several_scorers_want_the_larger_k_and_a_temperature() -> None:
    needs = Needs(frozenset({1.0}), top_k=2) | Needs(frozenset({1.0})) | Needs(frozenset({2.0}))
    assert needs.top_k == 2
    assert (needs | Needs(frozenset({1.0}), top_k=5)).top_k == 5
    assert (Needs() | Needs()).top_k is None
    with pytest.raises(ValueError, match="temperatures"):
        Needs(top_k=0)
