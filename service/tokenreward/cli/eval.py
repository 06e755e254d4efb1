"""`tokenreward eval`: judges the scorers of a running service on preference data; a table, and JSON
and HTML if wanted.

What the data are, how answers are asked for and what they are worth is `tokenreward.eval`'s
business.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenreward.cli import CommandError, subcommand
from tokenreward.cli.flags import add_service_flags, by_label, positive
from tokenreward.cli.progress import Progress
from tokenreward.cli.source import key_in, probe
from tokenreward.eval import (
    KINDS,
    Answer,
    Cache,
    Candidate,
    Dataset,
    EvalError,
    Judged,
    Run,
    Subject,
    ask,
    judged,
    known_subject,
    load,
    try_out,
)
from tokenreward.eval.page import Answered, examples_of, page
from tokenreward.eval.record import record
from tokenreward.eval.table import WIDTH, tables
from tokenreward.eval.visible import visible
from tokenreward_client import AsyncClient, ScorerInfo

DEFAULT_CACHE = Path("tokenreward-eval-cache.jsonl")


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subcommand(
        subparsers,
        "eval",
        more="Answers are kept as they come: a run that was stopped goes on where it stopped. Exit code 1 if any item "
        "has no answer.",
        examples="""
            python -m tokenreward.demo.pairs --pairs 1000 > pairs.jsonl
            tokenreward eval pairs.jsonl --scorer logprob --scorer attention_dense --html report.html
            tokenreward eval pairs.jsonl --scorer mean=endogenous --options 'mean={"aggregation": "mean"}'
        """,
    )
    parser.add_argument("file", nargs="+", type=Path, help="data, all of one kind; see --kind")
    parser.add_argument(
        "--kind", choices=list(KINDS), help="default: seen in the fields of the first row"
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="no more than the first N rows of each file"
    )
    parser.add_argument(
        "--prompt-as",
        choices=("user", "raw"),
        default="user",
        help="a prompt that is a string is one user message, or raw text (default: %(default)s)",
    )
    add_service_flags(parser)
    parser.add_argument(
        "--scorer",
        action="append",
        metavar="[LABEL=]NAME",
        help=(
            "a scorer, repeatable (default: all that are served); a label lets one be judged "
            "under several options"
        ),
    )
    for flag in ("options", "credit"):
        said = f"{flag} of a scorer, repeatable; the label may be left out if only one is judged"
        parser.add_argument(
            f"--{flag}", action="append", default=[], metavar="[LABEL=]{...}", help=said
        )
    parser.add_argument(
        "--cache",
        type=Path,
        default=DEFAULT_CACHE,
        metavar="FILE",
        help="where answers are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="ask for everything again, and keep nothing"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every figure and every error here"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with plots and the worst cases here"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Judge the scorers; 1 if any item has no answer."""
    for file in (args.json, args.html):
        if file is not None and not file.parent.is_dir():
            raise CommandError(f"{file.parent} is not a directory", exit_code=2)
    try:
        dataset = load(args.file, kind=args.kind, prompt_as=args.prompt_as, limit=args.limit)
        answered = asyncio.run(_evaluate(args, dataset))
    except EvalError as error:
        raise CommandError(visible(str(error))) from None
    rows = [row.judged for row in answered]
    if args.json is not None:
        outcome = record(dataset, rows, files=[str(file) for file in args.file])
        args.json.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")
    if args.html is not None:
        title = f"tokenreward eval: {', '.join(file.name for file in args.file)}"
        args.html.write_text(page(dataset, answered, title=title), encoding="utf-8")
    print(tables(dataset, rows, width=_width()))
    return _exit_code(rows)


async def _evaluate(args: argparse.Namespace, dataset: Dataset) -> list[Answered]:
    """One scorer after the other: what one takes is no other's latency."""
    key = None if args.api_key_file is None else key_in(args.api_key_file)
    await probe(args.url, key)
    client = AsyncClient(
        args.url, api_key=key, timeout_s=args.timeout_s, max_concurrency=args.concurrency
    )
    async with client:
        run = Run(
            client, None if args.no_cache else Cache(args.cache), concurrency=args.concurrency
        )
        subjects = _subjects(args, await client.scorers())
        for subject in subjects:
            await try_out(run, subject, dataset.candidates)
        if len(subjects) > 1:
            print(
                f"{len(subjects)} scorers: {', '.join(subject.label for subject in subjects)}",
                file=sys.stderr,
            )
        try:
            return [
                await _one(run, subject, dataset, with_examples=args.html is not None)
                for subject in subjects
            ]
        except BaseException:  # Ctrl-C, too, which cancels this
            if run.cache is not None and run.cache.num_kept:
                said = f"{run.cache.num_kept} new answers are kept in {run.cache.file}"
                print(f"stopped; {said}: the same command goes on from there", file=sys.stderr)
            raise


def _subjects(args: argparse.Namespace, listed: list[ScorerInfo]) -> list[Subject]:
    """What `--scorer`, `--options` and `--credit` ask for."""
    names: dict[str, str] = {}
    for value in args.scorer or [info.name for info in listed]:
        label, _, name = value.partition("=")
        if label in names:
            raise CommandError(
                f"two scorers are labelled `{label}`: give one of them as LABEL=NAME", exit_code=2
            )
        names[label] = name or label
    options, credit = (
        by_label(args.options, "--options", names),
        by_label(args.credit, "--credit", names),
    )
    return [
        known_subject(
            label, name, listed, options=options.get(label, {}), credit=credit.get(label, {})
        )
        for label, name in names.items()
    ]


async def _one(run: Run, subject: Subject, dataset: Dataset, *, with_examples: bool) -> Answered:
    row = judged(subject, dataset, await _with_progress(run, subject, dataset.candidates))
    examples = examples_of(row, dataset) if with_examples else {}
    return Answered(
        row, dict(zip(examples, await ask(run, subject, list(examples.values())), strict=True))
    )


async def _with_progress(
    run: Run, subject: Subject, candidates: Sequence[Candidate]
) -> list[Answer]:
    bars: list[Progress] = []

    def started(num_asked: int, num_cached: int) -> None:
        found = f", {num_cached} are in the cache" if num_cached else ""
        print(f"{subject.label}: {num_asked} items to score{found}", file=sys.stderr)
        bars.extend([Progress(sys.stderr, num_asked)] if num_asked else [])

    def done(num_answered: int, num_failed: int) -> None:
        bars[0].advance(num_answered, num_answered, num_failed=num_failed)

    try:
        answers = await ask(replace(run, on_start=started, on_done=done), subject, candidates)
    finally:
        for bar in bars:
            bar.finish()
    if run.cache is not None and run.cache.num_unreadable:
        print(
            f"{run.cache.file}: {run.cache.num_unreadable} lines cannot be read and count as "
            "absent",
            file=sys.stderr,
        )
    return answers


def _exit_code(rows: Sequence[Judged]) -> int:
    """Says on stderr whether all was answered."""
    num_failed, num_items = (
        sum(len(row.failures) for row in rows),
        sum(row.num_items for row in rows),
    )
    if not num_failed:
        return 0
    first = next(failure for row in rows for failure in row.failures)
    said = visible(f"{first.where}: {first.code}: {first.message}")
    print(
        f"error: {num_failed} of {num_items} items have no answer; the first: {said}",
        file=sys.stderr,
    )
    return 1


def _width() -> int:
    """Of the terminal, if it is one."""
    return shutil.get_terminal_size((WIDTH, 0)).columns if sys.stdout.isatty() else WIDTH
