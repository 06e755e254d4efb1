"""Attention of packed groups through torch's varlen kernel: a call or two for all of them, whatever
their number.

Versions of torch differ in what the kernel takes and gives, so it is tried on a few tokens, against
float64, before it is trusted with a model. It knows ranges and tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreward.forward.kernels import QKV, merged
from tokenreward.forward.packing import Group, Range
from tokenreward.forward.transfer import to_device

_LARGEST_HEAD = 256
_HEAD_MULTIPLE = 8
_LEAST_CAPABILITY = (8, 0)
# Keys and values that are laid out anew for windows, at a time.
_GATHERED_BYTES = 128 * 2**20

Sequences = Sequence[
    Sequence[Range]
]  # each one: its ranges of the packed sequence, one after the other


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Sequences as the kernel wants them: `tokens`, where they are in the packed sequence (a slice
    if that is in one piece: a view, no copy); `bounds` [num + 1] int32, where each begins among
    those; tokens of the longest."""

    tokens: slice | Tensor
    bounds: Tensor
    longest: int


def cuts(device: torch.device, *parts: Sequences) -> list[Cut]:
    """One cut of each part, through one copy to the device."""
    pieces = [[piece for sequence in part for piece in sequence] for part in parts]
    places = [None if _is_one_piece(ranges) else _places(ranges) for ranges in pieces]
    lengths = [
        [sum(stop - start for start, stop in sequence) for sequence in part] for part in parts
    ]
    bounds = [np.cumsum([0, *each]) for each in lengths]
    moved = iter(to_device([*bounds, *(array for array in places if array is not None)], device))
    on_device = [next(moved).to(torch.int32) for _ in parts]
    tokens = [
        slice(ranges[0][0], ranges[-1][1]) if array is None else next(moved)
        for ranges, array in zip(pieces, places, strict=True)
    ]
    return [Cut(*each) for each in zip(tokens, on_device, map(max, lengths), strict=True)]


