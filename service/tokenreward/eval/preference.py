"""Kind `preference`: pairs of a chosen and a rejected response, as RewardBench has them.

A row is {prompt, chosen, rejected}, with an optional `subset`. A pair is right if the chosen
response has the strictly higher score; equal scores are no win, and are counted apart as ties.
Micro is over pairs, macro over subsets.

`rejected_flagged`, optional: half-open character ranges of the rejected response that are known to
be wrong. Rows that have it are also judged token by token (see `flags`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenreward.eval.answer import Answer
from tokenreward.eval.dataset import Dataset, PromptAs, candidate, prompt_of
from tokenreward.eval.figure import Figure, mean_of_shares, share
from tokenreward.eval.flags import Flags, TokenFigures, ranges_flagged, token_figures
from tokenreward.eval.rows import Row, kind_of
from tokenreward.eval.verdict import Column, Example, Shown, Verdict, worst

NO_SUBSET = "no subset"


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One row; `chosen` and `rejected` are indices of candidates."""

    where: str
    subset: str | None
    chosen: int
    rejected: int
    flags: Flags | None


class Preference(Dataset):
    """Pairs, with or without flagged characters."""

    kind = "preference"
    noun = "pairs"

    def __init__(self, rows: Sequence[Row], prompt_as: PromptAs) -> None:
        super().__init__()
        self._pairs = [self._pair(row, prompt_as) for row in rows]
        self.num_cases = len(self._pairs)

    def judge(self, answers: Sequence[Answer]) -> Verdict:
        """Accuracy per subset, micro and macro; the token areas of flagged responses."""
        judged = [pair for pair in self._pairs if _both(pair, answers)]
        chosen = np.array([answers[pair.chosen].known for pair in judged])
        rejected = np.array([answers[pair.rejected].known for pair in judged])
        wins = chosen > rejected
        groups = self._groups(judged, wins)
        columns = [Column("accuracy", "pair accuracy", share(float(wins.sum()), len(judged)))]
        if groups:
            columns.append(
                Column(
                    "accuracy_macro", "macro over subsets", mean_of_shares(list(groups.values()))
                )
            )
        counts = {
            "pairs": len(self._pairs),
            "judged": len(judged),
            "failed": len(self._pairs) - len(judged),
        }
        counts |= {"wrong": int((chosen < rejected).sum()), "ties": int((chosen == rejected).sum())}
        examples = {"rejected against chosen": worst([_example(pair, answers) for pair in judged])}
        extra: dict[str, Any] = {"groups_title": "pair accuracy by subset"}
        flagged = [pair for pair in self._pairs if pair.flags is not None]
        if flagged:
            found, areas = self._token_figures(flagged, answers)
            columns += token_columns(found)
            examples |= {"flagged tokens": areas}
            extra |= {"curve": found.curve, "curve_title": "flagged tokens found by low reward"}
        classes = {"chosen": chosen, "rejected": rejected}
        return Verdict(columns, counts, groups=groups, classes=classes, examples=examples, **extra)

    def _pair(self, row: Row, prompt_as: PromptAs) -> Pair:
        prompt, chosen, rejected = (
            prompt_of(row, "prompt", prompt_as),
            row.text("chosen"),
            row.text("rejected"),
        )
        flags = (
            ranges_flagged(row, "rejected_flagged", len(rejected))
            if "rejected_flagged" in row.fields
            else None
        )
        return Pair(
            row.where,
            _subset(row),
            self.add(candidate(row, prompt, chosen, field="chosen")),
            self.add(
                candidate(row, prompt, rejected, field="rejected", needs_units=flags is not None)
            ),
            flags,
        )

    def _groups(self, judged: Sequence[Pair], wins: Any) -> dict[str, Figure | None]:
        """Accuracy per subset, in the order of the file; empty if no row names one."""
        names = list(dict.fromkeys(pair.subset for pair in self._pairs))
        if names == [None]:
            return {}
        of_subset = {
            name: [bool(win) for pair, win in zip(judged, wins, strict=True) if pair.subset == name]
            for name in names
        }
        return {name or NO_SUBSET: share(sum(each), len(each)) for name, each in of_subset.items()}

    def _token_figures(
        self, flagged: Sequence[Pair], answers: Sequence[Answer]
    ) -> tuple[TokenFigures, list[Example]]:
        known = [
            (pair.where, pair.rejected, pair.flags) for pair in flagged if pair.flags is not None
        ]
        return token_judgement(
            [entry for entry in known if answers[entry[1]].error is None], answers
        )


def token_judgement(
    known: Sequence[tuple[str, int, Flags]], answers: Sequence[Answer]
) -> tuple[TokenFigures, list[Example]]:
    """Figures and worst examples of (where, candidate, flags), all of them answered with units."""
    units = [
        (flags, units) for _, index, flags in known if (units := answers[index].units) is not None
    ]
    found = token_figures(units)
    examples = [
        Example(
            where,
            f"token AUC {area:.3f}",
            -area,
            (Shown("what is underlined is flagged", index, flags.characters),),
        )
        for (where, index, flags), area in zip(known, found.areas, strict=True)
        if area is not None
    ]
    return found, worst(examples)


def token_columns(found: TokenFigures) -> list[Column]:
    """The two areas."""
    return [
        Column("token_auc", "token AUC (mean)", found.mean),
        Column("token_auc_micro", "token AUC (micro)", found.micro),
    ]


def _both(pair: Pair, answers: Sequence[Answer]) -> bool:
    return answers[pair.chosen].error is None and answers[pair.rejected].error is None


def _subset(row: Row) -> str | None:
    value = row.fields.get("subset")
    if value is not None and not isinstance(value, str):
        raise row.wrong("subset", f"must be a string, got {kind_of(value)}")
    return value


def _example(pair: Pair, answers: Sequence[Answer]) -> Example:
    better, worse = answers[pair.chosen].known, answers[pair.rejected].known
    flagged = None if pair.flags is None else pair.flags.characters
    shown = (
        Shown(f"chosen, score {better:+.4g}", pair.chosen),
        Shown(f"rejected, score {worse:+.4g}", pair.rejected, flagged),
    )
    return Example(
        pair.where, f"rejected minus chosen {worse - better:+.4g}", worse - better, shown
    )
