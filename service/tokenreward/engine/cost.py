"""How much work a request is, guessed from its texts before they are tokenised.

It decides what is worth another thread, and what a request counts for while it is tokenised. It
knows characters and no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenreward.engine.plan import Plan
from tokenreward.wire import IdsB64, Message, RewardsRequest

# In characters, of which the tokenizer reads a thousand in some 0.3 ms. An item costs as much as
# `_ITEM_CHARACTERS`, and handing work to another thread as much as `_LIGHT_CHARACTERS`.
_ITEM_CHARACTERS = 250
_LIGHT_CHARACTERS = 1500

# Options that name modes are shorter, and so is a template that shows an item once.
_LIGHT_OPTIONS_CHARACTERS = 32

_CHARACTERS_OF_A_TOKEN = 8  # more than are in one of almost any text


def has_light_options(request: RewardsRequest) -> bool:
    """Whether the request's options are read in no time: a template, for one, must be compiled."""
    values = list(request.options.values())
    for value in request.options.values():
        if isinstance(value, dict):
            values += value.values()
    return sum(len(str(value)) for value in values) <= 2 * _LIGHT_OPTIONS_CHARACTERS


def is_light(request: RewardsRequest, plans: Sequence[Plan]) -> bool:
    """Whether jobs and reply are made sooner than another thread is told of them.

    Texts among the options, the request's or the operator's, are read with every item, or show it
    many times.
    """
    items = request.items
    if request.return_tokens or len(items) * _ITEM_CHARACTERS > _LIGHT_CHARACTERS:
        return False
    if any(item.messages is not None for item in items):
        return False
    num_characters = 0
    for plan in plans:
        for name in plan.options.model_fields_set:
            num_characters += len(str(getattr(plan.options, name)))
    if num_characters > _LIGHT_OPTIONS_CHARACTERS:
        return False
    lengths = (_ITEM_CHARACTERS + _length(item.prompt) + _length(item.response) for item in items)
    return sum(lengths) <= _LIGHT_CHARACTERS


def least_num_tokens(request: RewardsRequest) -> int:
    """What a request counts for until it is tokenised: one token an item, or so few that hardly any
    text has fewer."""
    lengths = (_length(item.prompt) + _length(item.response) for item in request.items)
    return sum(max(1, length // _CHARACTERS_OF_A_TOKEN) for length in lengths)


def _length(part: Any) -> int:
    """Characters of a text, of its messages' contents or of packed ids; of a list, its ids."""
    if isinstance(part, list) and part and isinstance(part[0], Message):
        return sum(len(message.content or ()) for message in part)
    return len(part.ids_b64 if isinstance(part, IdsB64) else part)
