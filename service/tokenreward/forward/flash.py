"""torch's varlen attention: attention and logsumexps of many sequences of any lengths in one call.

Versions of torch differ in what the kernel takes and gives. So a version is tried on a few tokens,
against float64, before it is trusted with a model. This module knows ranges and tensors, and no
groups.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreward.forward.packing import Range
from tokenreward.forward.transfer import to_device

_LARGEST_HEAD = 256
_HEAD_MULTIPLE = 8
_LEAST_CAPABILITY = (8, 0)

# Each sequence is ranges of the packed sequence, one after the other.
Sequences = Sequence[Sequence[Range]]


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """Sequences as the kernel takes them: end to end, without padding.

    Attributes:
        tokens: Their places in the packed sequence; a slice if that is in one piece, because a
            slice is a view and no copy.
        bounds: [num + 1] int32: where each sequence begins among these tokens, and where the last
            one ends.
        longest: Tokens of the longest sequence.
    """

    tokens: slice | Tensor
    bounds: Tensor
    longest: int


def to_ragged(device: torch.device, *batches: Sequences) -> list[Ragged]:
    """Each batch of sequences as the kernel takes it, all through one copy to the device."""
    pieces = [list(chain.from_iterable(batch)) for batch in batches]
    longest, arrays = [], []
    for batch in batches:
        lengths = [num_tokens(sequence) for sequence in batch]
        longest.append(max(lengths))
        arrays.append(np.cumsum([0, *lengths]))
    scattered = [number for number, ranges in enumerate(pieces) if not _is_one_piece(ranges)]
    arrays += [places_of(pieces[number]) for number in scattered]
    tensors = to_device(arrays, device)
    bounds = [tensor.to(torch.int32) for tensor in tensors[: len(batches)]]
    tokens: list[slice | Tensor] = [slice(ranges[0][0], ranges[-1][1]) for ranges in pieces]
    for number, places in zip(scattered, tensors[len(batches) :], strict=True):
        tokens[number] = places
    return [Ragged(*parts) for parts in zip(tokens, bounds, longest, strict=True)]


def num_tokens(ranges: Sequence[Range]) -> int:
    """Tokens that these ranges hold."""
    return sum(stop - start for start, stop in ranges)


def places_of(ranges: Sequence[Range]) -> np.ndarray:
    """The places of the packed sequence that these ranges hold, in order."""
    return np.concatenate([np.arange(start, stop) for start, stop in ranges])


def _is_one_piece(ranges: Sequence[Range]) -> bool:
    return all(before[1] == after[0] for before, after in pairwise(ranges))


class Flash:
    """`varlen_attn` of one version of torch."""

    def __init__(self, varlen: Callable[..., Any], aux: object, *, whole: bool = True) -> None:
        """Reads what this version takes from its signature.

        Args:
            varlen: torch's function.
            aux: The argument that asks it for the logsumexp, too.
            whole: Ask, where the version can be asked, that the keys of a row are never split.

        Raises:
            TypeError: The version takes no scale or no window.
        """
        takes = inspect.signature(varlen).parameters
        if not {"scale", "window_size"} <= takes.keys():
            raise TypeError("varlen_attn of this torch takes no scale and no window")
        self._varlen = varlen
        self._options: dict[str, Any] = {"return_aux": aux}
        if whole and "num_splits" in takes:
            # Where the keys are split depends on the longest row of a call, and with it would the
            # rounding of every other row.
            self._options["num_splits"] = 1
        self._takes_grouped = "enable_gqa" in takes
        self.heads_first = True  # the logsumexp is [heads, n]; else [n, heads]

    def __call__(
        self,
        qkv: Sequence[Tensor],
        queries: Ragged,
        keys: Ragged,
        *,
        scale: float,
        window: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Attention of each sequence of queries on its sequence of keys.

        Args:
            qkv: Queries [n, heads, d], keys and values [m, kv_heads, d].
            queries: How the queries are cut into sequences.
            keys: How the keys are. A sequence's queries are the last of its keys.
            scale: Factor of the scores.
            window: Keys before and after a query's own place that it sees; -1 is all.

        Returns:
            Attended [n, heads, d] and the logsumexps [n, heads].
        """
        q, k, v = qkv
        options = self._options
        if self._takes_grouped:
            options = options | {"enable_gqa": q.shape[1] != k.shape[1]}
        # Some versions take another path for sequences of one query, whose logsumexp is laid out
        # differently.
        longest = max(2, queries.longest)
        attended, lse = self._varlen(
            q,
            k,
            v,
            queries.bounds,
            keys.bounds,
            longest,
            keys.longest,
            scale=scale,
            window_size=window,
            **options,
        )
        return attended, lse.transpose(0, 1) if self.heads_first else lse

    def is_right(
        self, device: torch.device, dtype: torch.dtype, head_dim: int, window: tuple[int, int]
    ) -> bool:
        """Whether it gives the attention of float64 on a few tokens.

        It learns from them how the logsumexp is laid out.
        """
        generator = torch.Generator().manual_seed(0)
        query_ranges = ((0, 2), (2, 5))
        # As many keys as queries where it is causal, two more of each sequence where it is not.
        key_ranges = query_ranges if window == (-1, 0) else ((0, 4), (4, 7))
        q, k, v = (
            torch.randn(7, heads, head_dim, generator=generator).to(dtype) for heads in (2, 1, 1)
        )
        q, k, v = q[:5], k[: key_ranges[-1][1]], v[: key_ranges[-1][1]]
        queries, keys = to_ragged(
            device, [[part] for part in query_ranges], [[part] for part in key_ranges]
        )
        scale = head_dim**-0.5
        self.heads_first = True
        qkv = [part.to(device) for part in (q, k, v)]
        attended, lse = self(qkv, queries, keys, scale=scale, window=window)
        if lse.shape != attended.shape[:2]:
            self.heads_first, lse = False, lse.transpose(0, 1)
        bound = 4 * torch.finfo(dtype).eps * float(v.abs().max())
        for mine, its in zip(query_ranges, key_ranges, strict=True):
            q_part, k_part, v_part = q[slice(*mine)], k[slice(*its)], v[slice(*its)]
            exact, normaliser = _float64_attention(q_part, k_part, v_part, scale, window)
            gaps = attended[slice(*mine)].cpu() - exact, lse[slice(*mine)].cpu() - normaliser
            if not all(gap.abs().max() <= bound for gap in gaps):  # so written, NaN is wrong, too
                return False
        return True


