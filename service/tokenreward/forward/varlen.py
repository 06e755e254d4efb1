"""The attention kernel of GPUs: a call or two of torch's varlen attention for all packed groups,
whatever their number.

This module knows groups and windows. What the calls themselves take and give is for `flash`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tokenreward.forward.flash import Flash, Ragged, Sequences, num_tokens, places_of, to_ragged
from tokenreward.forward.kernels import QKV, merge
from tokenreward.forward.packing import Group, Range, longest_row
from tokenreward.forward.transfer import to_device

# Keys and values that are laid out anew for a window, at a time.
GATHERED_BYTES = 128 * 2**20

_CAUSAL, _ALL = (-1, 0), (-1, -1)  # windows of `Flash`


class VarlenKernel:
    """Attends packed groups through a `Flash` (see `kernels.Attend`).

    Without a window there are two calls: each range on itself, and the responses on their prompts.
    With a window there is one call, in which the end of its prompt stands before each response.
    What a call needs on the device is made once per pass, by the first layer that asks.

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
        # See `_calls_without_window`.
        self._whole: tuple[Ragged, tuple[Ragged, Ragged, Tensor] | None] | None = None
        self._windows: dict[int, list[tuple[Ragged, Ragged]]] = {}

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
            self._groups, self._whole, self._windows = groups, None, {}
        tokens = [tensor[0].transpose(0, 1) for tensor in qkv]
        if window is None or max(longest_row(group) for group in groups) <= window:
            self._attend_whole(tokens, scale, out)
        else:
            self._attend_within(tokens, scale, out, window)

    def _attend_whole(self, tokens: list[Tensor], scale: float, out: Tensor) -> None:
        if self._whole is None:
            self._whole = _calls_without_window(self._groups, out.device)
        ranges, on_prompts = self._whole
        out[ranges.tokens], lse = self._call(tokens, ranges, ranges, scale, _CAUSAL)
        if on_prompts is None:
            return
        queries, keys, among = on_prompts
        prompt, prompt_lse = self._call(tokens, queries, keys, scale, _ALL)
        own = out[queries.tokens]
        out[queries.tokens] = merge(own, lse[among], prompt, prompt_lse)

    def _attend_within(self, tokens: list[Tensor], scale: float, out: Tensor, window: int) -> None:
        calls = self._windows.get(window)
        if calls is None:
            _, kv_heads, head_dim = tokens[1].shape
            bytes_of_key = 2 * kv_heads * head_dim * tokens[1].element_size()
            batches: list[Sequences] = []
            for chunk in _chunks(self._groups, window, GATHERED_BYTES // bytes_of_key):
                batches += chunk
            ragged = to_ragged(out.device, *batches)
            calls = self._windows[window] = list(zip(ragged[::2], ragged[1::2], strict=True))
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


def _calls_without_window(
    groups: Sequence[Group], device: torch.device
) -> tuple[Ragged, tuple[Ragged, Ragged, Tensor] | None]:
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
