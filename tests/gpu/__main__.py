"""Measures the engine on one GPU: a line per figure, exit code 1 if any is SHORT."""

from __future__ import annotations

import argparse
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import record
from bench.figure import HEADER, Figure, Point, Result, exit_code
from gpu.ahead import ahead, alone
from gpu.busy import profile, waits
from gpu.clock import Cpu, Gpu
from gpu.exact import exact
from gpu.prompts import prompts
from gpu.rewards import attention, lengths, long
from gpu.shapes import KERNELS, LLAMA_8B, QWEN3_06B, build
from gpu.sizes import REAL, TINY
from gpu.split import split
from gpu.stand import Stand
from gpu.throughput import endogenous, head
from tokenreward.forward.packed import PackedLayout

# In this order each model is made once: `waits` ends with the reward model that the rest measures.
FIGURES: dict[str, Callable[[Stand], Iterator[Result]]] = {
    "head": head,
    "exact": exact,
    "endogenous-0.6b": partial(endogenous, real=QWEN3_06B, wanted=240_000),
    "endogenous-8b": partial(endogenous, real=LLAMA_8B, wanted=33_000),
    "prompts": prompts,
    "profile": profile,
    "ahead": ahead,
    "split": split,
    "waits": waits,
    "attention": attention,
    "long": long,
    "lengths": lengths,
    "alone": alone,
}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    options = asked(argv)
    stand = _stand(options)
    where = described(stand, options)
    print(HEADER, flush=True)
    results: list[Result] = []
    for name in options.figures or FIGURES:
        began, found = time.monotonic(), []
        for result in _taken(name, stand, options):
            found.append(result)
            print(_line(result), flush=True)
        print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
        results += found
        if options.json:
            record.keep(options.json, name, found, rounds=options.rounds, where=where)
    return exit_code(results)


def asked(argv: list[str] | None) -> argparse.Namespace:
    """The command line, read. Exits with 2 if there is no GPU and it is no rehearsal."""
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__)
    parser.add_argument(
        "figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(FIGURES)}; default: all"
    )
    parser.add_argument("--json", type=Path, help="keep the figures here, figure by figure")
    parser.add_argument(
        "--rehearse", action="store_true", help="on the CPU, tiny shapes, judging nothing"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="measured rounds of each pace (default 5)"
    )
    options = parser.parse_args(argv)
    if unknown := set(options.figures) - set(FIGURES):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    if not options.rehearse and not torch.cuda.is_available():
        parser.error(
            f"torch {torch.__version__} sees no CUDA device; --rehearse runs every figure on the "
            "CPU"
        )
    return options


def _stand(options: argparse.Namespace) -> Stand:
    if options.rehearse:
        return Stand(Cpu(), TINY, rounds=options.rounds, rehearse=True)
    return Stand(Gpu(), REAL, rounds=options.rounds, rehearse=False)


def described(stand: Stand, options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on; printed, too."""
    rates = stand.rates
    layout = PackedLayout(
        stand.checkpoint(build(KERNELS, "causal_lm", stand.clock.device), "causal_lm")
    )
    layout.choose_logsumexp()
    found = {
        "device": str(stand.clock),
        "torch": torch.__version__,
        "matmul_tflops": rates.flops_per_s / 1e12,
        "copy_tb_per_s": rates.bytes_per_s / 1e12,
        "kernels": layout.note,
        "rehearsal": options.rehearse,
    }
    print(f"{found['device']}; torch {found['torch']}")
    print(
        f"bf16 matrix product {found['matmul_tflops']:.4g} TFLOP/s, copy "
        f"{found['copy_tb_per_s']:.4g} TB/s"
    )
    print(found["kernels"])
    return found


def _taken(name: str, stand: Stand, options: argparse.Namespace) -> Iterator[Result]:
    """A figure's results; on a GPU, whose time is short, what it raises is told and the next figure
    goes on."""
    try:
        for result in FIGURES[name](stand):
            rehearsed = options.rehearse and isinstance(result, Figure)
            yield replace(result, judged=False) if rehearsed else result
    except Exception as error:
        if options.rehearse:
            raise
        traceback.print_exc()
        stand.release()
        yield Figure(
            name,
            math.nan,
            math.nan,
            math.nan,
            0,
            "",
            note=f"raised {type(error).__name__}: {error}"[:200],
        )


def _line(result: Result) -> str:
    if isinstance(result, Point):
        return f"  {result.y:>10.4g} ms in {result.x:g} calls of {result.series}"
    return result.line()


if __name__ == "__main__":
    sys.exit(main())
