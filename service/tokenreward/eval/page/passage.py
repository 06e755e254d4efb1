"""A response with each unit on the colour of its reward, and what is known to be wrong underlined.

Red is below zero, white is zero, green is above, as in the rest of the project; letters are black
on every colour, so that it reads the same on dark and light ground.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tokenreward.eval.answer import Units
from tokenreward.eval.page.markup import safe

_BELOW, _ZERO, _ABOVE = (221, 76, 70), (255, 255, 255), (52, 168, 83)
_NOTHING = "\N{EMPTY SET}"


def passage(
    text: str, units: Units, *, limit: float, flagged: npt.NDArray[np.bool_] | None = None
) -> str:
    """HTML of the whole response; `limit` is the |reward| at full strength."""
    names = iter(units.names)
    pieces = []
    for reward, (start, end) in zip(units.rewards.tolist(), units.spans.tolist(), strict=True):
        if end > start:
            inside = "".join(_underlined(text, flagged, start, end))
        else:
            inside = f"<i>{safe(next(names, _NOTHING) or _NOTHING)}</i>"
        pieces.append(
            f'<b title="{reward:+.4g}" style="background:{colour(reward / limit)}">{inside}</b>'
        )
    return "".join(pieces)


def largest(units: list[Units]) -> float:
    """The largest |reward| of some responses; 1 if there is none, since any scale will do then."""
    return (
        max((float(np.abs(each.rewards).max()) for each in units if len(each.rewards)), default=0.0)
        or 1.0
    )


def colour(share: float) -> str:
    """The colour of a reward that is `share` (-1 to 1) of the strongest."""
    end, weight = (_ABOVE if share > 0 else _BELOW), min(abs(share), 1.0)
    red, green, blue = (
        round(zero + weight * (far - zero)) for zero, far in zip(_ZERO, end, strict=True)
    )
    return f"#{red:02x}{green:02x}{blue:02x}"


def _underlined(
    text: str, flagged: npt.NDArray[np.bool_] | None, start: int, end: int
) -> Iterator[str]:
    if flagged is None:
        yield safe(text[start:end])
        return
    turns = start + 1 + np.flatnonzero(np.diff(flagged[start:end].astype(np.int8)))
    edges = [start, *turns.tolist(), end]
    for first, last in itertools.pairwise(edges):
        piece = safe(text[first:last])
        yield f"<u>{piece}</u>" if flagged[first] else piece
