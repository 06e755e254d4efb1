"""Attention weights of one segment from its q and k, in float32: a row of them, or blocks of rows,
and never the whole map.

Only what a layer passes to its attention shapes the weights: scaling, window, soft-cap and sinks.
This module knows no packing, no tokens and no architecture by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tokenreward.contract import Reading, Row

# Weights in one block. A block that stays in a CPU's cache is fastest there; a GPU wants few calls
# (64 MiB a block).
BLOCK_WEIGHTS = {"cpu": 2**20, "cuda": 2**24}
FEWEST_QUERIES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Bias:
    """What shapes the scores of one layer beyond q and k.

    Attributes:
        scaling: Factor of the scores.
        window: How many tokens each token may see, itself included; None for all before it.
        softcap: c in c * tanh(score / c), or None.
        sinks: A score for each head [heads] that takes its share of the softmax and has no value,
            or None.
    """

    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None

    def shapes(self, length: int) -> bool:
        """Whether it is more than scale and causality for a row of this length."""
        window_bites = self.window is not None and length > self.window
        return window_bites or self.softcap is not None or self.sinks is not None


def read(
    q: Tensor, k: Tensor, bias: Bias, row: Row, readings: Iterable[Reading]
) -> dict[Reading, Tensor]:
    """Readings of one segment's attention (see `contract.Outputs`).

    Args:
        q: Queries [heads, n, d].
        k: Keys [kv_heads, n, d].
        bias: What else shapes the scores.
        row: The segment's row, which says which of the tokens are the response.
        readings: Which readings.
    """
    vectors: dict[Reading, Tensor] = {}
    for reading in readings:
        if reading == "last":
            vectors[reading] = last_row(q[:, -1], k, bias)
        elif reading == "last_step":
            weights = last_row(q[:, row.stop - 2], k[:, : row.stop - 1], bias)
            vectors[reading] = functional.pad(weights, (0, k.shape[1] - len(weights)))
        else:
            vectors[reading] = mean_step(q, k, bias, row)
    return vectors


def last_row(q: Tensor, k: Tensor, bias: Bias) -> Tensor:
    """Attention [n] of the token at the end of a segment, as a mean over heads.

    Args:
        q: The query of that token [heads, d].
        k: Keys [kv_heads, n, d].
        bias: What else shapes the scores.
    """
    ((left, weights),) = blocks(q[None, :, None].float(), k[None].float(), bias)
    return functional.pad(weights.mean(dim=(0, 1, 2)), (left, 0))


def mean_step(q: Tensor, k: Tensor, bias: Bias, row: Row) -> Tensor:
    """For each response token, the mean attention [r] that later predictions pay to it.

    Predictions are made by the tokens that predicted a later response token. The mean is over those
    of them that can see the token: the ones at it or after it, within the window. It is also a mean
    over heads.

    Args:
        q: Queries [heads, n, d].
        k: Keys [kv_heads, n, d].
        bias: What else shapes the scores.
        row: The segment's row.
    """
    first, last = row.start, max(row.start, row.stop - 1)
    total = torch.zeros(last - first, dtype=torch.float64, device=q.device)
    for left, weights in blocks(q[None, :, first:last].float(), k[None, :, :last].float(), bias):
        paid = weights[..., max(0, first - left) :].mean(dim=1).sum(dim=(0, 1))
        begin = max(0, left - first)
        total[begin : begin + len(paid)] += paid
    num_seen = torch.arange(last - first, 0, -1, device=q.device, dtype=torch.float64)
    if bias.window is not None:
        num_seen = num_seen.clamp(max=bias.window)
    # No token predicts a later one after the last response token: its mean is 0.
    return functional.pad((total / num_seen).float(), (0, row.stop - last))


def blocks(q: Tensor, k: Tensor, bias: Bias) -> Iterator[tuple[int, Tensor]]:
    """Causal weights in blocks of queries.

    Args:
        q: Queries [1, heads, m, d], float32: the last m of the n tokens.
        k: Keys [1, kv_heads, n, d], float32.
        bias: What else shapes the scores.

    Yields:
        The first key that a block holds, and its weights [1, heads, queries, keys].
    """
    num_keys = k.shape[2]
    past = num_keys - q.shape[2]
    step = _num_queries(BLOCK_WEIGHTS[q.device.type] // q.shape[1], num_keys, bias.window)
    for top in range(past, num_keys, step):
        bottom, left = min(top + step, num_keys), 0
        if bias.window is not None:
            left = max(0, top - bias.window + 1)
        scores = _scores(q[:, :, top - past : bottom - past], k[:, :, left:bottom], bias)
        _hide(scores, top, left, bias.window)
        yield left, _softmax(scores, bias.sinks)


def mix(weights: Tensor, v: Tensor) -> Tensor:
    """Values [1, kv_heads, n, d], mixed by weights [1, heads, m, n]: [1, heads, m, d].

    The query heads of a key head are multiplied together: for a long sequence, a copy of the values
    for each query head would be most of a layer's memory.
    """
    heads, kv_heads = weights.shape[1], v.shape[1]
    grouped = weights.reshape(1, kv_heads, heads // kv_heads * weights.shape[2], weights.shape[3])
    return (grouped @ v).reshape(1, heads, weights.shape[2], v.shape[3])


def _num_queries(num_weights: int, num_keys: int, window: int | None) -> int:
    """How many queries of one head have at most so many weights together.

    m queries see all keys, or m + window keys, whichever is less. In the second case, m is the
    root of m * (m + window) = num_weights.
    """
    num_queries = num_weights // max(1, num_keys)
    if window is not None:
        root = (math.isqrt(window**2 + 4 * num_weights) - window) // 2
        num_queries = max(num_queries, root)
    return max(FEWEST_QUERIES, num_queries)


def _scores(q: Tensor, k: Tensor, bias: Bias) -> Tensor:
    """Scores [1, heads, m, n]. The query heads of a key head are multiplied together."""
    heads, kv_heads = q.shape[1], k.shape[1]
    grouped = (q * bias.scaling).reshape(1, kv_heads, heads // kv_heads * q.shape[2], q.shape[3])
    scores = (grouped @ k.transpose(-1, -2)).reshape(1, heads, q.shape[2], k.shape[2])
    if bias.softcap is None:
        return scores
    return torch.tanh(scores / bias.softcap) * bias.softcap


def _hide(scores: Tensor, top: int, left: int, window: int | None) -> None:
    """Hides what a query must not see, in place: later keys, and keys before its window.

    Only the corners of the scores that hold such keys are touched.

    Args:
        scores: Scores [1, heads, m, n].
        top: The token of the first query.
        left: The token of the first key.
        window: How many tokens each token may see, or None.
    """
    queries = torch.arange(top, top + scores.shape[2], device=scores.device)[:, None]
    keys = torch.arange(left, left + scores.shape[3], device=scores.device)
    scores[..., top - left :].masked_fill_(keys[top - left :] > queries, -torch.inf)
    if window is not None:
        beyond = max(0, top + scores.shape[2] - window - left)
        scores[..., :beyond].masked_fill_(queries - keys[:beyond] >= window, -torch.inf)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over the keys of scores [1, heads, m, n].

    A sink takes its share of it, and is dropped.
    """
    if sinks is None:
        return scores.softmax(dim=-1)
    column = sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
