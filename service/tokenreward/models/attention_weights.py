"""Attention weights of one segment from its q and k, in float32: a row of it, blocks of it, never the whole map.

Only what a layer passes to its attention shapes the weights: scaling, window, soft-cap, sinks. It knows no packing, no
tokens and no architecture by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenreward.contract import Reading, Row

_QUERY_BLOCK = 256


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


def read(q: Tensor, k: Tensor, bias: Bias, row: Row, readings: Iterable[Reading]) -> dict[Reading, Tensor]:
    """The readings of one segment's attention (see `contract.Outputs`). q [heads, n, d], k [kv_heads, n, d]."""
    found: dict[Reading, Tensor] = {}
    for reading in readings:
        if reading == "last":
            found[reading] = last_row(q[:, -1], k, bias)
        elif reading == "last_step":
            seen = last_row(q[:, row.stop - 2], k[:, : row.stop - 1], bias)
            found[reading] = torch.nn.functional.pad(seen, (0, k.shape[1] - len(seen)))
        else:
            found[reading] = mean_step(q, k, bias, row)
    return found


def last_row(q: Tensor, k: Tensor, bias: Bias) -> Tensor:
    """Attention [n] of the token at the end of a segment, mean over heads. q [heads, d], k [kv_heads, n, d]."""
    k = k.float().repeat_interleave(q.shape[0] // k.shape[0], dim=0)
    scores = _scores(q.float()[:, None], k, bias)
    if bias.window is not None and scores.shape[-1] > bias.window:
        scores[..., : -bias.window] = -torch.inf
    return _softmax(scores[None], bias.sinks)[0].mean(dim=(0, 1))


def mean_step(q: Tensor, k: Tensor, bias: Bias, row: Row) -> Tensor:
    """For each response token [r], the mean attention that it gets from the tokens which predicted a later one.

    A mean over the tokens that can see it: those at or after it, within the window.
    q [heads, n, d], k [kv_heads, n, d].
    """
    heads, last = q.shape[0], row.stop - 1
    k = k[:, :last].float().repeat_interleave(heads // k.shape[0], dim=0)
    total = torch.zeros(last, dtype=torch.float64, device=q.device)
    for left, weights in blocks(q[None, :, row.start : last].float(), k[None], bias):
        total[left : left + weights.shape[-1]] += weights.mean(dim=(0, 1)).sum(dim=0, dtype=torch.float64)
    num_seen = torch.arange(last - row.start, 0, -1, device=q.device, dtype=torch.float64)
    if bias.window is not None:
        num_seen = num_seen.clamp(max=bias.window)
    means = (total[row.start :] / num_seen).float()
    return torch.nn.functional.pad(means, (0, row.stop - row.start - len(means)))


def blocks(q: Tensor, k: Tensor, bias: Bias) -> Iterator[tuple[int, Tensor]]:
    """Causal weights in blocks of queries: (first key, weights [1, heads, queries, keys]).

    q [1, heads, m, d], k [1, heads, n, d] in float32; the queries are the last m of the n tokens.
    """
    past = k.shape[2] - q.shape[2]
    for top in range(past, k.shape[2], _QUERY_BLOCK):
        bottom = min(top + _QUERY_BLOCK, k.shape[2])
        left = 0 if bias.window is None else max(0, top - bias.window + 1)
        scores = _scores(q[:, :, top - past : bottom - past], k[:, :, left:bottom], bias)
        distance = torch.arange(top, bottom, device=q.device)[:, None] - torch.arange(left, bottom, device=q.device)
        hidden = distance < 0
        if bias.window is not None:
            hidden = hidden | (distance >= bias.window)
        yield left, _softmax(scores.masked_fill(hidden, -torch.inf), bias.sinks)


def _scores(q: Tensor, k: Tensor, bias: Bias) -> Tensor:
    scores = q @ k.transpose(-1, -2) * bias.scaling
    return scores if bias.softcap is None else torch.tanh(scores / bias.softcap) * bias.softcap


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Over the last axis of [1, heads, q, k]; a sink takes its share and is dropped."""
    if sinks is None:
        return scores.softmax(dim=-1)
    column = sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
