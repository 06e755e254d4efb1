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

from tokenreward.checkpoints.heads.head_formats import find_trunks
from tokenreward.checkpoints.heads.value_head import ValueHead
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.checkpoints.weight_files import have_equal_tensors
from tokenreward.settings import DeploymentSettings


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


def refuse_other_states(model: Any, head: ValueHead, device: torch.device) -> None:
    """Refuses a trunk whose states are not the head's input: raises CheckpointRefused.

    Whether its tokens see the ones after them is for the probe of layouts to say.
    """
    ids = torch.arange(1, 7, device=device)[None]
    with torch.inference_mode():
        width = model.base_model(input_ids=ids).last_hidden_state.shape[-1]
    if width != head.layers[0].in_features:
        raise CheckpointRefused(
            f"the value head reads {head.layers[0].in_features} numbers a token, the trunk gives "
            f"{width}"
        )
