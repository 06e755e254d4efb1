"""`tokenreward score`: JSONL in, JSONL out, in order and in bounded memory, by a running service or
in this process.

It knows no wire format and no engine: `backend` scores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import stat
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from tokenreward.cli import CommandError, subcommand
from tokenreward.cli.backend import Score, backend
from tokenreward.cli.flags import add_service_flags
from tokenreward.cli.lines import Line, Report, read_groups
from tokenreward.cli.progress import Progress
from tokenreward.cli.stream import in_order
from tokenreward.errors import DeadlineExceededError
from tokenreward_client import Rewards

GROUP_SIZE = 64

EXAMPLES = """
    tokenreward score answers.jsonl --scorer attention_dense --output rewards.jsonl
    tokenreward score answers.jsonl --scorer logprob --show
    tokenreward score answers.jsonl --options '{"alpha": 0.5}' --credit '{"name": "last"}'
    echo '{"prompt": "2+2?", "response": "It is 4."}' | tokenreward score --demo
"""


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subcommand(
        subparsers,
        "score",
        more='A line is {"prompt": ..., "response": ...}, as an item of POST /v1/rewards, or has '
        "TRL's `completion`, or `messages` that end in the assistant's; each gives a line of "
        "output, in order. Exit code 1 if any has no rewards.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "file", nargs="?", default="-", help="one item per line; default or `-`: stdin"
    )
    where = parser.add_mutually_exclusive_group()
    add_service_flags(parser, url_among=where)
    where.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="score in this process, with the deployment of this YAML file",
    )
    where.add_argument(
        "--demo", action="store_true", help="score in this process, with the embedded demo"
    )
    parser.add_argument(
        "--scorer",
        default="endogenous",
        metavar="NAME",
        help="name of the scorer (default: %(default)s)",
    )
    for flag in ("options", "credit"):
        parser.add_argument(
            f"--{flag}",
            default="{}",
            metavar="{...}",
            help=f"{flag} of the scorer, as in a request",
        )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write JSON lines here instead of stdout; the file is emptied once the service has "
        "answered or the models are loaded, and keeps its lines if the run dies",
    )
    parser.add_argument(
        "--show", action="store_true", help="print each response coloured by its rewards"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score every line; 1 if any of them has no rewards."""
    with ExitStack() as files:
        lines = _open_input(args.file, files)
        if args.output is not None:
            _refuse_input(args.output, lines)
        scoring = backend(args)

        def open_report() -> Report:
            pictures, out = None, sys.stdout
            if args.show:
                pictures, out = sys.stdout, None
            if args.output is not None:
                out = files.enter_context(args.output.open("w", encoding="utf-8"))
            status = os.fstat(lines.fileno())
            num_bytes = status.st_size if stat.S_ISREG(status.st_mode) else None  # None of a pipe
            return Report(out, pictures, Progress(sys.stderr, num_bytes))

        return asyncio.run(_score_all(lines, scoring, open_report, concurrency=args.concurrency))


async def _score_all(
    lines: BinaryIO,
    scoring: AbstractAsyncContextManager[Score],
    open_report: Callable[[], Report],
    *,
    concurrency: int,
) -> int:
    """Scores all lines, some groups of them at a time, and reports them in order.

    Args:
        lines: JSONL.
        scoring: Gives `score` once the service has answered or the engine is loaded.
        open_report: Empties the output file. It is called only once there is a `score`.
        concurrency: Groups that are scored at the same time.

    Returns:
        The exit code.

    Raises:
        CommandError: The deadline of a request passed.
    """
    async with scoring as score:
        report = open_report()

        async def answer(group: list[Line]) -> list[Rewards]:
            return await _answers(group, score)

        groups = in_order(read_groups(lines, GROUP_SIZE), answer, concurrency=concurrency)
        try:
            async with aclosing(groups) as answered_groups:
                async for group, answers in answered_groups:
                    report.take(group, answers)
        except BaseException as error:
            report.clear()
            if getattr(error, "code", None) == DeadlineExceededError.code:
                remedy = "give more with --timeout-s, or send less at a time with --concurrency"
                raise CommandError(f"{error}: {remedy}") from None
            raise
    return report.finish()


async def _answers(group: list[Line], score: Score) -> list[Rewards]:
    """One answer per line; a line that is no item keeps its error."""
    items = [line.item for line in group if line.item is not None]
    scored: list[Rewards] = []
    if items:
        scored = await score(items)
    numbered = enumerate(scored)
    answers = []
    for line in group:
        if line.item is None:
            answers.append(Rewards(None, error=line.error))
        else:
            answers.append(_without_position(*next(numbered)))
    return answers


def _without_position(position: int, answer: Rewards) -> Rewards:
    """The answer with `response` for `items[3].response` in its error: the reader of a file knows
    lines, and nothing of the items that travelled together."""
    if answer.error is None:
        return answer
    param = (answer.error.param or "").removeprefix(f"items[{position}]").removeprefix(".")
    return replace(answer, error=replace(answer.error, param=param or None))


def _open_input(name: str, files: ExitStack) -> BinaryIO:
    if name == "-":
        # Not sys.stdin: a thread that still waits in it at exit would hold a lock that Python
        # needs.
        stream: BinaryIO = open(0, "rb", closefd=False)  # noqa: SIM115
    else:
        stream = Path(name).open("rb")  # noqa: SIM115
    # Closing a pipe would wait for a read that may never end; the exit of the process closes it.
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        files.enter_context(stream)
    return stream


def _refuse_input(output: Path, lines: BinaryIO) -> None:
    """Raises CommandError if the output is the input: it would lose the lines not read yet."""
    status = os.fstat(lines.fileno())
    if stat.S_ISREG(status.st_mode) and output.exists() and os.path.samestat(status, output.stat()):
        raise CommandError(f"--output {output} is the file that is read: name another", exit_code=2)
