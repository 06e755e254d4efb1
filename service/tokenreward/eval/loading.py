"""Files to a dataset: which kind they are is seen in the fields of their first row, unless it is
said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tokenreward.eval.best_of_n import BestOfN, is_gsm8k
from tokenreward.eval.dataset import Dataset, PromptAs
from tokenreward.eval.preference import Preference
from tokenreward.eval.rm_bench import RmBench
from tokenreward.eval.rows import DataError, Row, read_rows
from tokenreward.eval.tokens import Tokens

_Maker = Callable[[Sequence[Row], PromptAs], Dataset]

KINDS: dict[str, _Maker] = {
    RmBench.kind: RmBench,
    Preference.kind: Preference,
    BestOfN.kind: BestOfN,
    Tokens.kind: Tokens,
}


def load(
    files: Sequence[Path],
    *,
    kind: str | None = None,
    prompt_as: PromptAs = "user",
    limit: int | None = None,
) -> Dataset:
    """All rows of all files as one dataset; `limit`: no more than so many rows of each file.

    Raises DataError, which names file, line and field, and OSError.
    """
    rows: list[Row] = []
    kinds: dict[str, Path] = {}
    for file in files:
        found = read_rows(file)
        kinds.setdefault(kind or _kind(found[0]), file)
        rows += found[:limit]
    if len(kinds) > 1:
        listed = ", ".join(f"{file} is {name}" for name, file in kinds.items())
        raise DataError(f"all files of a run must be of one kind: {listed}")
    return KINDS[next(iter(kinds))](rows, prompt_as)


def _kind(row: Row) -> str:
    fields = row.fields
    if "chosen" in fields and "rejected" in fields:
        return RmBench.kind if isinstance(fields["chosen"], list) else Preference.kind
    if is_gsm8k(row) or "responses" in fields:
        return BestOfN.kind
    if "response" in fields and not {"flags", "flagged"}.isdisjoint(fields):
        return Tokens.kind
    named = ", ".join(f"`{name[:40]}`" for name in list(fields)[:8]) or "none"
    raise DataError(
        f"{row.where}: the fields ({named}) are of no known kind: rm-bench and preference have "
        "`chosen` and "
        "`rejected`, best-of-n `responses` and `labels`, tokens `response` and `flagged` or `flags`"
    )
