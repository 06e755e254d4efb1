"""A response as HTML: each unit on the colour of its reward, known faults underlined.

It knows one response and nothing of the page around it.
"""

from __future__ import annotations

import itertools

import numpy as np

from tokenreward.display import NO_TEXT, colour_of, safe_html
from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.statistics import Bools


def response_html(
    text: str, answer: CandidateAnswer, *, strongest: float, flagged: Bools | None = None
) -> str:
    """HTML of the whole response.

    Args:
        text: The response.
        answer: Its answer, with units; their spans are in order and tile the text.
        strongest: The |reward| that gets the full colour.
        flagged: Which characters are known to be wrong, [characters]; by default none is marked.
    """
    rewards, spans = answer.require_units()
    names = iter(answer.names)
    pieces = []
    for reward, (start, end) in zip(rewards.tolist(), spans.tolist(), strict=True):
        if end == start:
            content = f"<i>{safe_html(next(names, '') or NO_TEXT)}</i>"
        elif flagged is None:
            content = safe_html(text[start:end])
        else:
            content = _underlined(text[start:end], flagged[start:end])
        colour = "#{:02x}{:02x}{:02x}".format(*colour_of(reward / strongest))
        pieces.append(f'<b title="{reward:+.4g}" style="background:{colour}">{content}</b>')
    return "".join(pieces)


def _underlined(text: str, flagged: Bools) -> str:
    """HTML of a text that is not empty, its flagged characters underlined."""
    changes = 1 + np.flatnonzero(np.diff(flagged.astype(np.int8)))
    runs = []
    for first, last in itertools.pairwise([0, *changes.tolist(), len(text)]):
        run = safe_html(text[first:last])
        runs.append(f"<u>{run}</u>" if flagged[first] else run)
    return "".join(runs)
