"""PRMBench's own score of a process reward model: how well it tells wrong steps from right ones.

Song et al. 2025, "PRMBench" (2501.03124). Every step of a solution is judged, those behind the
first wrong one, too: right is the positive class, and a step is called right if its probability is
at least one half. Over all steps of all solutions,

    PRMScore = 0.5 F1(right steps) + 0.5 F1(wrong steps),

where F1 = 2 TP / (2 TP + FP + FN) of the class. Solutions without a wrong step (PRMBench's
`multi_solutions`) have no F1 of wrong steps: alone, their score is F1 of right steps.

It knows flags and probabilities, and no rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenreward.eval.statistics import (
    NUM_AREA_RESAMPLES,
    PERCENTILES,
    Bools,
    Estimate,
    Floats,
    Ints,
)

_SEED = 0


def step_counts(flags: Bools, probabilities: Floats) -> Ints:
    """How many steps of a solution are right and called right, wrong and called right, right and
    called wrong, wrong and called wrong, [4].

    Args:
        flags: Which steps are wrong, [steps].
        probabilities: The probability that each step is right, [steps].
    """
    called_wrong = probabilities < 0.5
    return np.bincount(2 * called_wrong + flags, minlength=4).astype(np.int64)


def prm_score(counts: Sequence[Ints]) -> Estimate | None:
    """PRMScore with the interval of a bootstrap over solutions.

    Args:
        counts: Of each solution, what `step_counts` says.

    Returns:
        The estimate; None without solutions.
    """
    if not counts:
        return None
    table = np.stack(counts)
    rng = np.random.default_rng(_SEED)
    scores = []
    for _ in range(NUM_AREA_RESAMPLES):
        draw = rng.integers(0, len(table), size=len(table))
        scores.append(_score(table[draw].sum(axis=0)))
    low, high = np.percentile(scores, PERCENTILES)
    value = _score(table.sum(axis=0))
    return Estimate(value, float(low), float(high), len(table), "bootstrap")


def _score(counts: Ints) -> float:
    """The score of summed counts, [4]."""
    right_as_right, wrong_as_right, right_as_wrong, wrong_as_wrong = map(int, counts)
    num_mistakes = wrong_as_right + right_as_wrong
    f1s = []
    if right_as_right + right_as_wrong:
        f1s.append(2 * right_as_right / (2 * right_as_right + num_mistakes))
    if wrong_as_right + wrong_as_wrong:
        f1s.append(2 * wrong_as_wrong / (2 * wrong_as_wrong + num_mistakes))
    return sum(f1s) / len(f1s)
