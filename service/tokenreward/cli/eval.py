"""`tokenreward eval`: judges the scorers of a running service on preference data.

It prints a table, and writes JSON and an HTML page if a file is named for them.

It knows flags, files and the terminal; `tokenreward.eval` knows the data and judges the answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tokenreward.cli import CommandError, subcommand
from tokenreward.cli.backend import first_key, probe
from tokenreward.cli.flags import add_service_flags, by_label, json_object, positive
from tokenreward.cli.progress import Progress
from tokenreward.display import safe_text
from tokenreward.eval import (
    KINDS,
    Dataset,
    EvalError,
    ScorerOutcome,
    Subject,
    collect_answers,
    find_subject,
    groups_of,
    load,
    try_out,
)
from tokenreward.eval.report import WIDTH, html_report, json_report, text_report
from tokenreward_client import AsyncClient, ScorerInfo

DEFAULT_CACHE = Path("tokenreward-eval-cache.jsonl")


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subcommand(
        subparsers,
        "eval",
        more="Answers are kept as they come: a run that was stopped goes on where it stopped. "
        "Exit code 1 if any item has no answer.",
        examples="""
            python -m tokenreward.demo.pairs --pairs 1000 > pairs.jsonl
            tokenreward eval pairs.jsonl --scorer logprob --scorer attention_dense \
--html report.html
            tokenreward eval pairs.jsonl --scorer mean=endogenous \
--options 'mean={"aggregation": "mean"}'
        """,
    )
    _add_data_flags(parser)
    add_service_flags(parser)
    parser.add_argument(
        "--scorer",
        action="append",
        metavar="[LABEL=]NAME",
        help="a scorer, repeatable (default: all that are served); a label lets one be judged "
        "under several options",
    )
    for flag in ("options", "credit"):
        parser.add_argument(
            f"--{flag}",
            action="append",
            default=[],
            metavar="[LABEL=]{...}",
            help=f"{flag} of a scorer, repeatable; the label may be left out if only one is judged",
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


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    """The files, and how they are read."""
    parser.add_argument("file", nargs="+", type=Path, help="data, all of one kind; see --kind")
    parser.add_argument("--kind", choices=list(KINDS), help="default: seen in what the rows hold")
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="no more than the first N rows of each file"
    )
    parser.add_argument(
        "--prompt-as",
        choices=("user", "raw"),
        default="user",
        help="a prompt that is a string is one user message, or raw text (default: %(default)s)",
    )
    parser.add_argument(
        "--chat-template-kwargs",
        default="{}",
        metavar="{...}",
        help="what every chat template gets, as in an item of a request",
    )


def run(args: argparse.Namespace) -> int:
    """Judge the scorers; 1 if any item has no answer."""
    _check_outputs(args)
    try:
        dataset = load(
            args.file,
            kind=args.kind,
            prompt_as=args.prompt_as,
            limit=args.limit,
            chat_template_kwargs=json_object(args.chat_template_kwargs, "--chat-template-kwargs"),
        )
        outcomes = asyncio.run(_evaluate(args, dataset))
    except EvalError as error:
        raise CommandError(safe_text(str(error))) from None
    if args.json is not None:
        report = json_report(dataset, outcomes, files=[str(file) for file in args.file])
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.html is not None:
        title = f"tokenreward eval: {', '.join(file.name for file in args.file)}"
        args.html.write_text(html_report(dataset, outcomes, title=title), encoding="utf-8")
    width = WIDTH
    if sys.stdout.isatty():
        width = shutil.get_terminal_size((WIDTH, 0)).columns
    print(text_report(dataset, outcomes, width=width))
    return _exit_code(outcomes)


def _check_outputs(args: argparse.Namespace) -> None:
    """Raises CommandError for a file that cannot be written, or that is one of the data files."""
    outputs = {"--json": args.json, "--html": args.html}
    if not args.no_cache:
        outputs["--cache"] = args.cache
    for flag, output in outputs.items():
        if output is None:
            continue
        if not output.parent.is_dir():
            raise CommandError(f"{output.parent} is not a directory", exit_code=2)
        if output.is_dir():
            raise CommandError(f"{flag} {output} is a directory", exit_code=2)
        for file in args.file:
            if output.exists() and file.exists() and output.samefile(file):
                message = f"{flag} {output} is a file that is read: name another"
                raise CommandError(message, exit_code=2)


async def _evaluate(args: argparse.Namespace, dataset: Dataset) -> list[ScorerOutcome]:
    """The outcomes, in the order of the command line. One group of scorers after the other is
    asked: the time of one is no other's latency."""
    key = first_key(args.api_key_file)
    await probe(args.url, key)
    client = AsyncClient(
        args.url, api_key=key, timeout_s=args.timeout_s, max_concurrency=args.concurrency
    )
    async with client:
        subjects = _subjects(args, await _listing(args, client))
        groups = groups_of(subjects)
        for group in groups:
            await try_out(client, group, dataset.candidates[0])
        _say(f"{dataset.num_cases} {dataset.noun} of kind {dataset.kind}: {dataset.reason}")
        if len(subjects) > 1:
            labels = ", ".join(subject.label for subject in subjects)
            _say(f"{len(subjects)} scorers: {labels}")
        outcomes: dict[str, ScorerOutcome] = {}
        num_kept = 0

        def count(num_new: int) -> None:
            nonlocal num_kept
            num_kept += num_new

        try:
            for group in groups:
                for outcome in await _judge(args, client, group, dataset, count):
                    outcomes[outcome.subject.label] = outcome
        except BaseException:  # Ctrl-C, too, which cancels this
            if num_kept:
                _say(
                    f"stopped; {num_kept} new answers are kept in {args.cache}: "
                    "the same command goes on from there"
                )
            raise
    return [outcomes[subject.label] for subject in subjects]


