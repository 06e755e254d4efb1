"""How much work a request is, guessed from its texts before they are tokenised.

The guess decides what is worth another thread, and what a request counts for while it is tokenised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenreward.contract import MAX_OPTION_CHARACTERS
from tokenreward.engine.plan import Plan
from tokenreward.errors import InvalidField
from tokenreward.wire import Message, RewardsRequest

# Costs are in characters. The tokenizer reads 1000 of them in about 0.3 ms. Each item adds a fixed
# cost, and handing work to another thread costs as much as `_THREAD_CHARACTERS`.
_ITEM_CHARACTERS = 250
_THREAD_CHARACTERS = 1500

# Options of one scorer that are no longer than this are names of modes and numbers, or a template
# that shows the item once.
_SHORT_OPTIONS_CHARACTERS = 32

_BITS_OF_A_DIGIT = 3  # and a bit more
_CHARACTERS_OF_A_TOKEN = 8  # almost every token has fewer
_MESSAGE_BYTES = 32  # of its role, and of what a template writes around it

# What each scorer after the first adds to a pass that all of them share, as the share of a pass
# over the response: its signals, its credit, its part of the reply, and the sums of the language
# model's head at a temperature of its own. With 255 more labels, each at another temperature, 8
# items of the demo took 18 times as long and 64 items 6 times; with equal options 3 times.
_SCORERS_OF_A_PASS = 16


def refuse_long_options(request: RewardsRequest) -> None:
    """Raises InvalidField if the texts of a request's options are too long together: they are sent
    once, and written for every item."""
    num_characters = 0
    values: list[Any] = [request.options]
    while values:
        value = values.pop()
        if isinstance(value, str):
            num_characters += len(value)
        elif isinstance(value, int):
            num_characters += value.bit_length() // _BITS_OF_A_DIGIT
        elif isinstance(value, dict):
            values += [*value, *value.values()]
        elif isinstance(value, list):
            values += value
    if num_characters > MAX_OPTION_CHARACTERS:
        raise InvalidField(
            f"the texts of the options have {num_characters} characters together, the limit is "
            f"{MAX_OPTION_CHARACTERS} (`max_option_characters`)",
            param="options",
        )


def has_short_options(request: RewardsRequest) -> bool:
    """Whether the request's options are checked at once: a template must be compiled first."""
    num_characters = 0
    for value in request.options.values():
        values = value.values() if isinstance(value, dict) else [value]
        num_characters += sum(len(str(leaf)) for leaf in values)
    return num_characters <= _SHORT_OPTIONS_CHARACTERS * len(request.names)


def is_light(request: RewardsRequest, plans: Sequence[Plan]) -> bool:
    """Whether making jobs and results takes less time than handing them to another thread.

    Long texts among the options, the request's or the operator's, make it heavy: they are tokenised
    again for each item, or show the item many times.
    """
    items = request.items
    if request.return_tokens or any(item.has_messages for item in items):
        return False
    num_characters = 0
    for plan in plans:
        for name in plan.options.model_fields_set:
            num_characters += len(str(getattr(plan.options, name)))
    if num_characters > _SHORT_OPTIONS_CHARACTERS:
        return False
    lengths = (_ITEM_CHARACTERS + _length(item.prompt) + _length(item.response) for item in items)
    return sum(lengths) * len(plans) <= _THREAD_CHARACTERS


def least_num_tokens(request: RewardsRequest) -> int:
    """A lower bound on what the request counts for in the queue: a token for every eight
    characters, at least one for each item, and what its scorers add."""
    num_tokens = 0
    for item in request.items:
        response = _length(item.response) // _CHARACTERS_OF_A_TOKEN
        length = _length(item.prompt) + _length(item.response)
        num_tokens += max(1, length // _CHARACTERS_OF_A_TOKEN)
        num_tokens += extra_tokens(response, num_scorers=len(request.names))
    return num_tokens


def may_have_more_tokens(request: RewardsRequest, limit: int) -> bool:
    """Whether the request may count for more tokens than the limit: if there were a token for every
    byte of its texts, of the options for each item, and all of it for each scorer.

    Counting ends at the limit. Items may share one text of megabytes, which thousands of them would
    have counted again.
    """
    num_tokens = 0
    option_bytes = len(str(request.options)) - len("{}")
    for item in request.items:
        num_bytes = _num_bytes(item.prompt) + _num_bytes(item.response) + option_bytes
        num_tokens += num_bytes * len(request.names)
        if num_tokens > limit:
            return True
    return False


def extra_tokens(num_response_tokens: int, *, num_scorers: int) -> int:
    """What the scorers of a request after the first add to an item's work, in tokens of a pass.

    Rows that a scorer has read for itself alone are not in it: they have tokens of their own.
    """
    return num_response_tokens * (num_scorers - 1) // _SCORERS_OF_A_PASS


def _num_bytes(part: Any) -> int:
    """Bytes of a text or of messages, with what a template writes around each; the number of
    ids."""
    if isinstance(part, str):
        return len(part.encode("utf-8", "surrogatepass"))
    if isinstance(part, list) and part and isinstance(part[0], Message):
        return sum(_MESSAGE_BYTES + len(str(message.content).encode()) for message in part)
    return _length(part)


def _length(part: Any) -> int:
    """Characters of a text, of the contents of messages or of packed ids; the number of other
    ids."""
    if isinstance(part, list) and part and isinstance(part[0], Message):
        return sum(len(message.content or ()) for message in part)
    if isinstance(part, dict):
        part = part["ids_b64"]
    return len(part)
