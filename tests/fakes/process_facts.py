"""A third party's scorer, `fakes.process_facts:Scorer` in configs: its values are facts about its
process, not about the response."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

import numpy as np
import torch

from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Row, Sample, Signals


def facts() -> list[float]:
    """Torch's threads, OpenMP's threads, the seconds of a thread's turn, and the number of objects
    that are hidden from the garbage collector."""
    omp = float(os.environ.get("OMP_NUM_THREADS", 0))
    return [torch.get_num_threads(), omp, sys.getswitchinterval(), gc.get_freeze_count()]


class Scorer(contract.Scorer):
    """r_t is fact number t; after the last fact comes the first again."""

    class Options(contract.Options):
        pass

    task = None
    gives = frozenset({"values", "score"})
    default_credit = "values"
    score_is = "nothing"

    def rows(self, sample: Sample, options: Options) -> tuple[Row, ...]:
        return ()

    def needs(self, options: Options) -> Needs:
        return Needs()

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        values = np.resize(np.array(facts(), np.float32), len(sample.response_ids))
        return Signals(score=0.0, values=values)
