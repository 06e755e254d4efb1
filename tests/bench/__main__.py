"""`make bench`: runs the figures asked for (default: all), prints a line each, exits 1 if any is
SHORT.

The service is measured in two modes. In cluster mode HAProxy's statistics ports ask nobody for a
key, so everything of that mode runs again as a bench of its own, in a network namespace where
nobody else is.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from bench import codec, curves, engine, latency, protocols, record, service, weights
from bench.figure import HEADER, Point, Result, Skipped, exit_code
from bench.plot import svg
from bench.timing import single_threaded
from fakes import namespace

Suite = Callable[..., Iterator[Result]]

ENGINE: dict[str, Suite] = {
    "endogenous": partial(engine.endogenous, 32_000, 2),
    "endogenous-152k": partial(engine.endogenous, 152_000, 1),
    "bfloat16": engine.bfloat16,
    "attention": engine.attention_dense,
    "lengths": engine.mixed_lengths,
    "prompts": engine.shared_prompts,
    "throughput": curves.throughput,
    "memory": curves.memory,
    "codec": codec.codec,
    "weights": weights.pushes,
}
SERVICE: dict[str, Suite] = {
    "service": service.over_offline,
    "latency": latency.added,
    "protocols": protocols.over_native,
    "serve-rm": service.over_serve_rm,
    "litserve": service.over_litserve,
    "vllm": service.over_vllm,
}
SUITES = {**ENGINE, **SERVICE}
MODES = {"both": ["laptop", "cluster"], "laptop": ["laptop"], "cluster": ["cluster"]}
ROUNDS = {**dict.fromkeys(ENGINE, 5), **dict.fromkeys(SERVICE, 3), "throughput": 3}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    options = asked(argv)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that every server is stopped then, too
    single_threaded()
    disable_progress_bar()
    if not options.isolated:
        found = record.machine()
        print(
            f"{found['cpu']}, {found['cores']} cores, torch {found['torch']}; engine: one thread, "
            f"CPU time\n{HEADER}"
        )
    return measure(options)


def measure(options: argparse.Namespace) -> int:
    """One line per figure, as soon as it is there; what is to be kept is kept suite by suite.
    Returns the exit code."""
    code = 0
    for name in options.suites or SUITES:
        for mode in MODES[options.mode] if name in SERVICE else [None]:
            apart = mode == "cluster" and not options.isolated
            code |= _run_isolated(name, options) if apart else _run(name, mode, options)
    if options.json and not options.isolated:
        _draw(options.json)
    return code


def asked(argv: list[str] | None) -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; default: all"
    )
    parser.add_argument(
        "--rounds", type=int, help="measured rounds of each figure (default 5; where servers run 3)"
    )
    parser.add_argument(
        "--mode",
        choices=list(MODES),
        default="both",
        help="how our service is started (default: both)",
    )
    parser.add_argument(
        "--isolated", action="store_true", help=argparse.SUPPRESS
    )  # in a namespace already
    parser.add_argument(
        "--groups", type=int, help="groups of 8 items that the servers score (default: the suite's)"
    )
    parser.add_argument("--json", type=Path, help="keep the figures here, and the plots beside it")
    options = parser.parse_args(argv)
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    return options


def _run(name: str, mode: str | None, options: argparse.Namespace) -> int:
    """One suite, in one mode if it has modes."""
    rounds = options.rounds or ROUNDS[name]
    how = (
        {}
        if mode is None
        else {"mode": mode} | ({"num_groups": options.groups} if options.groups else {})
    )
    began, results = time.monotonic(), []
    for result in SUITES[name](rounds=rounds, **how):
        results.append(result)
        if not isinstance(result, Point):
            print(result.line(), flush=True)
    print(f"  {_kept_as(name, mode)}: {time.monotonic() - began:.0f} s", flush=True)
    if options.json:
        record.keep(options.json, _kept_as(name, mode), results, rounds=rounds)
    return exit_code(results)


def _run_isolated(name: str, options: argparse.Namespace) -> int:
    """One suite in cluster mode, by a bench in a namespace; it prints and keeps for itself."""
    given = {"--rounds": options.rounds, "--groups": options.groups, "--json": options.json}
    arguments = [word for flag, value in given.items() if value for word in (flag, str(value))]
    print(
        f"  {name}, cluster mode: in a network namespace of its own, where nobody else reaches "
        "HAProxy",
        flush=True,
    )
    try:
        return namespace.run(
            [sys.executable, "-m", "bench", name, "--mode", "cluster", "--isolated", *arguments]
        )
    except namespace.NotPermitted as reason:
        skipped = Skipped(f"{name}, cluster mode", f"no namespace here: {reason}")
    print(skipped.line(), flush=True)
    if options.json:
        record.keep(options.json, _kept_as(name, "cluster"), [skipped], rounds=0)
    return exit_code([skipped])


def _kept_as(name: str, mode: str | None) -> str:
    return name if mode is None else f"{name}, {mode} mode"


def _draw(file: Path) -> None:
    for name, words in curves.PLOTS.items():
        if points := [point for point in record.points(file) if point.plot == name]:
            (file.parent / f"{name}.svg").write_text(svg(points, words))


if __name__ == "__main__":
    sys.exit(main())
