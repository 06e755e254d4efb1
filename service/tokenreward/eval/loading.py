"""Loads data files as one dataset. The fields of a file's first row tell the kind of the file.

It knows which kinds there are; it asks nothing and judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenreward.eval.conversation import RESPONSE_FIELDS, PromptAs
from tokenreward.eval.dataset import Dataset
from tokenreward.eval.kinds.best_of_n import best_of_n, is_gsm8k
from tokenreward.eval.kinds.preference import pair_fields, preference
from tokenreward.eval.kinds.reward_bench_2 import reward_bench_2
from tokenreward.eval.kinds.rm_bench import DOMAINS, rm_bench
from tokenreward.eval.kinds.step_forms import form_of
from tokenreward.eval.kinds.steps import steps
from tokenreward.eval.kinds.tokens import tokens
from tokenreward.eval.rows import DataRow, EvalError, read_rows

KINDS: dict[str, Callable[[Sequence[DataRow], PromptAs], Dataset]] = {
    "rm-bench": rm_bench,
    "reward-bench-2": reward_bench_2,
    "preference": preference,
    "best-of-n": best_of_n,
    "tokens": tokens,
    "steps": steps,
}


def load(
    files: Sequence[Path],
    *,
    kind: str | None = None,
    prompt_as: PromptAs = "user",
    limit: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Dataset:
    """All rows of all files as one dataset.

    Args:
        files: JSON lines, JSON arrays or parquet, all of one kind.
        kind: A key of `KINDS`; by default the first row of each file tells.
        prompt_as: What a prompt that is a string becomes, see `prompt_of`.
        limit: The most rows to take of each file, from its beginning.
        chat_template_kwargs: What the chat template gets beside the messages; a row's own go before
            them.

    Returns:
        The dataset. Its `reason` says why the files are of its kind.

    Raises:
        EvalError: A file is not what it should be; the message names file, line and field.
        OSError: A file cannot be read.
    """
    rows: list[DataRow] = []
    kinds: dict[str, Path] = {}
    reason = "named by --kind"
    for file in files:
        file_rows = read_rows(file)
        name = kind
        if name is None:
            name, reason = _kind_of(file_rows[0])
        kinds.setdefault(name, file)
        rows += file_rows[:limit]
    if len(kinds) > 1:
        kinds_text = ", ".join(f"{file} is {name}" for name, file in kinds.items())
        raise EvalError(f"all files of a run must be of one kind: {kinds_text}")
    dataset = KINDS[next(iter(kinds))](rows, prompt_as)
    dataset.reason = reason
    if chat_template_kwargs:
        _add_template_kwargs(dataset, chat_template_kwargs)
    return dataset


def _add_template_kwargs(dataset: Dataset, kwargs: Mapping[str, Any]) -> None:
    """Give the chat template of every prompt of messages these arguments, below a row's own."""
    if all(isinstance(each.item["prompt"], str) for each in dataset.candidates):
        message = "--chat-template-kwargs goes with messages, and all prompts are raw text"
        raise EvalError(message)
    for place, each in enumerate(dataset.candidates):
        if not isinstance(each.item["prompt"], str):
            own = each.item.get("chat_template_kwargs", {})
            item = {**each.item, "chat_template_kwargs": {**kwargs, **own}}
            dataset.candidates[place] = replace(each, item=item)


def _kind_of(row: DataRow) -> tuple[str, str]:
    """The name of a row's kind, and why it is that. Raises EvalError if its fields are of none."""
    fields = row.fields
    form = form_of(row)
    if form is not None:
        return "steps", f"its rows have {form}"
    pair = pair_fields(row)
    if pair is not None:
        return _kind_of_pair(row, pair)
    if is_gsm8k(row):
        return "best-of-n", "its rows have GSM8K's `question` and `ground_truth`"
    if "responses" in fields:
        return "best-of-n", "its rows have `responses`"
    flags = [name for name in ("flags", "flagged") if name in fields]
    responses = [name for name in RESPONSE_FIELDS if name in fields]
    if flags and responses:
        return "tokens", f"its rows have `{responses[0]}` and `{flags[0]}`"
    names = ", ".join(f"`{name[:40]}`" for name in list(fields)[:8]) or "none"
    raise EvalError(
        f"{row.where}: the fields ({names}) are of no known kind: preference, rm-bench and "
        "reward-bench-2 have `chosen` and `rejected`, best-of-n `responses` and `labels`, tokens "
        "`response` and `flagged` or `flags`, steps `steps` and `label` or `completions` and "
        "`labels`"
    )


def _kind_of_pair(row: DataRow, pair: tuple[str, str]) -> tuple[str, str]:
    """The same of a row with a chosen and a rejected response in these fields."""
    fields, names = row.fields, f"`{pair[0]}` and `{pair[1]}`"
    sides = [fields[name] for name in pair]
    if all(isinstance(side, list) and side and isinstance(side[0], str) for side in sides):
        lengths = [len(side) for side in sides]
        is_of_domain = "domain" in fields or row.file.name.startswith(DOMAINS)
        if is_of_domain or (lengths == [3, 3] and "num_correct" not in fields):
            return "rm-bench", f"{names} are lists of texts, one for each style"
        return "reward-bench-2", f"{names} are lists of texts"
    words = "messages" if isinstance(sides[0], (list, dict)) else "texts"
    prompt = "with" if isinstance(fields.get("prompt"), (str, list)) else "without"
    return "preference", f"{names} are {words}, {prompt} a field `prompt`"
