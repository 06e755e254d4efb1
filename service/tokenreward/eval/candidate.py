"""One response of a data file that is to be scored, as an item that the service accepts.

It knows rows and the client's check of an item; it knows no kinds of data and no answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenreward.errors import InvalidField, described
from tokenreward.eval.conversation import Prompt, PromptAs, kind_of, messages_of
from tokenreward.eval.rows import DataRow, EvalError
from tokenreward.eval.statistics import Bools
from tokenreward_client.errors import BadArgument
from tokenreward_client.items import check_item


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One response to be scored, and what the data file says of its worth.

    Attributes:
        item: An item that has been checked.
        where: Its row and field, for messages.
        needs_score: The score is needed.
        needs_units: The rewards are needed, with the characters that each stands for.
        needs_steps: A score of each of the item's `steps` is needed.
        is_right: Whether the response as a whole is right; None if the file does not say.
        flags: What is wrong in the response: a flag per span of the item, or per character where
            the item has no spans of its own. None if the file does not say.
    """

    item: dict[str, Any]
    where: str
    needs_score: bool = True
    needs_units: bool = False
    needs_steps: bool = False
    is_right: bool | None = None
    flags: Bools | None = None

    def require_flags(self) -> Bools:
        """`flags`. Raises ValueError if the file does not say."""
        if self.flags is None:
            raise ValueError(f"{self.where}: this response has no flags")
        return self.flags

    @property
    def character_flags(self) -> Bools | None:
        """Which characters of the response are known to be wrong, [characters]; None if the file
        does not say."""
        if self.flags is None or "spans" not in self.item:
            return self.flags
        return np.repeat(self.flags, [end - start for start, end in self.item["spans"]])


def prompt_of(row: DataRow, field: str, prompt_as: PromptAs) -> Prompt:
    """The prompt in a field of a row.

    Args:
        row: The row.
        field: The name of the field: a string, or a list of messages.
        prompt_as: What a string becomes: one user message (`user`), or itself (`raw`).

    Raises:
        EvalError: The field is missing, or neither a string nor a list of messages.
    """
    value = row.get(field)
    if isinstance(value, str):
        return value if prompt_as == "raw" else [{"role": "user", "content": value}]
    is_list = isinstance(value, list) and bool(value)
    if not is_list or not all(isinstance(message, dict) for message in value):
        raise row.wrong(field, f"must be a string or a list of messages, got {kind_of(value)}")
    try:
        return messages_of(value, field)
    except InvalidField as error:
        raise row.wrong(error.param or field, error.message) from None


def candidate(
    row: DataRow,
    prompt: Prompt,
    response: str,
    *,
    field: str,
    spans: list[list[int]] | None = None,
    steps: list[list[int]] | None = None,
) -> Candidate:
    """A candidate whose item can be sent.

    It needs a score and no units, and nothing is said of its worth: a kind that needs more
    replaces those fields.

    Args:
        row: The row that it stands in.
        prompt: Text or messages.
        response: Text.
        field: Where in the row the response stands, for messages: `chosen[1]`.
        spans: Character spans that tile the response; by default the scorer's tokens are its units.
        steps: Character spans of its steps; by default the scorer finds the steps, if it needs any.

    Raises:
        EvalError: The service would refuse the item.
    """
    item: dict[str, Any] = {"prompt": prompt, "response": response}
    if not isinstance(prompt, str):
        # What TRL's rows have for the chat template; a column without a value is none.
        for name in ("tools", "chat_template_kwargs"):
            if row.fields.get(name):
                item[name] = row.fields[name]
    if spans is not None:
        item["spans"] = spans
    if steps is not None:
        item["steps"] = steps
    try:
        check_item(item)
    except BadArgument as error:
        # An error about the response, or about the item as a whole, stands in the response's field.
        path = error.param or field
        if path.startswith("response"):
            path = field + path.removeprefix("response")
        raise EvalError(f"{row.where}: {described(str(error.args[0]), path)}") from None
    return Candidate(item, f"{row.where}, `{field}`")
