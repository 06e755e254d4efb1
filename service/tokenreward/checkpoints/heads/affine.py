"""The affine behind a value head: the mean and std of rewards that a trainer stored beside it.

    value = (label - mean) / std

It is applied if the checkpoint says so, or else the operator (`normalize_reward`). Two trainers
store one:

| trainer | stored as | applied if |
|---|---|---|
| OpenRLHF | `mean` and `std` in config.json, or as tensors | `normalize_reward` in config.json |
| safe-rlhf | tensors `normalizer.mean` and `normalizer.var` | `do_normalize` in config.json |

safe-rlhf divides by sqrt(var) + 1e-8. Of a cost model (`score_type: cost` in config.json) it
subtracts no mean, and a critic's values it leaves as they are. This module knows no head.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenreward.checkpoints.refusal import CheckpointRefused

# Tensors of a stored normaliser: `normalizer.mean`, `normalizer.var`, ..., or `mean` and `std`.
AFFINE = re.compile(r"(?:.*normalizer\.)?(mean|std|var|count)")
_EPSILON = 1e-8  # safe-rlhf's
# What safe-rlhf's normaliser does to the scores of each type of model.
_WITHOUT_MEAN, _WITHOUT_STD = ("scale", "identity"), ("translate", "identity")
_FUNCTIONS = {"reward": "affine", "cost": "scale", "critic": "identity"}


def take_stored_affine(config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Puts a mean and a variance that are stored as tensors into the configuration, where
    `read_affine` finds them.

    Args:
        config: The checkpoint's configuration, which is changed.
        tensors: Those whose names are of the form `AFFINE`.

    Raises:
        CheckpointRefused: There are several means, one per label, and they are to be applied.
    """
    if not tensors:
        return
    if getattr(config, "normalize_reward", None) is None:
        config.normalize_reward = bool(getattr(config, "do_normalize", False))
    for name, tensor in tensors.items():
        field = name.split(".")[-1]
        if field == "count":
            continue
        if tensor.numel() != 1:
            if config.normalize_reward:
                raise CheckpointRefused(
                    f"it stores {name} of {tensor.numel()} labels; one label can be normalised"
                )
            config.mean = config.std = None
            return
        value = float(tensor)
        if field == "var":
            config.std = math.sqrt(value) + _EPSILON if value >= 0 else math.nan
        else:
            setattr(config, field, value)
    function = _FUNCTIONS.get(getattr(config, "score_type", "reward"), "affine")
    function = getattr(config, "normalize_function", function)
    if function in _WITHOUT_MEAN:
        config.mean = 0.0
    if function in _WITHOUT_STD:
        config.std = 1.0


def read_affine(config: Any) -> tuple[float, float, str]:
    """mean and std to apply, and a note on them. Raises CheckpointRefused."""
    values: dict[str, Any] = {}
    for name in ("mean", "std"):
        value = getattr(config, name, None)
        if value is not None:
            values[name] = value
    if not getattr(config, "normalize_reward", None):
        if len(values) < 2:
            return 0.0, 1.0, ""
        # OpenRLHF's trainer writes both into every reward model that it saves; using them is a flag
        # of its own.
        note = (
            f"; mean {values['mean']} and std {values['std']} of the checkpoint are not applied "
            "(`normalize_reward` is not set)"
        )
        return 0.0, 1.0, note
    if not values:
        raise CheckpointRefused(
            "`normalize_reward` is set and the checkpoint has no `mean` and `std` to normalise by"
        )
    if len(values) == 1:
        (name,) = values
        raise CheckpointRefused(f"`normalize_reward` is set and the checkpoint has only `{name}`")
    try:
        mean, std = float(values["mean"]), float(values["std"])
    except (TypeError, ValueError):
        mean, std = math.nan, math.nan
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise CheckpointRefused(
            f"`normalize_reward` is set, and of the checkpoint's mean {values['mean']!r} and std "
            f"{values['std']!r} both must be finite and std above 0"
        )
    return mean, std, f", then (value - {mean:g}) / {std:g} as `normalize_reward` says"
