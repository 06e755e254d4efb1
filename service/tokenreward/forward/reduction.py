"""What a language head keeps of a tile of logits: logsumexp, and the entropy of their own softmax.

Of several ways to compute a logsumexp, the fastest on the device at hand is chosen by measurement.
It knows tiles and no models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from statistics import median

import torch
from torch import Tensor

LogSumExp = Callable[
    [Tensor], Tensor
]  # of [rows, columns] gives [rows], and may overwrite what it is given

_NUM_TRIALS = 7
_WORTH = 1.05
_FEWEST_COMPILED = 2  # compiled code is made anew for a length of 1


def in_place(logits: Tensor) -> Tensor:
    """logsumexp over the last axis, in the memory of the logits."""
    top = logits.amax(dim=-1, keepdim=True)
    top.masked_fill_(top.isinf(), 0.0)  # inf - inf would be NaN
    return logits.sub_(top).exp_().sum(dim=-1).log_().add_(top[..., 0])


@cache
def _fused() -> LogSumExp:
    return torch.compile(lambda logits: torch.logsumexp(logits, dim=-1), dynamic=True)


def compiled(logits: Tensor) -> Tensor:
    """The same as one compiled kernel, which reads the logits and writes nothing of their size."""
    return _fused()(logits) if min(logits.shape) >= _FEWEST_COMPILED else in_place(logits)


def reduced(
    logits: Tensor,
    temperatures: Sequence[float],
    entropies: Sequence[float],
    logsumexp: LogSumExp = in_place,
) -> Tensor:
    """[len(temperatures), n], logsumexp(logits / T), and below it [2 * len(entropies), n]:
    logsumexp and entropy of logits / T. Overwrites the logits [n, columns], float32."""
    normalisers, own = {}, {}
    asked = sorted(
        {*temperatures, *entropies}, key=lambda t: t == 1
    )  # 1 last: its logits are the ones at hand
    for place, t in enumerate(asked):
        scaled = logits / t if place + 1 < len(asked) else logits if t == 1 else logits.div_(t)
        if t in entropies:
            normalisers[t], own[t] = _with_entropy(scaled)
        else:
            normalisers[t] = logsumexp(scaled)
    of_entropies = [part for t in entropies for part in (normalisers[t], own[t])]
    return torch.stack([*(normalisers[t] for t in temperatures), *of_entropies])


def merged_tiles(partial: Tensor, num_temperatures: int) -> tuple[Tensor, Tensor]:
    """Of what `reduced` gave of each tile [tiles, k, n]: logsumexps over all columns
    [num_temperatures, n], and entropies."""
    total = torch.logsumexp(partial[:, :num_temperatures], dim=0)
    normalisers, own = partial[:, num_temperatures::2], partial[:, num_temperatures + 1 :: 2]
    # The chain rule: which tile, then which token of it. No two large numbers are subtracted.
    log_shares = torch.log_softmax(normalisers, dim=0)
    shares = log_shares.exp()
    return total, (shares * (own - log_shares.masked_fill(shares == 0, 0.0))).sum(dim=0)


def _with_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp [n] of logits [n, v], and the entropy of their softmax; a logit of -inf has no part
    in either."""
    top = logits.amax(dim=-1, keepdim=True)
    top.masked_fill_(top.isinf(), 0.0)  # inf - inf would be NaN
    below = logits - top
    weights = below.exp()
    total = weights.sum(dim=-1)
    entropy = total.log() - below.masked_fill_(weights == 0, 0.0).mul_(weights).sum(dim=-1) / total
    return top[..., 0] + total.log(), entropy.masked_fill_(total == 0, 0.0)


def fastest(device: torch.device, shape: tuple[int, int]) -> tuple[LogSumExp, float]:
    """The faster logsumexp of tiles of this shape that is exact, and how many times as fast it is
    as the one in place.

    Compiling takes seconds. Where nothing can be compiled the one in place is it.
    """
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul_(8).to(device)
    try:
        expected, found = torch.logsumexp(logits.double(), dim=-1), compiled(logits.clone())
        if not float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max()):
            return in_place, 1.0
        gain = _gain(logits)
    except Exception:  # no compiler, no Triton: whatever it raises means the same
        return in_place, 1.0
    return (compiled, gain) if gain >= _WORTH else (in_place, 1.0)


def _gain(logits: Tensor) -> float:
    """Median time in place over that of the compiled one, taken in turns on fresh copies."""
    seconds: dict[LogSumExp, list[float]] = {in_place: [], compiled: []}
    for _ in range(_NUM_TRIALS):
        for logsumexp, taken in seconds.items():
            copy = logits.clone()
            _wait(copy)
            began = time.perf_counter()
            _wait(logsumexp(copy))
            taken.append(time.perf_counter() - began)
    return median(seconds[in_place]) / median(seconds[compiled])


def _wait(tensor: Tensor) -> None:
    float(tensor.reshape(-1)[0])  # its value is there once the device has computed it
