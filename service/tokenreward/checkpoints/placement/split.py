"""Where to cut a list of layers, so that the parts fit their devices and take about equal time.

The slowest part sets the pace of a pipeline. The time of a layer goes with its parameters. The head
is on the last device: it is multiplied for the tokens of responses alone, but its logits are
written and reduced in float32. The embedding looks rows up, and takes no time. This module knows
numbers, and no modules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# Time of the head per parameter, in terms of a layer's. An estimate: a head of 128k tokens then
# counts as one and a half layers of a model of 70B.
HEAD_WEIGHT = 1.25

# The largest time of a part, and its largest share of a device's memory.
_Cost = tuple[float, float]
_NONE: _Cost = (math.inf, math.inf)


def cut(
    num_parameters: Sequence[int],
    num_bytes: Sequence[int],
    *,
    head: int = 0,
    fixed_bytes: Sequence[int],
    rooms: Sequence[float],
) -> tuple[int, ...] | None:
    """The first layer of each part, such that the slowest part takes the least time.

    Of cuts that are equal in that, it is one whose fullest device has the most room left.

    Args:
        num_parameters: Of each layer.
        num_bytes: Of each layer's weights.
        head: Parameters of the language head.
        fixed_bytes: For each device, the bytes of weights that are no layer's: the embedding on the
            first one, the head on the last one.
        rooms: For each device, the bytes that weights may take there; infinity if it is not known.

    Returns:
        As many numbers as there are devices, ascending, from 0; None if the weights do not fit, or
        if there are fewer layers than devices.
    """
    num_layers, num_devices = len(num_parameters), len(rooms)
    # best[stop]: of all cuts of the first `stop` layers over the devices so far, the best cost and
    # the starts of its parts.
    best: list[tuple[_Cost, tuple[int, ...]]] = [(_NONE, ())] * (num_layers + 1)
    best[0] = ((0.0, 0.0), ())
    for device in range(num_devices):
        is_last = device == num_devices - 1
        following: list[tuple[_Cost, tuple[int, ...]]] = [(_NONE, ())] * (num_layers + 1)
        for stop in range(device + 1, num_layers + 1):
            time, size = HEAD_WEIGHT * head * is_last, fixed_bytes[device]
            for start in range(stop - 1, device - 1, -1):
                time, size = time + num_parameters[start], size + num_bytes[start]
                if size > rooms[device]:
                    break
                share = size if math.isinf(rooms[device]) else size / rooms[device]
                (before_time, before_share), starts = best[start]
                cost = max(before_time, time), max(before_share, share)
                following[stop] = min(following[stop], (cost, (*starts, start)))
        best = following
    cost, starts = best[num_layers]
    return None if cost == _NONE or math.isinf(cost[0]) else starts