class Flash:
    """`varlen_attn` of one version of torch. Raises TypeError for a version that takes no scale or
    window."""

    def __init__(self, varlen: Callable[..., Any], aux: object, *, whole: bool = True) -> None:
        """`aux`: what asks `varlen` for the logsumexp, too. `whole`: ask that a row's keys are
        never split."""
        takes = inspect.signature(varlen).parameters
        if not {"scale", "window_size"} <= takes.keys():
            raise TypeError("varlen_attn of this torch takes no scale and no window")
        self._varlen = varlen
        # Where the keys are split depends on the longest row of the call, and so would every row's
        # rounding.
        self._options = {"return_aux": aux} | (
            {"num_splits": 1} if whole and "num_splits" in takes else {}
        )
        self._says_grouped = "enable_gqa" in takes
        self.heads_first = True

    def __call__(
        self,
        tensors: Sequence[Tensor],
        queries: Cut,
        keys: Cut,
        *,
        scale: float,
        window: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Attended [n, heads, d] and its logsumexp [n, heads] of queries [n, heads, d], keys and
        values [m, kv_heads, d]. `window`: keys before and after the query's own place, counted from
        the end of each sequence; -1 is all."""
        q, k, v = tensors
        grouped = {"enable_gqa": q.shape[1] != k.shape[1]} if self._says_grouped else {}
        # Sequences of one query take another path in some versions, whose logsumexp is laid out
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
            **grouped,
            **self._options,
        )
        return attended, lse.transpose(0, 1) if self.heads_first else lse

    def is_right(
        self, device: torch.device, dtype: torch.dtype, head_dim: int, window: tuple[int, int]
    ) -> bool:
        """Whether it gives float64's attention on a few tokens; learns the layout of its logsumexp
        from it."""
        generator = torch.Generator().manual_seed(0)
        own, seen = ((0, 2), (2, 5)), ((0, 2), (2, 5)) if window == (-1, 0) else ((0, 4), (4, 7))
        tensors = [
            torch.randn(7, heads, head_dim, generator=generator).to(dtype) for heads in (2, 1, 1)
        ]
        q, k, v = tensors[0][:5], tensors[1][: seen[-1][1]], tensors[2][: seen[-1][1]]
        queries, keys = cuts(device, [[part] for part in own], [[part] for part in seen])
        scale = head_dim**-0.5
        self.heads_first = True
        attended, lse = self(
            [part.to(device) for part in (q, k, v)], queries, keys, scale=scale, window=window
        )
        if lse.shape != attended.shape[:2]:
            self.heads_first, lse = False, lse.transpose(0, 1)
        bound = 4 * torch.finfo(dtype).eps * float(v.abs().max())
        for mine, its in zip(own, seen, strict=True):
            exact, normaliser = _attention(
                q[slice(*mine)], k[slice(*its)], v[slice(*its)], scale, window
            )
            gaps = attended[slice(*mine)].cpu() - exact, lse[slice(*mine)].cpu() - normaliser
            if not all(gap.abs().max() <= bound for gap in gaps):  # so written, NaN is wrong, too
                return False
        return True


def find_flash(
    device: torch.device, dtype: torch.dtype, head_dim: int
) -> tuple[Flash, bool] | None:
    """The kernel and whether it does windows; None if this GPU, these heads or this torch has none
    that is right."""
    if head_dim > _LARGEST_HEAD or head_dim % _HEAD_MULTIPLE:
        return None
    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return None
    try:
        from torch.nn.attention.varlen import AuxRequest, varlen_attn
    except ImportError:
        return None
    return tried(varlen_attn, AuxRequest(lse=True), device, dtype, head_dim)


def tried(
    varlen: Callable[..., Any], aux: object, device: torch.device, dtype: torch.dtype, head_dim: int
) -> tuple[Flash, bool] | None:
    """The kernel and whether it does windows, if it gives what it should; with whole rows of keys,
    if it knows them."""
    for whole in (True, False):
        try:
            flash = Flash(varlen, aux, whole=whole)
            right = all(
                flash.is_right(device, dtype, head_dim, window) for window in ((-1, 0), (-1, -1))
            )
        except Exception:  # noqa: S112 - whatever it raises means the same: not so, or not here
            continue
        if right:
            return flash, _does_windows(flash, device, dtype, head_dim)
    return None


def _does_windows(flash: Flash, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    heads_first = flash.heads_first
    try:
        return flash.is_right(device, dtype, head_dim, (1, 0))
    except Exception:  # it means the same again, but of windows alone
        return False
    finally:
        flash.heads_first = heads_first


class VarlenKernel:
    """Two calls for all groups: each range on itself, the responses on their prompts. With a window
    one, in which each response has the end of its prompt in front. What a call needs on the device
    is made once per pass."""

    def __init__(self, flash: Flash) -> None:
        self._flash = flash
        self._groups: Sequence[Group] = ()
        self._plans: dict[int | None, _Plan | list[tuple[Cut, Cut]]] = {}

    def __call__(
        self,
        qkv: QKV,
        groups: Sequence[Group],
        scale: float,
        out: Tensor,
        window: int | None = None,
    ) -> None:
        """See `kernels.Attend`."""
        if groups is not self._groups:
            self._groups, self._plans = groups, {}
        if window is not None and max(group.longest for group in groups) <= window:
            window = None
        tokens = [tensor[0].transpose(0, 1) for tensor in qkv]
        if window is not None:
            return self._attend_within(tokens, scale, out, window)
        plan = self._plans.get(None)
        if not isinstance(plan, _Plan):
            plan = self._plans[None] = _Plan.of(groups, out.device)
        out[plan.own.tokens], own_lse = self._call(tokens, plan.own, plan.own, scale, (-1, 0))
        if plan.pair is None:
            return None
        prompt, prompt_lse = self._call(tokens, *plan.pair, scale, (-1, -1))
        places = plan.pair[0].tokens
        out[places] = merged(out[places], own_lse[plan.responses], prompt, prompt_lse)
        return None

    def _attend_within(self, tokens: list[Tensor], scale: float, out: Tensor, window: int) -> None:
        calls = self._plans.get(window)
        if not isinstance(calls, list):
            bytes_of_key = 2 * tokens[1].shape[1] * tokens[1].shape[2] * tokens[1].element_size()
            chunks = _chunks(self._groups, window, _GATHERED_BYTES // bytes_of_key)
            made = cuts(out.device, *(part for chunk in chunks for part in chunk))
            calls = self._plans[window] = list(zip(made[::2], made[1::2], strict=True))
        for queries, keys in calls:
            out[queries.tokens] = self._call(tokens, queries, keys, scale, (window - 1, 0))[0]

    def _call(
        self, tokens: list[Tensor], queries: Cut, keys: Cut, scale: float, window: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        chosen = tokens[0][queries.tokens], tokens[1][keys.tokens], tokens[2][keys.tokens]
        return self._flash(chosen, queries, keys, scale=scale, window=window)


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """Both calls of a pass without a window. `pair`: all responses of a group, on its prompt;
    `responses`: where their tokens are among those of `own`."""

    own: Cut
    pair: tuple[Cut, Cut] | None
    responses: Tensor | None

    @classmethod
    def of(cls, groups: Sequence[Group], device: torch.device) -> _Plan:
        own = [[part] for group in groups for part in (group.prompt, *group.responses)]
        shared = [group for group in groups if group.responses]
        if not shared:
            return cls(cuts(device, own)[0], None, None)
        queries = [[(group.responses[0][0], group.responses[-1][1])] for group in shared]
        made = cuts(device, own, queries, [[group.prompt] for group in shared])
        places, wanted = (_places([piece for (piece,) in part]) for part in (own, queries))
        (among,) = to_device([np.searchsorted(places, wanted)], device)
        return cls(made[0], (made[1], made[2]), among)


def _chunks(
    groups: Sequence[Group], window: int, most_keys: int
) -> Iterator[tuple[Sequences, Sequences]]:
    """Queries and keys of calls that lay out at most so many keys anew, or one sequence's."""
    queries: list[list[Range]] = []
    keys: list[list[Range]] = []
    num_keys = 0
    for group in groups:
        start, stop = group.prompt
        tail = max(start, stop - window + 1), stop
        for own, seen in [
            (group.prompt, [group.prompt]),
            *((part, [tail, part]) for part in group.responses),
        ]:
            num_seen = sum(b - a for a, b in seen)
            if queries and num_keys + num_seen > most_keys:
                yield queries, keys
                queries, keys, num_keys = [], [], 0
            queries.append([own])
            keys.append([piece for piece in seen if piece[1] > piece[0]])
            num_keys += num_seen
    yield queries, keys


def _is_one_piece(ranges: Sequence[Range]) -> bool:
    return all(before[1] == after[0] for before, after in pairwise(ranges))


def _places(ranges: Sequence[Range]) -> np.ndarray:
    return np.concatenate([np.arange(start, stop) for start, stop in ranges])


def _attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """One sequence in float64, for the trial: its queries [n, heads, d] are the last of its keys
    [m, 1, d]."""
    ahead = torch.arange(len(k)) - torch.arange(len(k) - len(q), len(k))[:, None]
    before, after = (len(k) if side < 0 else side for side in window)
    scores = q.double().transpose(0, 1) @ k[:, 0].double().T * scale
    scores = scores.masked_fill((ahead > after) | (ahead < -before), -torch.inf)
    return (scores.softmax(dim=-1) @ v[:, 0].double()).transpose(0, 1), scores.logsumexp(dim=-1).T
