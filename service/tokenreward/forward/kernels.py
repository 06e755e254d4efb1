"""Attention kernels for packed groups, where scale and causality are all that shapes the scores.

A kernel attends each range of a group on itself, causally, and the responses of a group on their
prompt. The two halves of a response's attention are merged by their logsumexps (Juravsky et al.
2024, "Hydragen", 2402.05099). On a CPU there is a call for each range; on a GPU there are a call or
two of torch's varlen attention for all groups, whatever their number. What these calls take and
give is for `flash`. This module knows ranges and tensors. Scores that a soft-cap or sinks shape go
another way (`attention_weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tokenreward.forward.flash import Flash, Ragged, Sequences, num_tokens, places_of, to_ragged
from tokenreward.forward.packing import Group, Range, longest_row
from tokenreward.forward.transfer import to_device

QKV = tuple[Tensor, Tensor, Tensor]  # queries [1, heads, n, d], keys and values [1, kv_heads, n, d]

# A kernel (qkv, groups, scale, out) writes the attended values, out [n, heads, d], at the places of
# the groups, and nowhere else.
Attend = Callable[..., None]

# Keys and values that are laid out anew for a window, at a time.
GATHERED_BYTES = 128 * 2**20

_CAUSAL, _ALL = (-1, 0), (-1, -1)  # windows of `Flash`

# See `_calls_without_window`.
_WholeCalls = tuple[Ragged, tuple[Ragged, Ragged, Tensor] | None]


def merge(own: Tensor, own_lse: Tensor, prompt: Tensor, prompt_lse: Tensor) -> Tensor:
    """Softmax attention over two sets of keys, from the attention over each set alone.

    With s = sigmoid(prompt_lse - own_lse), the share of the prompt's keys in the joint softmax:
    s * prompt + (1 - s) * own.

    Args:
        own: Attended over the first set, [..., d].
        own_lse: logsumexp of its scores, [...], float32.
        prompt: Attended over the second set, [..., d].
        prompt_lse: logsumexp of its scores, [...], float32.
    """
    share = torch.sigmoid(prompt_lse - own_lse)[..., None]
    # The operators compute in float32 by promotion, so half-precision tensors are not written out
    # as float32 first.
    return torch.addcmul(prompt * share, own, 1 - share, out=torch.empty_like(own))


def attend_on_cpu(qkv: QKV, groups: Sequence[Group], scale: float, out: Tensor) -> None:
    """A kernel with one fused call per range."""
    for prompt, *responses in groups:
        out[slice(*prompt)] = _flash(qkv, prompt, prompt, scale)[0]
        if not responses:
            continue
        # All responses of a group meet its prompt in one call: they follow one another.
        first, last = responses[0][0], responses[-1][1]
        on_prompt, on_prompt_lse = _flash(qkv, (first, last), prompt, scale)
        for start, stop in responses:
            own, own_lse = _flash(qkv, (start, stop), (start, stop), scale)
            part = slice(start - first, stop - first)
            out[start:stop] = merge(own, own_lse, on_prompt[part], on_prompt_lse[part])


def _flash(qkv: QKV, queries: Range, keys: Range, scale: float) -> tuple[Tensor, Tensor]:
    """Attended [m, heads, d] and logsumexps [m, heads] of a range of queries.

    A range is causal on itself; on another range, it attends to all of it.
    """
    ranges = (queries, keys, keys)
    q, k, v = (tensor[:, :, slice(*part)] for tensor, part in zip(qkv, ranges, strict=True))
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    attended, lse = flash(q, k, v, 0.0, queries == keys, scale=scale)
    return attended[0].transpose(0, 1), lse[0].transpose(0, 1)


def attend_alone(qkv: QKV, groups: Sequence[Group], scale: float, out: Tensor) -> None:
    """A kernel for whole rows only, through torch's own choice.

    It serves where no kernel gives a logsumexp, by which responses could be merged with a prompt.
    """
    for ((start, stop),) in groups:
        q, k, v = (tensor[0, :, start:stop] for tensor in qkv)
        # Of torch's fused kernels, the one for float32 on a GPU does not know grouped heads, and
        # without a fused kernel there is a map [heads, n, n]. So each key head is a batch of its
        # own, which the heads of its queries see without a copy of it.
        q = q.view(k.shape[0], q.shape[0] // k.shape[0], *q.shape[1:])
        k, v = (tensor[:, None].expand(-1, q.shape[1], -1, -1) for tensor in (k, v))
        sdpa = functional.scaled_dot_product_attention
        attended = sdpa(q, k, v, is_causal=True, scale=scale).permute(2, 0, 1, 3)
        out[start:stop].view(attended.shape).copy_(attended)


class VarlenKernel:
    """Attends packed groups through a `Flash` (see `kernels.Attend`).

    Without a window there are two calls: each range on itself, and the responses on their prompts.
    With a window there is one call, in which the end of its prompt stands before each response.
    What a call needs on a device is made once per pass, by the first layer there that asks.

    Args:
        flash: The call.
        windows: Whether the call does windows.

    Attributes:
        windows: Whether it takes `window`: how many tokens each token may see, itself included.
    """

    def __init__(self, flash: Flash, *, windows: bool = False) -> None:
        self._flash = flash
        self.windows = windows
        self._groups: Sequence[Group] = ()
        # Layers of one pass may be on several devices, and each device has its own tensors.
        self._whole: dict[torch.device, _WholeCalls] = {}
        self._windows: dict[tuple[torch.device, int], list[tuple[Ragged, Ragged]]] = {}

    def __call__(
        self,
        qkv: QKV,
        groups: Sequence[Group],
        scale: float,
        out: Tensor,
        window: int | None = None,
    ) -> None:
        """Writes the attended values [n, heads, d] of the groups to their places in `out`."""
        if groups is not self._groups:
            self._groups, self._whole, self._windows = groups, {}, {}
        tokens = [tensor[0].transpose(0, 1) for tensor in qkv]
        if window is None or max(longest_row(group) for group in groups) <= window:
            self._attend_whole(tokens, scale, out)
        else:
            self._attend_within(tokens, scale, out, window)

    def _attend_whole(self, tokens: list[Tensor], scale: float, out: Tensor) -> None:
        calls = self._whole.get(out.device)
        if calls is None:
            calls = self._whole[out.device] = _calls_without_window(self._groups, out.device)
        ranges, on_prompts = calls
        out[ranges.tokens], lse = self._call(tokens, ranges, ranges, scale, _CAUSAL)
        if on_prompts is None:
            return
        queries, keys, among = on_prompts
        prompt, prompt_lse = self._call(tokens, queries, keys, scale, _ALL)
        own = out[queries.tokens]
        out[queries.tokens] = merge(own, lse[among], prompt, prompt_lse)

    def _attend_within(self, tokens: list[Tensor], scale: float, out: Tensor, window: int) -> None:
        calls = self._windows.get((out.device, window))
        if calls is None:
            _, kv_heads, head_dim = tokens[1].shape
            bytes_of_key = 2 * kv_heads * head_dim * tokens[1].element_size()
            batches: list[Sequences] = []
            for chunk in _chunks(self._groups, window, GATHERED_BYTES // bytes_of_key):
                batches += chunk
            ragged = to_ragged(out.device, *batches)
            calls = list(zip(ragged[::2], ragged[1::2], strict=True))
            self._windows[out.device, window] = calls
        for queries, keys in calls:
            out[queries.tokens] = self._call(tokens, queries, keys, scale, (window - 1, 0))[0]

    def _call(
        self,
        tokens: list[Tensor],
        queries: Ragged,
        keys: Ragged,
        scale: float,
        window: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        qkv = tokens[0][queries.tokens], tokens[1][keys.tokens], tokens[2][keys.tokens]
        return self._flash(qkv, queries, keys, scale=scale, window=window)


def _calls_without_window(groups: Sequence[Group], device: torch.device) -> _WholeCalls:
    """Both calls of a pass without a window.

    Returns:
        Every range, for the call of each on itself. And for the call of responses on their prompts:
        all responses of a group as one sequence of queries, its prompt as their keys, and where the
        tokens of these queries are among those of the first call; None if no group has responses.
    """
    own = [part for group in groups for part in group]
    families = [group for group in groups if len(group) > 1]
    if not families:
        return to_ragged(device, [[part] for part in own])[0], None
    responses = [(group[1][0], group[-1][1]) for group in families]
    prompts = [group[0] for group in families]
    own_call, queries, keys = to_ragged(
        device,
        [[part] for part in own],
        [[part] for part in responses],
        [[part] for part in prompts],
    )
    among = np.searchsorted(places_of(own), places_of(responses))
    return own_call, (queries, keys, to_device([among], device)[0])


def _chunks(
    groups: Sequence[Group], window: int, most_keys: int
) -> Iterator[tuple[Sequences, Sequences]]:
    """Queries and keys of the calls with a window: each lays out at most so many keys anew, or the
    keys of one sequence."""
    queries: list[list[Range]] = []
    keys: list[list[Range]] = []
    num_keys = 0
    for prompt, *responses in groups:
        start, stop = prompt
        tail = max(start, stop - window + 1), stop  # all of the prompt that a response can see
        sequences = [(prompt, [prompt])]
        sequences += [(part, [tail, part]) for part in responses]
        for own, visible in sequences:
            num_visible = num_tokens(visible)
            if queries and num_keys + num_visible > most_keys:
                yield queries, keys
                queries, keys, num_keys = [], [], 0
            queries.append([own])
            keys.append([piece for piece in visible if piece[1] > piece[0]])
            num_keys += num_visible
    yield queries, keys
