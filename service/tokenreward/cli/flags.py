"""The flags that `score` and `eval` share: the service's address, limits of its use, and the syntax
of options and credit.

It parses and sends nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tokenreward.cli import CommandError


def add_service_flags(parser: argparse.ArgumentParser, *, url_among: Any = None) -> None:
    """Adds `--url`, `--concurrency`, `--timeout-s` and `--api-key-file`.

    Args:
        parser: The parser of a command.
        url_among: A group of flags that exclude one another, for `--url`; None: it is in no group.
    """
    (url_among or parser).add_argument(
        "--url", default="http://127.0.0.1:8000", help="the running service (default: %(default)s)"
    )
    parser.add_argument(
        "--concurrency",
        type=positive,
        default=8,
        metavar="N",
        help="requests in flight (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=300.0,
        metavar="S",
        help=(
            "seconds per request, waiting for an overloaded service included (default: %(default)s)"
        ),
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="file that holds the service's API key"
    )


def positive(text: str) -> int:
    """A whole number, 1 or more. Raises ArgumentTypeError."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def json_object(text: str, flag: str) -> dict[str, Any]:
    """The JSON object that a flag holds, as it stands in a request. Raises CommandError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CommandError(f"{flag} must be a JSON object, as {{...}}, got `{text}`", exit_code=2)
    return value


def by_label(arguments: list[str], flag: str, labels: Collection[str]) -> dict[str, dict[str, Any]]:
    """Reads a flag that is repeated, once per scorer.

    Args:
        arguments: Its values, each `LABEL={...}`, or `{...}` if there is only one label.
        flag: Its name, for messages.
        labels: The scorers' labels.

    Returns:
        The JSON objects by label.

    Raises:
        CommandError: A value has another form, or a label that is not among `labels`.
    """
    values: dict[str, dict[str, Any]] = {}
    for argument in arguments:
        label, equals, text = argument.partition("=")
        if argument.lstrip().startswith("{"):
            if len(labels) > 1:
                message = f"{flag} must say whose, as LABEL={{...}}; judged are {', '.join(labels)}"
                raise CommandError(message, exit_code=2)
            label, text = next(iter(labels)), argument
        elif not equals:
            raise CommandError(
                f"{flag} must look like [LABEL=]{{...}}, got `{argument}`", exit_code=2
            )
        if label not in labels:
            raise CommandError(
                f"{flag} names `{label}`; judged are {', '.join(labels)}", exit_code=2
            )
        if label in values:
            raise CommandError(f"{flag} of `{label}` is there twice", exit_code=2)
        values[label] = json_object(text, flag)
    return values
