"""The affine map and the clip: x -> clip(scale * x + shift).

Running statistics are not offered: replicas would disagree (OpenRLHF's `normalize_reward` is this
map with scale 1/std and shift -mean/std, DeepSpeed-Chat clips the score to +-5).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from tokenreward.wire import Credit

Number = TypeVar("Number", np.float64, np.ndarray)


def apply(value: Number, credit: Credit) -> Number:
    """`credit.scale * value + credit.shift`, then limited to `credit.clip` if that is set."""
    moved = value * credit.scale + credit.shift
    return moved if credit.clip is None else np.clip(moved, credit.clip[0], credit.clip[1])
