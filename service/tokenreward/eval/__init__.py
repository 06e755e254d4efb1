"""Judging served scorers on preference data: what a scorer's numbers say about answers whose worth
is known.

    rows, flags              files as rows, errors that name the line and the field; characters known to be wrong
    dataset                  what all kinds of data are: items to score, and a judgement of the answers
    rm_bench, preference, best_of_n, tokens      the four kinds
    loading                  which kind a file is
    asking, answer, cache    the client, what it brought, and what need not be asked again
    figure, auc, latency     shares, means, areas under curves, with intervals; seconds
    verdict, record, table   the outcome, as JSON, as text for a terminal
    page/                    the same as one HTML file that needs nothing else

It talks to a URL through the client and knows numpy and the wire: no engine, no models, no command
line.
"""

from tokenreward.eval.answer import Answer
from tokenreward.eval.asking import Run, Subject, ask, known_subject, try_out
from tokenreward.eval.cache import Cache
from tokenreward.eval.dataset import Candidate, Dataset
from tokenreward.eval.loading import KINDS, load
from tokenreward.eval.rows import EvalError
from tokenreward.eval.verdict import Judged, judged

__all__ = [
    "KINDS",
    "Answer",
    "Cache",
    "Candidate",
    "Dataset",
    "EvalError",
    "Judged",
    "Run",
    "Subject",
    "ask",
    "judged",
    "known_subject",
    "load",
    "try_out",
]
