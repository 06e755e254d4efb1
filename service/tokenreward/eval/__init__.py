"""Judges served scorers on preference data: what their numbers say about answers of known worth.

files, tables, rows    files as rows; errors name line and field
conversation           a prompt and a response, in the forms in which data sets hold them
candidate              a response as an item
subject, request, ask  the scorer under judgement; one request; all requests of an evaluation
answer, cache          the answer for one response; answers that need not be asked for again
statistics             shares, means, areas under curves, with intervals; seconds
outcome, dataset       the outcome for one scorer; what every kind of data is
kinds/                 the kinds of data
loading                which kind a file is
report/                the outcome as text for a terminal, as JSON, as an HTML file

It talks to a URL through the client and knows numpy and the wire: no engine, no models, no command
line.
"""

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.ask import collect_answers
from tokenreward.eval.candidate import Candidate
from tokenreward.eval.dataset import Dataset
from tokenreward.eval.loading import KINDS, load
from tokenreward.eval.outcome import ScorerOutcome
from tokenreward.eval.request import try_out
from tokenreward.eval.rows import EvalError
from tokenreward.eval.subject import Subject, find_subject, groups_of

__all__ = [
    "KINDS",
    "Candidate",
    "CandidateAnswer",
    "Dataset",
    "EvalError",
    "ScorerOutcome",
    "Subject",
    "collect_answers",
    "find_subject",
    "groups_of",
    "load",
    "try_out",
]
