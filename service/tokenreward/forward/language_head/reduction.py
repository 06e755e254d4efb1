"""What a language head keeps of a tile of logits: logsumexps, and entropies of softmaxes over them.

Of several ways to compute a logsumexp, the fastest one on the device at hand is chosen by
measurement. This module knows tiles, and no models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from statistics import median

import torch
from torch import Tensor

# Of logits [rows, columns], gives [rows]. It may overwrite the logits.
LogSumExp = Callable[[Tensor], Tensor]

_NUM_TRIALS = 7
WORTH = 1.05
_FEWEST_COMPILED = 2  # code for a length of 1 would be compiled anew


def in_place(logits: Tensor) -> Tensor:
    """logsumexp over the last axis, in the memory of the logits."""
    top = logits.amax(dim=-1, keepdim=True)
    top.masked_fill_(top.isinf(), 0.0)  # inf - inf would be NaN
    return logits.sub_(top).exp_().sum(dim=-1).log_().add_(top[..., 0])


@cache
def _compile() -> LogSumExp:
    return torch.compile(lambda logits: torch.logsumexp(logits, dim=-1), dynamic=True)


def compiled(logits: Tensor) -> Tensor:
    """logsumexp over the last axis as one compiled kernel.

    It reads the logits and writes nothing of their size.
    """
    if min(logits.shape) < _FEWEST_COMPILED:
        return in_place(logits)
    return _compile()(logits)


def reduce_tile(
    logits: Tensor,
    temperatures: Sequence[float],
    entropies: Sequence[float],
    logsumexp: LogSumExp = in_place,
) -> Tensor:
    """What is kept of a tile of logits [n, columns], float32, which it overwrites.

    Returns:
        One row [n] for each number that is kept: logsumexp(logits / T) for each of the
        temperatures, then, for each T of the entropies, logsumexp(logits / T) and the entropy of
        softmax(logits / T).
    """
    normalisers: dict[float, Tensor] = {}
    own_entropies: dict[float, Tensor] = {}
    # 1 comes last. Whatever comes last may overwrite the logits, which are those of T = 1.
    ordered = sorted({*temperatures, *entropies}, key=lambda t: t == 1)
    for t in ordered:
        scaled = logits
        if t != ordered[-1]:
            scaled = logits / t
        elif t != 1:
            scaled = logits.div_(t)
        if t in entropies:
            normalisers[t], own_entropies[t] = _with_entropy(scaled)
        else:
            normalisers[t] = logsumexp(scaled)
    numbers = [normalisers[t] for t in temperatures]
    for t in entropies:
        numbers += [normalisers[t], own_entropies[t]]
    return torch.stack(numbers)


def merge_tiles(tiles: Tensor, num_temperatures: int) -> tuple[Tensor, Tensor]:
    """Merges what `reduce_tile` kept of each tile of columns.

    The entropy follows the chain rule: with w_k, the share of tile k in the softmax, and H_k, the
    entropy within it, H = sum_k w_k (H_k - log w_k). No two large numbers are subtracted.

    Args:
        tiles: [tiles, k, n].
        num_temperatures: How many of the k numbers are of the temperatures.

    Returns:
        The logsumexps [num_temperatures, n] and the entropies [(k - num_temperatures) / 2, n] over
        all columns.
    """
    total = torch.logsumexp(tiles[:, :num_temperatures], dim=0)
    normalisers, own = tiles[:, num_temperatures::2], tiles[:, num_temperatures + 1 :: 2]
    log_shares = torch.log_softmax(normalisers, dim=0)
    shares = log_shares.exp()
    # A tile without any finite logit has the share 0, whose logarithm must not be multiplied.
    return total, (shares * (own - log_shares.masked_fill(shares == 0, 0.0))).sum(dim=0)


def _with_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp [n] of logits [n, columns], and the entropy [n] of their softmax.

    A logit of -inf has no part in either.
    """
    top = logits.amax(dim=-1, keepdim=True)
    top.masked_fill_(top.isinf(), 0.0)  # inf - inf would be NaN
    below = logits - top
    weights = below.exp()
    total = weights.sum(dim=-1)
    entropy = total.log() - below.masked_fill_(weights == 0, 0.0).mul_(weights).sum(dim=-1) / total
    return top[..., 0] + total.log(), entropy.masked_fill_(total == 0, 0.0)


def fastest(device: torch.device, shape: tuple[int, int]) -> tuple[LogSumExp, float]:
    """The fastest exact logsumexp for tiles of a shape.

    Compiling takes seconds. Where nothing can be compiled, it is the one in place.

    Returns:
        The logsumexp, and how many times as fast as the one in place it is.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator, dtype=torch.float32).mul_(8).to(device)
    try:
        expected, ours = torch.logsumexp(logits.double(), dim=-1), compiled(logits.clone())
        if not float((ours - expected).abs().max()) <= 1e-5 * float(expected.abs().max()):
            return in_place, 1.0
        gain = _gain(logits)
    except Exception:  # no compiler, no Triton: whatever it raises means the same
        return in_place, 1.0
    return (compiled, gain) if gain >= WORTH else (in_place, 1.0)


def _gain(logits: Tensor) -> float:
    """Median time in place over that of the compiled one, in turns, on fresh copies."""
    seconds: dict[LogSumExp, list[float]] = {in_place: [], compiled: []}
    for _ in range(_NUM_TRIALS):
        for logsumexp, times in seconds.items():
            copy = logits.clone()
            _wait(copy)
            began = time.perf_counter()
            _wait(logsumexp(copy))
            times.append(time.perf_counter() - began)
    return median(seconds[in_place]) / median(seconds[compiled])


def _wait(tensor: Tensor) -> None:
    float(tensor.reshape(-1)[0])  # its value is there once the device has computed it
