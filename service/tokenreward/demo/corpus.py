"""The texts that the demo models read: raw documents for the base model, conversations for the
others.

A raw document is either an offer (prompt, blank line, faithful response) or the same facts written
down twice in two layouts and orders, which is dense practice in looking a value up. It does not
know tokens or models.
"""

import random

from tokenreward.demo.phrasing import render_facts
from tokenreward.demo.world import OfferPair, sample_pair

TWICE_SHARE = 0.4

Conversation = list[dict[str, str]]
"""Turns, each `{"role": ..., "content": ...}`."""


def raw_document(rng: random.Random) -> tuple[str, str]:
    """A document for the base model as context and target; it has no wrong value and no fact tuple
    that is held out."""
    pair = sample_pair(rng)
    if rng.random() < TWICE_SHARE:
        facts = dict(pair.facts)
        return f"{render_facts(facts, rng)}\n", render_facts(facts, rng)
    return f"{pair.prompt}\n\n", pair.faithful


def user_turn(pair: OfferPair) -> Conversation:
    """The prompt as a conversation."""
    return [{"role": "user", "content": pair.prompt}]


def assistant_turn(response: str) -> Conversation:
    """A response as the turn that follows."""
    return [{"role": "assistant", "content": response}]
