"""`make bench`: runs the figures asked for (default: all), prints a line each, exits 1 if any is SHORT."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bench import engine
from bench.figure import HEADER, Figure
from bench.timing import single_threaded

Suite = Callable[[int], Iterator[Figure]]

SUITES: dict[str, Suite] = {
    "endogenous": lambda rounds: engine.endogenous(32_000, 2, rounds=rounds),
    "endogenous-152k": lambda rounds: engine.endogenous(152_000, 1, rounds=rounds),
    "attention": lambda rounds: engine.attention_dense(rounds=rounds),
    "lengths": lambda rounds: engine.mixed_lengths(rounds=rounds),
    "prompts": lambda rounds: engine.shared_prompts(rounds=rounds),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each figure (default 5)")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    single_threaded()
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread, CPU time\n{HEADER}")
    figures = []
    for name in options.suites or SUITES:
        for figure in SUITES[name](options.rounds):
            print(figure.line(), flush=True)
            figures.append(figure)
    if options.json:
        options.json.write_text(json.dumps([figure.as_json() for figure in figures], indent=1))
    return 0 if all(figure.ok for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