def find_flash(
    device: torch.device, dtype: torch.dtype, head_dim: int
) -> tuple[Flash, bool] | None:
    """torch's varlen attention, if it is right on this GPU and for these heads.

    Returns:
        The kernel and whether it does windows; None if this GPU, these heads or this torch has no
        kernel that is right.
    """
    if head_dim > _LARGEST_HEAD or head_dim % _HEAD_MULTIPLE:
        return None
    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return None
    try:
        from torch.nn.attention.varlen import AuxRequest, varlen_attn
    except ImportError:
        return None
    return try_flash(varlen_attn, AuxRequest(lse=True), device, dtype, head_dim)


def try_flash(
    varlen: Callable[..., Any], aux: object, device: torch.device, dtype: torch.dtype, head_dim: int
) -> tuple[Flash, bool] | None:
    """A version of the kernel, if it is right: with keys that are never split, if it can do that.

    Returns:
        The kernel and whether it does windows; None if it is not right.
    """
    for whole in (True, False):
        try:
            flash = Flash(varlen, aux, whole=whole)
            is_right = all(
                flash.is_right(device, dtype, head_dim, window) for window in ((-1, 0), (-1, -1))
            )
        except Exception:  # noqa: S112 - whatever it raises means the same: not so, or not here
            continue
        if is_right:
            return flash, _does_windows(flash, device, dtype, head_dim)
    return None


def _does_windows(flash: Flash, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    heads_first = flash.heads_first
    try:
        return flash.is_right(device, dtype, head_dim, (1, 0))
    except Exception:  # whatever it raises means the same, of windows alone
        return False
    finally:
        flash.heads_first = heads_first


def _float64_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Attended [n, heads, d] and logsumexps [n, heads] of one sequence, in float64.

    Its queries [n, heads, d] are the last of its keys and values [m, 1, d].
    """
    ahead = torch.arange(len(k)) - torch.arange(len(k) - len(q), len(k))[:, None]
    before, after = (len(k) if side < 0 else side for side in window)
    scores = q.double().transpose(0, 1) @ k[:, 0].double().T * scale
    scores = scores.masked_fill((ahead > after) | (ahead < -before), -torch.inf)
    return (scores.softmax(dim=-1) @ v[:, 0].double()).transpose(0, 1), scores.logsumexp(dim=-1).T
