"""From what a caller holds to what travels: an Item, a dict or a (prompt, response) pair becomes a
Parcel.

Token ids leave as int32 whatever they came as; arrays of any library are read through `tolist`. It
knows no HTTP and no models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenreward.errors import RequestError
from tokenreward.wire import Item, as_int32, decode_ids, parse
from tokenreward_client.errors import BadArgument
from tokenreward_client.media import JSON, Wire

ItemLike = Item | Mapping[str, Any] | tuple[Any, Any]

_PER_UNIT = ("spans", "mask", "policy_logprobs", "ref_logprobs")


@dataclass(frozen=True, slots=True)
class Parcel:
    """One item as it travels, the number of rewards it must come back with (None: the server's
    tokens decide), and whether its prompt or response is token ids."""

    written: bytes
    units: int | None
    has_ids: bool = False


def pack(items: Iterable[ItemLike], wire: Wire = JSON) -> list[Parcel]:
    """All items, in order. Raises BadArgument, naming the first item at fault."""
    if isinstance(items, (str, bytes, Mapping, Item)):
        raise BadArgument("must be a list of items; put a single one in a list", param="items")
    return [parcel(item, f"items[{index}]", wire) for index, item in enumerate(items)]


def parcel(given: ItemLike, where: str, wire: Wire = JSON) -> Parcel:
    """One item; `where` is what messages call it. Raises BadArgument."""
    fields = _fields(given, where)
    for name in ("prompt", "response"):
        if name in fields:
            fields[name] = _packed_if_ids(fields[name], wire, f"{where}.{name}")
    for name in _PER_UNIT:
        if fields.get(name) is not None:
            fields[name] = wire.vector(name, fields[name])
    try:
        item = parse(Item, fields, prefix=(where,))
    except RequestError as error:
        raise BadArgument(error.message, param=error.param) from None
    units = _units(item, where)
    has_ids = not isinstance(item.prompt, (str, list)) or not isinstance(item.response, str)
    try:
        return Parcel(wire.item(item), units, has_ids)
    except ValueError as error:  # a lone surrogate in a text, say
        raise BadArgument(
            f"the item cannot be written as {wire.name}: {error}", param=where
        ) from None


def _fields(given: ItemLike, where: str) -> dict[str, Any]:
    if isinstance(given, Item):
        return given.model_dump(exclude_unset=True)
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return {"prompt": given[0], "response": given[1]}
    message = f"must be an Item, a dict or a (prompt, response) pair, got {type(given).__name__}"
    raise BadArgument(message, param=where)


def _packed_if_ids(value: Any, wire: Wire, where: str) -> Any:
    """Ids of any kind as they travel; text and messages as they are."""
    numbers = isinstance(value, np.ndarray) and value.ndim > 0 and value.dtype.kind in "iufb"
    if hasattr(value, "tolist") and not numbers:
        value = value.tolist()
    if not numbers and (
        not isinstance(value, (list, tuple)) or (value and isinstance(value[0], (Mapping, str)))
    ):
        return value
    try:
        ids = np.asarray(value)
        if ids.ndim != 1:
            raise ValueError("they must be one flat list")
        return wire.ids(as_int32(ids))
    except ValueError as error:
        message = f"must be text, messages or token ids, and these ids cannot be sent: {error}"
        raise BadArgument(message, param=where) from None


def _units(item: Item, where: str) -> int | None:
    """Entries that the reward vector must have. Raises BadArgument if the item contradicts itself
    or ids are broken."""
    counts = {name: len(value) for name in _PER_UNIT if (value := getattr(item, name)) is not None}
    if not isinstance(item.response, str):
        try:
            counts["response"] = decode_ids(item.response, param=f"{where}.response").size
        except RequestError as error:
            raise BadArgument(error.message, param=error.param) from None
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise BadArgument(
            f"one entry per unit is needed, but the lengths differ: {listed}",
            param=where,
        )
    return next(iter(counts.values()), None)
