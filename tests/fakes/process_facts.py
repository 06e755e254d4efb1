"""A third party's scorer, named in configs as `process_facts:Scorer`: what it gives is not about
the response but about the process that it runs in."""

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
    """Torch's threads, OpenMP's, the seconds of a turn, the objects that are never searched for
    garbage."""
    omp = float(os.environ.get("OMP_NUM_THREADS", 0))
    return [torch.get_num_threads(), omp, sys.getswitchinterval(), gc.get_freeze_count()]


class Scorer(contract.Scorer):
    """r_t = the fact number t, round and round."""

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