async def _listing(args: argparse.Namespace, client: AsyncClient) -> list[ScorerInfo]:
    """The scorers of the service, those that `--scorer` names among them also where their
    deployment still loads.

    Raises:
        EvalError: The service lists none.
    """
    names = [value.partition("=")[2] or value for value in args.scorer or []]
    listing = await client.scorers(wait_for=names)
    if not listing:
        raise EvalError("the service lists no scorer: its deployments may still load")
    return listing


def _subjects(args: argparse.Namespace, listing: list[ScorerInfo]) -> list[Subject]:
    """The scorers that `--scorer`, `--options` and `--credit` name."""
    names: dict[str, str] = {}
    for value in args.scorer or [info.name for info in listing]:
        label, _, name = value.partition("=")
        if label in names:
            raise CommandError(
                f"two scorers are labelled `{label}`: give one of them as LABEL=NAME", exit_code=2
            )
        names[label] = name or label
    options = by_label(args.options, "--options", names)
    credit = by_label(args.credit, "--credit", names)
    subjects = []
    for label, name in names.items():
        subject = find_subject(
            label, name, listing, options=options.get(label, {}), credit=credit.get(label, {})
        )
        subjects.append(subject)
    return subjects


async def _judge(
    args: argparse.Namespace,
    client: AsyncClient,
    group: Sequence[Subject],
    dataset: Dataset,
    on_kept: Callable[[int], None],
) -> list[ScorerOutcome]:
    """The outcomes for scorers that are asked together; `--html` asks for the units that the page
    shows, too. `on_kept` gets the number of answers that went into the cache, now and then."""
    cache = None if args.no_cache else args.cache
    ask = partial(collect_answers, client, cache=cache, concurrency=args.concurrency)
    bars: list[Progress] = []

    def on_start(num_missing: int, num_cached: int, num_unreadable: int) -> None:
        if num_unreadable:
            _say(f"{args.cache}: {num_unreadable} lines cannot be read and count as absent")
        cache_note = f", {num_cached} are in the cache" if num_cached else ""
        labels = ", ".join(subject.label for subject in group)
        _say(f"{labels}: {num_missing} items to score{cache_note}")
        if num_missing:
            bars.append(Progress(sys.stderr, num_missing))

    def on_answers(num_items: int, num_errors: int, num_kept: int) -> None:
        on_kept(num_kept)
        if bars:
            bars[0].advance(num_items, num_items, num_failed=num_errors)

    try:
        answers = await ask(group, dataset.candidates, on_start=on_start, on_answers=on_answers)
    finally:
        for bar in bars:
            bar.finish()
    bars.clear()
    outcomes = []
    for subject, each in zip(group, answers, strict=True):
        outcome = dataset.outcome(subject, each)
        if args.html is not None:
            examples = dataset.example_candidates(outcome)
            (units,) = await ask([subject], list(examples.values()), on_answers=on_answers)
            example_answers = dict(zip(examples, units, strict=True))
            outcome = replace(outcome, example_answers=example_answers)
        outcomes.append(outcome)
    return outcomes


def _exit_code(outcomes: Sequence[ScorerOutcome]) -> int:
    """0 if every item has an answer; otherwise 1, and stderr gets a line about them."""
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    if not failures:
        return 0
    num_items = sum(outcome.num_items for outcome in outcomes)
    where, code, message = failures[0]
    first = f"{where}: {code}: {message}"
    _say(f"error: {len(failures)} of {num_items} items have no answer; the first: {first}")
    return 1


def _say(line: str) -> None:
    print(safe_text(line), file=sys.stderr)
