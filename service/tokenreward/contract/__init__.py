"""The contract between a scorer and the service: what a scorer gets, what it gives, what it is.

    Item -> Sample -> Scorer.rows, Scorer.needs -> one pass of the model -> Outputs
                   -> Scorer.score -> Signals -> units and credit -> rewards

A scorer is one class in one file: of `scorers/`, or of another package. It says which token rows
the model must read for an item (`rows`) and which outputs it needs of them (`needs`). The engine
joins the rows and needs of all items of a batch and runs one pass. Then the scorer turns the
outputs of its rows into signals (`score`).

    sample.py    Sample: one item in the model's own tokens; TokenizerView, RequestBudget
    reading.py   Row, Needs, Outputs: what a model reads, and what it says
    scorer.py    Scorer, Options, Signals

The contract knows no batches, no HTTP and no units of the caller: alignment and credit come after
it. It imports no torch.
"""

from tokenreward.contract.reading import Model, Needs, Outputs, Reading, Row, RowRequest, Task
from tokenreward.contract.sample import (
    MAX_OPTION_CHARACTERS,
    RequestBudget,
    Sample,
    TokenizerView,
)
from tokenreward.contract.scorer import (
    WITHOUT_EFFECT,
    Gives,
    Options,
    Scorer,
    Signals,
    merged_options,
    without_effect,
)
from tokenreward.wire.reply import Table

__all__ = [
    "MAX_OPTION_CHARACTERS",
    "WITHOUT_EFFECT",
    "Gives",
    "Model",
    "Needs",
    "Options",
    "Outputs",
    "Reading",
    "RequestBudget",
    "Row",
    "RowRequest",
    "Sample",
    "Scorer",
    "Signals",
    "Table",
    "Task",
    "TokenizerView",
    "merged_options",
    "without_effect",
]
