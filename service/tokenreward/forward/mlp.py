"""The MLPs of a trunk a piece of the tokens at a time: what is between their layers stays in a
CPU's cache, and a long row takes little more of a GPU's memory than its hidden states.

That a layer has an `mlp` does not mean that it treats every token by itself: a caller compares
before it trusts. It knows modules, and no rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# On a CPU, 4096 tokens at once took 8 % more of a small model's time, nearly all of it for pages of
# fresh memory. On a GPU it is for memory alone: between the layers, 32k tokens of a model of 8B at
# once would take 3 GB. Not yet timed.
PIECES = {"cpu": 512, "cuda": 8192}


def split_mlps(trunk: Any, num_tokens: int | None) -> bool:
    """Has every layer's MLP take so many tokens at a time, or all at once again if None. False if
    there is no MLP."""
    layers = getattr(trunk, "layers", None)
    mlps = (
        [getattr(layer, "mlp", None) for layer in layers]
        if isinstance(layers, nn.ModuleList)
        else []
    )
    found = [mlp for mlp in mlps if isinstance(mlp, nn.Module)]
    for mlp in found:
        vars(mlp).pop("forward", None)
        if num_tokens is not None:
            mlp.forward = partial(_in_pieces, mlp.forward, num_tokens)
    return bool(found)


def _in_pieces(
    forward: Callable[[Tensor], Tensor], num_tokens: int, hidden_states: Tensor
) -> Tensor:
    """What `forward` gives of hidden states [1, n, h]."""
    if hidden_states.shape[1] <= num_tokens:
        return forward(hidden_states)
    out = torch.empty_like(hidden_states)
    for left in range(0, hidden_states.shape[1], num_tokens):
        piece = slice(left, left + num_tokens)
        # Cut out of its [n, h], or torch would take the slower path of a batch of matrices.
        out[0, piece] = forward(hidden_states[0, piece][None])[0]
    return out
