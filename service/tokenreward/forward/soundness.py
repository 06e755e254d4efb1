"""Refuses a model whose numbers at a token depend on the tokens after it, and a map of attention
that is not the one the model mixes by.

A log-probability or a value at a token is of the prefix that ends there, so a model that looks
ahead has none. And some models give another map than they use, when they are asked for one: with a
bias twice, without their mask, or of a layer that has no attention. Both show on one random row in
the model's own forward, whatever layout serves it. This module knows no architecture by name.

A causal model may still round a prefix in other ways, for other lengths of a row: in float32 a
little, and in a coarser dtype so much that a router sends some tokens to other experts. So the
largest difference counts in float32. In another dtype it is the median over the last tokens, which
see the change even through a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.contract import Needs, Outputs, RowRequest
from tokenreward.forward.plain import PlainLayout, rope_parameters

# What rounding explains, as a share of the largest number.
_FLOAT32_ROUNDING = 1e-4
_ROUNDING_STEPS = 2  # of any other dtype
_NUM_LAST_TOKENS = 7

_DYNAMIC_ROPES = ("dynamic", "longrope")

# Fields of a configuration that say of a model that its tokens see the ones after them.
_TWO_WAY = {
    "is_decoder": False,
    "is_causal": False,
    "causal": False,
    "use_bidirectional_attention": True,
    "bidirectional": True,
    "attn_type": "bi",
}

# Fields of models whose attention takes the keys with the highest scores alone.
_CHOOSING = ("index_topk", "keep_window_size")


def refuse_unsound(checkpoint: Checkpoint, requests: Sequence[RowRequest]) -> None:
    """Refuses a model by the longest of some rows: see `refuse_look_ahead`, and `refuse_wrong_map`
    where attention is wanted. Raises CheckpointRefused."""
    longest = max(requests, key=lambda request: len(request.row.ids))
    refuse_look_ahead(checkpoint, longest)
    if longest.needs.attention:
        refuse_wrong_map(checkpoint, longest)


def refuse_look_ahead(checkpoint: Checkpoint, request: RowRequest) -> None:
    """Refuses a model whose numbers at a token change with the tokens after it.

    The row's last token is changed, and the row is cut. A cut may change the numbers of a model
    whose rotary frequencies depend on the length of a row.

    Args:
        checkpoint: The model.
        request: A long row.

    Raises:
        CheckpointRefused: Names the model, the change and, if the configuration says it, the cause.
    """
    plain, (row, needs) = PlainLayout(checkpoint), request
    needs = Needs(temperatures=needs.temperatures, values=needs.values)
    ids = row.ids.copy()
    ids[-1] = row.ids[0] if row.ids[0] != row.ids[-1] else row.ids[1]
    variants = {"its last token is another one": replace(row, ids=ids)}
    middle = (row.start + row.stop) // 2 + 1
    ropes = rope_parameters(checkpoint.text_config)
    if not any(parameters.get("rope_type") in _DYNAMIC_ROPES for parameters in ropes):
        variants["it ends earlier"] = replace(row, ids=row.ids[:middle], stop=middle)
    (whole,) = plain.run([RowRequest(row, needs)])
    for change, variant in variants.items():
        (outputs,) = plain.run([RowRequest(variant, needs)])
        # Of the tokens before the first that differs, each predicts one; the last one's is another.
        num_equal = min(row.stop - 1, variant.stop) - row.start + 1
        ours, theirs = (_first(each, num_equal) for each in (outputs, whole))
        difference, bound = _difference(checkpoint, ours, theirs)
        if not difference <= bound:  # NaN is refused, too
            kind = "values" if needs.values else "logits"
            observation = f"the {kind} of a row change by {difference:.1e} when {change}"
            raise CheckpointRefused(
                _cause(checkpoint, observation, is_cut=len(variant.ids) < len(ids))
            )


def refuse_wrong_map(checkpoint: Checkpoint, request: RowRequest) -> None:
    """Refuses a model that gives another map of attention than it mixes by.

    The map [heads, n, n] of a row has nothing above its diagonal and nothing below 0. Its rows sum
    to 1, or to less where sinks take a share. With the map, the model's last states are what they
    are without.

    Args:
        checkpoint: The model.
        request: A long row.

    Raises:
        CheckpointRefused: Names the model and the fault.
    """
    weights, with_map = PlainLayout(checkpoint).attention_map(request.row)
    rounding = _rounding(checkpoint)
    sums, name = weights.sum(dim=-1), type(checkpoint.model).__name__
    fault = None
    if float(weights.triu(1).abs().max()) > rounding:
        fault = "tokens pay attention to later tokens in it"
    elif float(weights.min()) < 0 or float(sums.max()) > 1 + rounding:
        fault = f"its rows are no distribution (their sums go up to {float(sums.max()):.3g})"
    elif float(sums.min()) < 1 - rounding and not _has_sinks(checkpoint.trunk):
        fault = f"its rows do not sum to 1 (but to {float(sums.min()):.3g})"
    elif float(sums.min()) > 1 - rounding and _has_sinks(checkpoint.trunk):
        fault = "its rows sum to 1, without the share that the layer's sinks take"
    else:
        ids = torch.from_numpy(request.row.ids).to(checkpoint.placement.first)[None]
        with torch.inference_mode():
            own = checkpoint.trunk(input_ids=ids, use_cache=False).last_hidden_state[0]
        difference, bound = _difference(
            checkpoint, with_map.float().cpu().numpy().T, own.float().cpu().numpy().T
        )
        if not difference <= bound:
            fault = f"with it, the model computes other states than without (by {difference:.1e})"
    if fault is not None:
        raise CheckpointRefused(
            f"the map of attention weights that {name} gives is not the one that it mixes by: "
            f"{fault}; a scorer of this deployment reads it"
        )


def _first(outputs: Outputs, num_tokens: int) -> np.ndarray:
    """The numbers [m, n] at the first n tokens of a response, which no later token may change."""
    if outputs.values is not None:
        return outputs.values[None, :num_tokens]
    assert outputs.chosen is not None
    # The last of these tokens predicts one that is another.
    chosen, lse = outputs.chosen[: num_tokens - 1], outputs.lse[1.0][:num_tokens]
    return np.stack([np.append(chosen, 0.0), lse])


def _difference(
    checkpoint: Checkpoint, ours: np.ndarray, theirs: np.ndarray
) -> tuple[float, float]:
    """How far numbers [m, n] of n tokens are apart, and how far rounding may take them."""
    of_tokens = np.abs(ours - theirs).max(axis=0)
    if checkpoint.model.dtype == torch.float32:
        difference = float(of_tokens.max())
    else:
        difference = float(np.median(of_tokens[-_NUM_LAST_TOKENS:]))
    return difference, _rounding(checkpoint) * max(1.0, float(np.abs(theirs).max()))


def _rounding(checkpoint: Checkpoint) -> float:
    if checkpoint.model.dtype == torch.float32:
        return _FLOAT32_ROUNDING
    return _ROUNDING_STEPS * float(torch.finfo(checkpoint.model.dtype).eps)


def _has_sinks(trunk: Any) -> bool:
    """Whether scores without a token take a share of the attention."""
    names = [name for name, _ in trunk.named_parameters()]
    return any("sink" in name for name in names)


def _cause(checkpoint: Checkpoint, observation: str, *, is_cut: bool) -> str:
    """Why a model's numbers are no numbers of a prefix, in a sentence.

    Args:
        checkpoint: The model.
        observation: What was seen.
        is_cut: Whether it was seen of a row that was cut alone, and no later token has an effect.
    """
    name = type(checkpoint.model).__name__
    fields = checkpoint.text_config.to_dict()
    chosen = [f"{field}: {fields[field]}" for field in _CHOOSING if fields.get(field)]
    if is_cut and chosen:
        return (
            f"{name} does not read a prefix as it reads the same tokens in a longer row: "
            f"{observation}; its attention chooses keys (config.json has `{chosen[0]}`), and the "
            "length of a row decides between keys with equal scores"
        )
    return f"{name} does not read from left to right: {observation}{_why(checkpoint)}"


def _why(checkpoint: Checkpoint) -> str:
    """The field of the configuration that makes a model look ahead, as the end of a sentence."""
    fields = checkpoint.text_config.to_dict()
    for name, value in _TWO_WAY.items():
        if name in fields and fields[name] == value:
            return f"; its config.json has `{name}: {str(value).lower()}`"
    return ""
