"""`make bench`: runs the figures asked for (default: all), prints a line each, exits 1 if any is SHORT."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from bench import codec, curves, engine, record, service
from bench.figure import HEADER, Point, Result, exit_code
from bench.plot import svg
from bench.timing import single_threaded

Suite = Callable[..., Iterator[Result]]

ENGINE: dict[str, Suite] = {
    "endogenous": partial(engine.endogenous, 32_000, 2),
    "endogenous-152k": partial(engine.endogenous, 152_000, 1),
    "attention": engine.attention_dense,
    "lengths": engine.mixed_lengths,
    "prompts": engine.shared_prompts,
    "throughput": curves.throughput,
    "memory": curves.memory,
    "codec": codec.codec,
}
SERVICE: dict[str, Suite] = {
    "service": service.over_offline,
    "latency": service.added_latency,
    "serve-rm": service.over_serve_rm,
    "litserve": service.over_litserve,
    "vllm": service.over_vllm,
}
SUITES = {**ENGINE, **SERVICE}
ROUNDS = {**dict.fromkeys(ENGINE, 5), **dict.fromkeys(SERVICE, 3), "throughput": 3}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    options = asked(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every server is stopped then, too
    single_threaded()
    disable_progress_bar()
    found = record.machine()
    print(f"{found['cpu']}, {found['cores']} cores, torch {found['torch']}; engine: one thread, CPU time\n{HEADER}")
    return measure(options)


def measure(options: argparse.Namespace) -> int:
    """One line per figure, as soon as it is there; what is to be kept is kept suite by suite. Returns the exit code."""
    results: list[Result] = []
    for name in options.suites or SUITES:
        results += _run(name, options)
    if options.json:
        _draw(options.json)
    return exit_code(results)


def asked(argv: list[str] | None) -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; default: all")
    parser.add_argument("--rounds", type=int, help="measured rounds of each figure (default 5; where servers run 3)")
    parser.add_argument("--mode", choices=list(service.MODES), default="laptop", help="how our service is started")
    parser.add_argument("--groups", type=int, help="groups of 8 items that the servers score (default: the suite's)")
    parser.add_argument("--json", type=Path, help="keep the figures here, and the plots beside it")
    options = parser.parse_args(argv)
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    return options


def _run(name: str, options: argparse.Namespace) -> list[Result]:
    rounds = options.rounds or ROUNDS[name]
    how = {"mode": options.mode} | ({"num_groups": options.groups} if options.groups else {})
    began, results = time.monotonic(), []
    for result in SUITES[name](rounds=rounds, **(how if name in SERVICE else {})):
        results.append(result)
        if not isinstance(result, Point):
            print(result.line(), flush=True)
    print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
    if options.json:
        record.keep(options.json, name, results, rounds=rounds)
    return results


def _draw(file: Path) -> None:
    for name, words in curves.PLOTS.items():
        if points := [point for point in record.points(file) if point.plot == name]:
            (file.parent / f"{name}.svg").write_text(svg(points, words))


if __name__ == "__main__":
    sys.exit(main())
