"""Attention weights of one segment from its q and k, in float32: a row of it, blocks of it, never
the whole map.

Only what a layer passes to its attention shapes the weights: scaling, window, soft-cap, sinks. It
knows no packing, no tokens and no architecture by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tokenreward.contract import Reading, Row

# Weights in one block: what stays in a CPU's cache is fastest there, a GPU wants few calls (64 MiB
# a block).
_BLOCK_WEIGHTS = {"cpu": 2**20, "cuda": 2**24}
_FEWEST_QUERIES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Bias:
    """What shapes the scores of one layer beyond q and k."""

    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None

    def shapes(self, length: int) -> bool:
        """Whether it is more than scale and causality for a row of this length."""
        bites = self.window is not None and length > self.window
        return bites or self.softcap is not None or self.sinks is not None


def read(
    q: Tensor, k: Tensor, bias: Bias, row: Row, readings: Iterable[Reading]
) -> dict[Reading, Tensor]:
    """The readings of one segment's attention (see `contract.Outputs`). q [heads, n, d], k
    [kv_heads, n, d]."""
    found: dict[Reading, Tensor] = {}
    for reading in readings:
        if reading == "last":
            found[reading] = last_row(q[:, -1], k, bias)
        elif reading == "last_step":
            seen = last_row(q[:, row.stop - 2], k[:, : row.stop - 1], bias)
            found[reading] = functional.pad(seen, (0, k.shape[1] - len(seen)))
        else:
            found[reading] = mean_step(q, k, bias, row)
    return found


def last_row(q: Tensor, k: Tensor, bias: Bias) -> Tensor:
    """Attention [n] of the token at the end of a segment, mean over heads. q [heads, d], k
    [kv_heads, n, d]."""
    ((left, weights),) = blocks(q[None, :, None].float(), k[None].float(), bias)
    return functional.pad(weights.mean(dim=(0, 1, 2)), (left, 0))


def mean_step(q: Tensor, k: Tensor, bias: Bias, row: Row) -> Tensor:
    """For each response token [r], the mean attention that it gets from the tokens which predicted
    a later one.

    A mean over the tokens that can see it: those at or after it, within the window.
    q [heads, n, d], k [kv_heads, n, d].
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
    return functional.pad(
        (total / num_seen).float(), (0, row.stop - last)
    )  # after the last token nobody predicts


def blocks(q: Tensor, k: Tensor, bias: Bias) -> Iterator[tuple[int, Tensor]]:
    """Causal weights in blocks of queries: (first key, weights [1, heads, queries, keys]).

    q [1, heads, m, d], k [1, kv_heads, n, d] in float32; the queries are the last m of the n
    tokens.
    """
    num_keys = k.shape[2]
    past = num_keys - q.shape[2]
    step = _queries_at_once(_BLOCK_WEIGHTS[q.device.type] // q.shape[1], num_keys, bias.window)
    for top in range(past, num_keys, step):
        bottom = min(top + step, num_keys)
        left = 0 if bias.window is None else max(0, top - bias.window + 1)
        scores = _scores(q[:, :, top - past : bottom - past], k[:, :, left:bottom], bias)
        _hide(scores, top, left, bias.window)
        yield left, _softmax(scores, bias.sinks)


def mix(weights: Tensor, v: Tensor) -> Tensor:
    """What weights [1, heads, m, n] make of values [1, kv_heads, n, d]: [1, heads, m, d]; of a long
    sequence, copies of the values for each query head would be most of a layer's memory."""
    heads, kv_heads = weights.shape[1], v.shape[1]
    grouped = weights.reshape(1, kv_heads, heads // kv_heads * weights.shape[2], weights.shape[3])
    return (grouped @ v).reshape(1, heads, weights.shape[2], v.shape[3])


def _queries_at_once(num_weights: int, num_keys: int, window: int | None) -> int:
    """How many queries have at most so many weights together, of one head: `step` queries see
    `num_keys` keys, or `step` and a window of them, whichever is less."""
    step = num_weights // max(1, num_keys)
    if window is not None:
        step = max(step, (math.isqrt(window**2 + 4 * num_weights) - window) // 2)
    return max(_FEWEST_QUERIES, step)


def _scores(q: Tensor, k: Tensor, bias: Bias) -> Tensor:
    """[1, heads, m, n]; query heads that share a key head are multiplied together."""
    heads, kv_heads = q.shape[1], k.shape[1]
    grouped = (q * bias.scaling).reshape(1, kv_heads, heads // kv_heads * q.shape[2], q.shape[3])
    scores = (grouped @ k.transpose(-1, -2)).reshape(1, heads, q.shape[2], k.shape[2])
    return scores if bias.softcap is None else torch.tanh(scores / bias.softcap) * bias.softcap


def _hide(scores: Tensor, top: int, left: int, window: int | None) -> None:
    """In place, what a query must not see: later keys, and those before its window. Queries from
    `top`, keys from `left` on; only the corners that hold any are touched."""
    queries = torch.arange(top, top + scores.shape[2], device=scores.device)[:, None]
    keys = torch.arange(left, left + scores.shape[3], device=scores.device)
    scores[..., top - left :].masked_fill_(keys[top - left :] > queries, -torch.inf)
    if window is not None:
        beyond = max(0, top + scores.shape[2] - window - left)
        scores[..., :beyond].masked_fill_(queries - keys[:beyond] >= window, -torch.inf)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Over the last axis of [1, heads, q, k]; a sink takes its share and is dropped."""
    if sinks is None:
        return scores.softmax(dim=-1)
    column = sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
