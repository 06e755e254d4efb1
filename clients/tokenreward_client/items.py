"""From what a caller holds to what travels: an Item, a dict or a (prompt, response) pair becomes
bytes.

Token ids leave as int32, whatever they came as; arrays of any library are read through `tolist`.
This module knows no HTTP and no models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tokenreward.errors import RequestError, path_below
from tokenreward.wire import IntArray, Item, as_int32, decode_ids, parse
from tokenreward_client.errors import BadArgument
from tokenreward_client.media import WireName, ids_field, vector_field, write_item

ItemLike = Item | Mapping[str, Any] | tuple[Any, Any]

_PER_UNIT = ("spans", "mask", "policy_logprobs", "ref_logprobs")


def encode_items(
    items: Iterable[ItemLike], wire: WireName = "json"
) -> tuple[list[bytes], list[int | None], bool]:
    """Check and encode all items, in order.

    Returns:
        The bytes of each item; the number of rewards that must come back for each, None if the
        server's tokens decide; whether any item has token ids.

    Raises:
        BadArgument: An item cannot be sent. `param` names the first that cannot:
            `items[3].mask[1]`.
    """
    if isinstance(items, (str, bytes, Mapping, Item)):
        raise BadArgument("must be a list of items; put a single one in a list", param="items")
    contents, nums_units, has_ids = [], [], False
    for index, item in enumerate(items):
        try:
            content, num_units, item_has_ids = encode_item(item, wire)
        except BadArgument as error:
            error.param = path_below(f"items[{index}]", error.param)
            raise
        contents.append(content)
        nums_units.append(num_units)
        has_ids = has_ids or item_has_ids
    return contents, nums_units, has_ids


def check_item(item: ItemLike) -> None:
    """Check that an item can be sent, and send nothing.

    Raises:
        BadArgument: It cannot. `param` is the path of the field at fault within the item, for
            example `response` or `spans[2]`; None if no single field is at fault.
    """
    encode_item(item)


def encode_item(item: ItemLike, wire: WireName = "json") -> tuple[bytes, int | None, bool]:
    """Check and encode one item: its bytes, the number of its rewards, and whether it has ids, as
    `encode_items` has them. Raises BadArgument, as `check_item`."""
    fields = _fields(item)
    # The lengths of all that has one entry per unit, counted before anything is encoded.
    lengths: dict[str, int] = {}
    for name in ("prompt", "response"):
        if name not in fields:
            continue
        fields[name] = _without_foreign_arrays(fields[name])
        ids = _token_ids(fields[name], param=name)
        if ids is not None:
            fields[name] = ids_field(ids, wire)
            if name == "response":
                lengths[name] = len(ids)
    for name in ("prompt", "response", "steps", "tools"):
        if isinstance(fields.get(name), (list, tuple)):  # of messages, steps or spans
            entries = fields[name]
            fields[name] = [list(each) if isinstance(each, tuple) else each for each in entries]
    for name in _PER_UNIT:
        if fields.get(name) is not None:
            fields[name] = vector_field(name, fields[name], wire)
    try:
        checked = parse(Item, fields)
        if isinstance(checked.response, dict) and "response" not in lengths:
            lengths["response"] = len(decode_ids(checked.response, param="response"))
    except RequestError as error:
        raise BadArgument(error.message, param=error.param) from None
    if checked.whole == "sequence":
        # The prompt's tokens have rewards, too, and the first token of all has one by some models.
        lengths.pop("response", None)
    for name in _PER_UNIT:
        if getattr(checked, name) is not None:
            lengths[name] = len(getattr(checked, name))
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise BadArgument(f"one entry per unit is needed, but the lengths differ: {counts}")
    try:
        content = write_item(checked, wire)
    except ValueError as error:  # a lone surrogate in a text, say
        raise BadArgument(f"the item cannot be written as {wire}: {error}") from None
    is_text = isinstance(checked.prompt, (str, list)) and isinstance(checked.response, str)
    return content, next(iter(lengths.values()), None), not is_text


def _fields(item: ItemLike) -> dict[str, Any]:
    if isinstance(item, Item):
        return item.model_dump(exclude_unset=True)
    if isinstance(item, Mapping):
        return dict(item)
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return {"prompt": item[0], "response": item[1]}
    raise BadArgument(
        f"must be an Item, a dict or a (prompt, response) pair, got {type(item).__name__}"
    )


def _without_foreign_arrays(value: Any) -> Any:
    """Any array but a numpy array of numbers as a list: one of messages, or on a device."""
    is_numeric = isinstance(value, np.ndarray) and value.ndim > 0 and value.dtype.kind in "iufb"
    if is_numeric or not hasattr(value, "tolist"):
        return value
    return value.tolist()


def _token_ids(value: Any, *, param: str) -> IntArray | None:
    """The value of a prompt or response as int32 ids [n]; None if it is text, messages or base64.

    What is none of these either is for the models to refuse. Raises BadArgument for ids that cannot
    be sent.
    """
    if not isinstance(value, (list, tuple, np.ndarray)):
        return None
    if len(value) > 0 and isinstance(value[0], (Mapping, str)):
        return None
    try:
        ids = np.asarray(value)
        if ids.ndim != 1:
            raise ValueError("they must be one flat list")
        return as_int32(ids)
    except ValueError as error:
        message = f"must be text, messages or token ids, and these ids cannot be sent: {error}"
        raise BadArgument(message, param=param) from None
