"""Loads data files as one dataset. The fields of a file's rows tell the kind of the file.

It knows which kinds there are; it asks nothing and judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenreward.eval.conversation import RESPONSE_FIELDS, PromptAs
from tokenreward.eval.dataset import Dataset
from tokenreward.eval.files import read_rows
from tokenreward.eval.kinds.best_of_n import best_of_n
from tokenreward.eval.kinds.pair_forms import labelled_pair, named_pair
from tokenreward.eval.kinds.preference import preference
from tokenreward.eval.kinds.response_forms import response_form
from tokenreward.eval.kinds.reward_bench_2 import reward_bench_2
from tokenreward.eval.kinds.rm_bench import DOMAINS, rm_bench
from tokenreward.eval.kinds.step_forms import form_of
from tokenreward.eval.kinds.steps import steps
from tokenreward.eval.kinds.tokens import tokens
from tokenreward.eval.kinds.unpaired import unpaired, unpaired_fields
from tokenreward.eval.rows import DataRow, EvalError

KINDS: dict[str, Callable[[Sequence[DataRow], PromptAs], Dataset]] = {
    "rm-bench": rm_bench,
    "reward-bench-2": reward_bench_2,
    "preference": preference,
    "best-of-n": best_of_n,
    "tokens": tokens,
    "unpaired": unpaired,
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
        files: JSON lines, JSON arrays, tables or parquet, all of one kind.
        kind: A key of `KINDS`; by default the rows of each file tell.
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
            name, reason = _kind_of(file_rows)
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


def _kind_of(rows: Sequence[DataRow]) -> tuple[str, str]:
    """The name of the rows' kind, and why it is that. The first row tells, and where it has lists
    of chosen and rejected texts, how many there are in all of them.

    Raises:
        EvalError: The fields are of no kind, or of several.
    """
    row = rows[0]
    claims = _claims(rows)
    if len(claims) == 1:
        return next(iter(claims.items()))
    if claims:
        names = " or ".join(f"--kind {name} ({reason})" for name, reason in claims.items())
        raise EvalError(f"{row.where}: the rows may be of several kinds: name one, {names}")
    # What is of one kind but for a field that it lacks is refused by that kind.
    fields = row.fields
    if named_pair(row) is not None:
        return "preference", "its rows have a chosen and a rejected response"
    if {"question", "ground_truth"} <= fields.keys() or "responses" in fields:
        return "best-of-n", "its rows have several responses"
    names = ", ".join(f"`{name[:40]}`" for name in list(fields)[:8]) or "none"
    raise EvalError(
        f"{row.where}: the fields ({names}) are of no known kind: preference, rm-bench and "
        "reward-bench-2 have `chosen` and `rejected`, best-of-n `responses` and `labels`, tokens "
        "`response` and `flagged` or `flags`, unpaired `completion` and `label`, steps `steps` and "
        "`label` or `completions` and `labels`"
    )


def _claims(rows: Sequence[DataRow]) -> dict[str, str]:
    """The kinds that the first row has all fields of, and which fields these are."""
    row, claims = rows[0], {}
    fields = row.fields
    form = form_of(row)
    if form is not None:
        claims["steps"] = f"its rows have {form}"
    pair = named_pair(row)
    if pair is not None and all(fields[name] is not None for name in pair):
        claims |= _pair_claims(rows, pair)
    labels = labelled_pair(row)
    if labels is not None and "preference" not in claims:
        claims["preference"] = f"its rows have `{labels[0]}`, `{labels[1]}` and `{labels[2]}`"
    form = response_form(row)
    if form is not None:
        claims["best-of-n"] = f"its rows have {form}"
    if "best-of-n" in claims and "`completions` and `labels`" in claims["best-of-n"]:
        # Steps of one response, or several responses: 0 and 1 may label both.
        if "steps" in claims:
            del claims["best-of-n"]
        elif isinstance(fields["completions"], list):
            claims["steps"] = "if they are the steps of one response"
            claims["best-of-n"] = "if they are several responses"
    flags = [name for name in ("flags", "flagged") if fields.get(name) is not None]
    responses = [name for name in RESPONSE_FIELDS if fields.get(name) is not None]
    if flags and responses:
        claims["tokens"] = f"its rows have `{responses[0]}` and `{flags[0]}`"
    single = unpaired_fields(row)
    if single is not None:
        claims["unpaired"] = f"its rows have `{single[0]}` and `{single[1]}`"
    return claims


def _pair_claims(rows: Sequence[DataRow], pair: tuple[str, str]) -> dict[str, str]:
    """The same of rows with a chosen and a rejected response in these fields."""
    row, names = rows[0], f"`{pair[0]}` and `{pair[1]}`"
    sides = [row.fields[name] for name in pair]
    if not all(isinstance(side, list) and side and isinstance(side[0], str) for side in sides):
        words = "messages" if isinstance(sides[0], (list, dict)) else "texts"
        prompt = "with" if isinstance(row.fields.get("prompt"), (str, list)) else "without"
        return {"preference": f"{names} are {words}, {prompt} a field `prompt`"}
    styles = f"{names} are lists of texts, one for each style"
    if "domain" in row.fields or row.file.name.startswith(DOMAINS):
        return {"rm-bench": styles}
    lengths = set()
    for other in rows:
        texts = [other.fields.get(name) for name in pair]
        lengths |= {len(each) for each in texts if isinstance(each, list)}
    if lengths == {3} and not {"num_correct", "subset"} & row.fields.keys():
        return {
            "rm-bench": "if they are three styles of each; then `domain` is not there, either",
            "reward-bench-2": "if every chosen response is better than every rejected one",
        }
    return {"reward-bench-2": f"{names} are lists of texts"}
