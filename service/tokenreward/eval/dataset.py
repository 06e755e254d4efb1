"""What every kind of data is: candidates to be scored, and a judgement once their answers are
there.

It knows no file format and no figures; each kind has a file of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tokenreward.eval.rows import DataError, Row, kind_of
from tokenreward_client.errors import BadArgument
from tokenreward_client.items import parcel

if TYPE_CHECKING:
    from tokenreward.eval.answer import Answer
    from tokenreward.eval.verdict import Verdict

PromptAs = Literal["user", "raw"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One response to be scored. `item` is a wire item that has been checked; `where` names its row
    and field.

    `needs_units`: the rewards are wanted with the characters that each stands for, not the score
    alone.
    """

    item: dict[str, Any]
    where: str
    needs_score: bool = True
    needs_units: bool = False


class Dataset(ABC):
    """Rows of one kind. `candidates` are in order of the rows; `judge` wants one answer for
    each."""

    kind: ClassVar[str]
    noun: ClassVar[str]
    """What a case is called, in the plural."""

    def __init__(self) -> None:
        self.candidates: list[Candidate] = []
        self.num_cases = 0

    def add(self, candidate: Candidate) -> int:
        """Its index."""
        self.candidates.append(candidate)
        return len(self.candidates) - 1

    @abstractmethod
    def judge(self, answers: Sequence[Answer]) -> Verdict:
        """What these answers, one per candidate, say about the scorer that gave them."""


def prompt_of(row: Row, field: str, prompt_as: PromptAs) -> str | list[dict[str, Any]]:
    """Messages as they are; text as one user message, or raw. Raises DataError."""
    value = row.get(field)
    if isinstance(value, str):
        return [{"role": "user", "content": value}] if prompt_as == "user" else value
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(message, dict) for message in value)
    ):
        raise row.wrong(field, f"must be a string or a list of messages, got {kind_of(value)}")
    return value


def candidate(
    row: Row, prompt: str | list[dict[str, Any]], response: str, *, field: str, **fields: Any
) -> Candidate:
    """A candidate whose item can be sent; `field` is where the response stands. Raises
    DataError."""
    needs = {name: fields.pop(name) for name in ("needs_score", "needs_units") if name in fields}
    item = {"prompt": prompt, "response": response, **fields}
    try:
        parcel(item, "row")
    except BadArgument as error:
        message = (
            str(error)
            .replace("`row.response", f"`{field}")
            .replace("`row.", "`")
            .replace("`row`", f"`{field}`")
        )
        raise DataError(f"{row.where}: {message}") from None
    return Candidate(item, f"{row.where}, `{field}`", **needs)
