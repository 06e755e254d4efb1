"""Reads the facts out of a response that a model wrote, and compares them with the prompt's.

This is the truth of the demo world, for which no model is asked.

A response is read with the sentences that responses are made of. It does not know tokens or models.
"""

import re
from functools import cache
from itertools import product

from tokenreward.demo.phrasing import JOB_SENTENCES, TERMS_SENTENCES
from tokenreward.demo.world import OfferPair

# No value has any of these in it.
_VALUE = r"[^.,\n]+?"


def stated_facts(response: str) -> dict[str, str] | None:
    """The value of each field that a response states; None if it is malformed: not one or two
    sentences of this world."""
    for pattern in _patterns():
        match = pattern.fullmatch(response.strip())
        if match is not None:
            return match.groupdict()
    return None


def num_right(pair: OfferPair, response: str) -> tuple[int, int]:
    """How many facts a response has right, and how many it states: (0, 0) if it is malformed.

    A field that the prompt does not have is stated wrongly.
    """
    facts, stated = dict(pair.facts), stated_facts(response) or {}
    right = [field for field, value in stated.items() if facts.get(field) == value]
    return len(right), len(stated)


@cache
def _patterns() -> list[re.Pattern[str]]:
    """Every response of the world as a pattern with a group per field, the longest first. The two
    sentences of a response share no field."""
    both = [f"{job} {terms}" for job, terms in product(JOB_SENTENCES, TERMS_SENTENCES)]
    return [
        re.compile(re.sub(r"\\{(\w+)\\}", rf"(?P<\1>{_VALUE})", re.escape(template)))
        for template in (*both, *JOB_SENTENCES, *TERMS_SENTENCES)
    ]
