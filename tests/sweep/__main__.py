"""`make sweep`: a line for each architecture, then the counts; exits 1 if any is WRONG or CRASH.

Each runs in a process of its own with a limit of time, as some take the process down.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
from transformers.utils import logging

from sweep.judge import Verdict, judge
from tokenreward.contract import Task

_LIMIT_S = 1800  # a machine that is busy takes minutes for the largest of them
_BAD = ("WRONG", "CRASH")
_TABLES = {
    "causal_lm": MODEL_FOR_CAUSAL_LM_MAPPING,
    "reward_model": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
}


def architectures(task: str) -> list[str]:
    """Every `model_type` that transformers has a class for, in order."""
    return sorted(_TABLES[task]._model_mapping)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sweep", description=__doc__)
    parser.add_argument("names", nargs="*", help="model types (default: all)")
    parser.add_argument("--task", choices=get_args(Task), help="default: both")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    verdicts = []
    for task in [options.task] if options.task else get_args(Task):
        print(f"--- {task}")
        for name in options.names or architectures(task):
            verdicts.append(_judged(name, task))
            print(verdicts[-1], flush=True)
    counts = Counter(verdict.outcome for verdict in verdicts)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
    return 1 if any(counts[outcome] for outcome in _BAD) else 0


def _judged(name: str, task: Any) -> Verdict:
    """The verdict of another process; "CRASH" if it dies or does not end."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(name, task, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(_LIMIT_S):
            return Verdict(name, "CRASH", reason=f"no verdict within {_LIMIT_S} s")
        verdict: Verdict = ours.recv()
        return verdict
    except EOFError:
        return Verdict(name, "CRASH", reason="the process died")
    finally:
        process.kill()
        process.join()


def _report(name: str, task: Any, connection: Any) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    with tempfile.TemporaryDirectory() as folder:
        connection.send(judge(name, task, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
