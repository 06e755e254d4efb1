"""The largest logits of each row, and the rank of one token among all, from tiles of logits.

Logits that are equal are told apart by the token: the lower id comes first. torch's own `topk` says
nothing of equal values. So each logit becomes an integer key that has the logit in its upper half
and the id, counted from behind, in its lower half: no two keys are equal, and their order is the
order wanted. This module knows tiles, and no models.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 2**32 - 1
_MAGNITUDE = 2**31 - 1  # all bits of a float32 but its sign
# The keys of a tile take four times its bytes at worst. They are made for a part of its rows at a
# time, so that they take no more than the tile does.
_NUM_PARTS = 4


def keys(logits: Tensor, first_id: int) -> Tensor:
    """int64 keys [n, columns] of float32 logits, whose order is that of the logits and, where these
    are equal, the reverse of the ids.

    A NaN is above all numbers or below, by its sign.

    Args:
        logits: [n, columns]; they are not changed.
        first_id: The token of the first column.
    """
    # -0.0 + 0.0 is 0.0. The bits of negative numbers count downwards, so they are turned round.
    bits = (logits + 0.0).view(torch.int32)
    bits ^= (bits >> 31).bitwise_and_(_MAGNITUDE)
    wide = bits.to(torch.int64)
    wide <<= 32
    ids = torch.arange(first_id, first_id + logits.shape[-1], device=logits.device)
    wide |= _LOW - ids
    return wide


def of_keys(ranked: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, float32, and the tokens, int64, that some keys stand for, in their shape."""
    bits = (ranked >> 32).to(torch.int32)
    bits ^= (bits >> 31).bitwise_and_(_MAGNITUDE)
    return bits.view(torch.float32), _LOW - (ranked & _LOW)


def best(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of whole logits [n, vocabulary], float32, in descending order, and their tokens
    [n, k]. Equal ones are in the order of their ids."""
    return of_keys(keys(logits, 0).topk(k, dim=-1).values)


def ranks_of(logits: Tensor, targets: Tensor) -> Tensor:
    """The rank [n] of a token each among whole logits [n, vocabulary]: 1 is the largest."""
    chosen = logits.gather(1, targets[:, None])[:, 0]
    return 1 + num_above(logits, 0, targets, chosen)


def num_above(logits: Tensor, first_id: int, targets: Tensor, chosen: Tensor) -> Tensor:
    """How many tokens of a tile [n, columns] come before the targets [n], whose logits are
    `chosen` [n]."""
    ids = torch.arange(first_id, first_id + logits.shape[-1], device=logits.device)
    above = logits > chosen[:, None]
    above |= (logits == chosen[:, None]) & (ids < targets[:, None])
    return above.sum(dim=-1)


class Ranking:
    """The largest logits of n rows, and the rank of one token each, of the tiles that were seen.

    Args:
        targets: A token [n] for each row, whose rank is wanted.
        logits: The raw logit [n] of that token, in float32. It stands for the tile's own, which may
            be rounded otherwise: so a token is not ranked behind itself.
        k: How many of the largest logits are wanted, at most as many as there are.
    """

    def __init__(self, targets: Tensor, logits: Tensor, k: int) -> None:
        self._targets, self._logits, self._k = targets, logits, k
        num_rows, device = len(targets), targets.device
        self._num_above = torch.zeros(num_rows, dtype=torch.int64, device=device)
        # Below the key of any logit.
        self._keys = torch.full((num_rows, k), -(2**63), dtype=torch.int64, device=device)

    def see(self, logits: Tensor, first_row: int, first_id: int) -> None:
        """Looks at a tile of logits [n, columns], and puts the targets' own logits into it.

        Args:
            logits: The tile.
            first_row: Its first row, of all rows.
            first_id: The token of its first column.
        """
        rows = slice(first_row, first_row + len(logits))
        targets, chosen = self._targets[rows], self._logits[rows]
        # Without a branch: asking which targets are among the columns would wait for the device.
        column = (targets - first_id).clamp(0, logits.shape[-1] - 1)
        is_here = column + first_id == targets
        own = torch.where(is_here, chosen, logits.gather(1, column[:, None])[:, 0])
        logits.scatter_(1, column[:, None], own[:, None])
        self._num_above[rows] += num_above(logits, first_id, targets, chosen)
        if not self._k:
            return
        num_of_tile = min(self._k, logits.shape[-1])
        size = -(-len(logits) // _NUM_PARTS)
        parts = zip(torch.split(logits, size), torch.split(self._keys[rows], size), strict=True)
        for part, largest in parts:
            of_tile = keys(part, first_id).topk(num_of_tile, dim=-1).values
            both = torch.cat([largest, of_tile], dim=-1)
            largest.copy_(both.topk(self._k, dim=-1).values)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """The largest logits [n, k], their tokens [n, k], and the ranks [n] of the targets."""
        return *of_keys(self._keys), self._num_above + 1
