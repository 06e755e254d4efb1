"""From bytes or plain objects to a model, and what is wrong as one of our errors.

No message quotes text that the caller sent: only numbers, sizes and names of fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tokenreward.errors import (
    InvalidField,
    MalformedBody,
    MalformedJson,
    RequestError,
    UnknownField,
    UnknownOption,
)

_UNION_TAGS = {  # what pydantic adds to a location below a field that has several forms
    "prompt": ("text", "messages", "ids", "packed_ids"),
    "response": ("text", "message", "messages", "ids", "packed_ids"),
    "content": ("str", "list[dict[str,any]]"),
    "steps": ("texts", "spans"),
}
# The same below such a field of another program's body.
_FORM = re.compile(r"str|list\[.*\]|constrained-int|_[A-Z][A-Za-z]*")
# What other programs and files call the fields of a request.
_RESPONSE = "what the policy wrote is `response`, in an entry of `items`"
_PROMPT = "what the policy answered is `prompt`, in an entry of `items`"
_PAIR = "each of the two is the `response` of an item of its own, with the same `prompt`"
_INSTEAD = {
    **dict.fromkeys(("completion", "completions", "answer", "output", "responses"), _RESPONSE),
    **dict.fromkeys(("query", "question", "instruction", "input", "inputs", "prompts"), _PROMPT),
    **dict.fromkeys(("chosen", "rejected"), _PAIR),
    "messages": "the last assistant message is `response` and those before it are `prompt`, in an "
    "entry of `items`",
    "model": "a request names a `scorer`, see GET /v1/scorers",
}
# What pydantic calls a value that is no object, and a field that the object does not have.
_NO_OBJECT = ("model_type", "model_attributes_type", "dict_type", "dataclass_type")
_EXTRA_FIELD = ("extra_forbidden", "unexpected_keyword_argument")
_ITEM = re.compile(r"items\[(\d{1,9})\]")
_MAX_NUMBER_CHARACTERS = 24
_MOST_ERRORS = 1000
_LONGEST_PATH = 200

ModelT = TypeVar("ModelT", bound=BaseModel)


def parse_json(model: type[ModelT], body: bytes) -> ModelT:
    """A request from the bytes of a JSON body.

    Raises MalformedJson, MalformedBody (not an object), UnknownField, InvalidField.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error) from None


def parse(model: type[ModelT], value: Mapping[str, Any], *, prefix: tuple[str, ...] = ()) -> ModelT:
    """A request from plain objects; `prefix` is the path at which `value` stands. Raises as
    `parse_json`."""
    try:
        return model.model_validate(dict(value))
    except ValidationError as error:
        raise refusal(error, prefix=prefix) from None


def refusal(
    error: ValidationError,
    *,
    prefix: tuple[str, ...] = (),
    unknown: type[RequestError] = UnknownField,
    instead: Mapping[str, str] = _INSTEAD,
) -> RequestError:
    """The first thing wrong, as one of our errors. Never quotes text that the caller sent, only
    numbers and sizes.

    Args:
        error: What pydantic found.
        prefix: The path at which the value stands.
        unknown: The class of error for a field that does not exist.
        instead: Fields of other programs, and what to send in their place.
    """
    if error.error_count() > _MOST_ERRORS:
        # Naming the first means making objects of all, and of all that the caller sent.
        return InvalidField(f"the request has {error.error_count()} unknown or wrong entries")
    # Without the inputs: each is made into objects once more, and may be most of the body.
    errors = error.errors(include_url=False, include_input=False)
    first, location = _best_form(errors, _first(errors, instead))
    kind = first["type"]
    if location[-1:] == ("[key]",):  # pydantic's word for a map's key that the map does not have
        location, kind = location[:-1], "extra_forbidden"
    where = path((*prefix, *location))[:_LONGEST_PATH]
    if kind == "json_invalid":
        return MalformedJson(
            f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}"
        )
    if not where and kind in _NO_OBJECT:
        return MalformedBody(f"the body must be a JSON object, got {_brief(error, 0)}")
    if kind in _EXTRA_FIELD:
        noun = "option" if unknown is UnknownOption else "field"
        message = f"unknown {noun}"
        if unknown is UnknownField and location[-1] in instead:
            message += f": {instead[str(location[-1])]}"
        return unknown(message, param=where)
    if kind == "missing":
        return InvalidField("it is required", param=where)
    message = first["msg"].removeprefix("Value error, ")
    if kind.startswith("value_error"):
        return InvalidField(message, param=where or None)
    if kind == "model_type":
        message = "must be an object"  # pydantic would name our class
    return InvalidField(f"{message}, got {_brief(error, errors.index(first))}", param=where or None)


def _first(errors: list[Any], instead: Mapping[str, str]) -> Any:
    """The first thing wrong. If that is a missing field, and beside it is one that other programs
    send in its place, then the latter."""
    first = errors[0]
    if first["type"] != "missing":
        return first
    for other in errors:
        is_beside = other["loc"][:-1] == first["loc"][:-1]
        if is_beside and other["type"] in _EXTRA_FIELD and other["loc"][-1] in instead:
            return other
    return first


def _best_form(errors: list[Any], first: Any) -> tuple[Any, tuple[int | str, ...]]:
    """An error and its location. Where a field of another program's body has several forms and a
    value fits none, it is the error of the form that the value fits furthest."""
    location = first["loc"]
    place = next((i for i, part in enumerate(location) if _FORM.fullmatch(str(part))), 0)
    beside = [error for error in errors if error["loc"][:place] == location[:place]]
    if place == 0 or len(beside) == 1:
        return first, location
    best = max(beside, key=lambda error: len(error["loc"]))
    return best, tuple(part for part in best["loc"] if not _FORM.fullmatch(str(part)))


def path(location: tuple[int | str, ...]) -> str:
    """`("items", 0, "response", "ids", 3)` as a person writes it: `items[0].response[3]`."""
    text = ""
    for previous, part in zip((None, *location), location, strict=False):
        if isinstance(part, int):
            text += f"[{part}]"
        elif part not in _UNION_TAGS.get(str(previous), ()):
            text += f".{part}" if text else part
    return text


def renumbered(param: str, positions: Sequence[int]) -> str:
    """The path of an error in a request that holds only some of its caller's items, as the caller
    counts them.

    Args:
        param: A path, such as `items[0].response`. Paths of no item are left alone, and so are
            places beyond `positions`.
        positions: Where each item of the shorter request stood in the caller's.
    """
    match = _ITEM.match(param)
    if match is None or int(match[1]) >= len(positions):
        return param
    return f"items[{positions[int(match[1])]}]{param[match.end() :]}"


def _brief(error: ValidationError, index: int) -> str:
    """What stands where the thing of this index is wrong, by its kind and size."""
    value = error.errors(include_url=False)[index]["input"]
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        number = repr(value)
        return (
            number if len(number) <= _MAX_NUMBER_CHARACTERS else f"a number of {len(number)} digits"
        )
    for kind, name in ((str, "a string"), (list, "a list"), (dict, "an object")):
        if isinstance(value, kind):
            return f"{name} of length {len(value)}"
    return type(value).__name__
