"""Loads data files as one dataset. The fields of a file's first row tell the kind of the file.

It knows which kinds there are; it asks nothing and judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tokenreward.eval.candidate import PromptAs
from tokenreward.eval.dataset import Dataset
from tokenreward.eval.kinds.best_of_n import best_of_n, is_gsm8k
from tokenreward.eval.kinds.preference import preference
from tokenreward.eval.kinds.rm_bench import rm_bench
from tokenreward.eval.kinds.tokens import tokens
from tokenreward.eval.rows import DataRow, EvalError, read_rows

KINDS: dict[str, Callable[[Sequence[DataRow], PromptAs], Dataset]] = {
    "rm-bench": rm_bench,
    "preference": preference,
    "best-of-n": best_of_n,
    "tokens": tokens,
}


def load(
    files: Sequence[Path],
    *,
    kind: str | None = None,
    prompt_as: PromptAs = "user",
    limit: int | None = None,
) -> Dataset:
    """All rows of all files as one dataset.

    Args:
        files: JSON lines or JSON arrays, all of one kind.
        kind: A key of `KINDS`; by default the first row of each file tells.
        prompt_as: What a prompt that is a string becomes, see `prompt_of`.
        limit: The most rows to take of each file, from its beginning.

    Raises:
        EvalError: A file is not what it should be; the message names file, line and field.
        OSError: A file cannot be read.
    """
    rows: list[DataRow] = []
    kinds: dict[str, Path] = {}
    for file in files:
        file_rows = read_rows(file)
        kinds.setdefault(kind or _kind_of(file_rows[0]), file)
        rows += file_rows[:limit]
    if len(kinds) > 1:
        kinds_text = ", ".join(f"{file} is {name}" for name, file in kinds.items())
        raise EvalError(f"all files of a run must be of one kind: {kinds_text}")
    return KINDS[next(iter(kinds))](rows, prompt_as)


def _kind_of(row: DataRow) -> str:
    """The name of a row's kind. Raises EvalError if its fields are of none."""
    fields = row.fields
    if "chosen" in fields and "rejected" in fields:
        return "rm-bench" if isinstance(fields["chosen"], list) else "preference"
    if is_gsm8k(row) or "responses" in fields:
        return "best-of-n"
    if "response" in fields and not {"flags", "flagged"}.isdisjoint(fields):
        return "tokens"
    names = ", ".join(f"`{name[:40]}`" for name in list(fields)[:8]) or "none"
    raise EvalError(
        f"{row.where}: the fields ({names}) are of no known kind: rm-bench and preference have "
        "`chosen` and `rejected`, best-of-n `responses` and `labels`, tokens `response` and "
        "`flagged` or `flags`"
    )
