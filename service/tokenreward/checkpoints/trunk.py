"""The trunk of a reward model: where it is among the tensors of a checkpoint, and whether its
states are what a value head reads.

It knows no heads but by the numbers that they read, and no architecture by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from tokenreward.checkpoints.head_formats import find_trunks
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.checkpoints.value_head import ValueHead
from tokenreward.checkpoints.weight_files import have_equal_tensors
from tokenreward.settings import DeploymentSettings

_NUM_CAUSAL_TOKENS = 6


def find_trunk(
    config: Any, settings: DeploymentSettings, file_of: Mapping[str, Path]
) -> tuple[dict[str, str] | None, set[str]]:
    """Where the trunk is among a checkpoint's tensors.

    Returns:
        transformers' `key_mapping` that cuts off what its names begin with, or None; and the names
        of equal copies of the trunk, which are not read.

    Raises:
        CheckpointRefused: There are several trunks that differ, or none where the operator says.
    """
    try:
        with torch.device("meta"):
            skeleton = AutoModel.from_config(config, trust_remote_code=settings.trust_remote_code)
    except Exception:  # remote code of any kind, which may have no class for the trunk alone
        return None, set()
    names = set(skeleton.state_dict())
    prefixes = find_trunks(file_of, names)
    chosen = None if settings.head is None else settings.head.trunk_prefix
    if chosen is not None:
        (prefix,) = find_trunks(file_of, names, chosen)
    elif not prefixes:
        return None, set()
    elif len(prefixes) == 1 or have_equal_tensors(file_of, prefixes, names):
        prefix = prefixes[0]
    else:
        raise CheckpointRefused(
            f"it holds several trunks, {', '.join(prefixes)}, which differ; `head: "
            "{trunk_prefix: ...}` says which is meant"
        )
    copies = [other for other in prefixes if other != prefix]
    others = {name for name in file_of if copies and name.startswith(tuple(copies))}
    others -= {name for name in file_of if prefix and name.startswith(prefix)}
    if prefix in ("", f"{skeleton.base_model_prefix}."):
        return None, others
    return {rf"^{re.escape(prefix)}": ""}, others


def refuse_unreadable(model: Any, head: ValueHead, device: torch.device) -> None:
    """Refuses a trunk whose states are not the head's input, or where a token sees the tokens after
    it: then the value at a token is no judgement of the prefix that ends there.

    Two rows that differ in their last token must have equal states before it, up to rounding.
    """
    ids = torch.arange(1, _NUM_CAUSAL_TOKENS + 1, device=device)[None]
    other = ids.clone()
    other[0, -1] = 0
    with torch.inference_mode():
        states = model.base_model(input_ids=ids).last_hidden_state[0].float()
        other_states = model.base_model(input_ids=other).last_hidden_state[0].float()
    if states.shape[-1] != head.layers[0].in_features:
        raise CheckpointRefused(
            f"the value head reads {head.layers[0].in_features} numbers a token, the trunk gives "
            f"{states.shape[-1]}"
        )
    rounding = max(1e-4, 8 * float(torch.finfo(model.dtype).eps))
    bound = rounding * max(1.0, float(states.abs().max()))
    difference = float((states - other_states)[:-1].abs().max())
    if not difference <= bound:  # NaN is refused, too
        raise CheckpointRefused(
            f"{type(model).__name__} is no decoder: its tokens see the ones after them (states "
            f"differ by {difference:.1e}), and have no value of the text so far"
        )
