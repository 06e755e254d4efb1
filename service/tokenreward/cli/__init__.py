"""The `tokenreward` command: runs a subcommand and turns errors into a line on stderr and an exit
code.

Each subcommand is the module of its name. Only the one on the command line is imported, so that
`tokenreward score` works where only the client is installed. Exit codes: 0 success, 1 failure, 2
wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from tokenreward import __version__
from tokenreward.display import safe_text

COMMANDS = {
    "serve": "serve scorers over HTTP on this machine",
    "score": "score prompts and responses from a JSONL file",
    "eval": "judge scorers of a running service on preference data",
    "weights": "push weights to a deployment of a running service, or show which it has",
    "check": "load the checkpoints of a config, probe them, and say what would be served",
    "schema": "print the JSON schema of the settings, or Ray Serve's config",
}


class CommandError(Exception):
    """The command cannot be carried out; its message is printed for the user."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(argv: list[str] | None = None) -> int:
    """Runs one command line, by default the process's own, and returns its exit code."""
    if argv is None:
        argv = sys.argv[1:]
    try:
        args = make_parser(argv).parse_args(argv)
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output is gone. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        explanation = _explanation(error)
        if explanation is None:
            raise
        line, exit_code = explanation
        # A service's message may quote text of others.
        print("error:", safe_text(line, keep="\n\t"), file=sys.stderr)
        return exit_code


def subcommand(
    subparsers: Any, name: str, *, more: str = "", examples: str
) -> argparse.ArgumentParser:
    """Adds the parser of one command.

    Args:
        subparsers: The parsers of all commands.
        name: A key of COMMANDS, which has its summary.
        more: Sentences that follow the summary above the arguments.
        examples: Command lines that stand below the arguments.
    """
    summary = COMMANDS[name]
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=textwrap.fill(f"{summary[0].upper()}{summary[1:]}. {more}", 78),
        epilog=f"examples:\n{textwrap.indent(textwrap.dedent(examples).strip(), '  ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a flag has one spelling
    )
    return parser


def make_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenreward",
        description="Dense per-token rewards for RL of language models.",
        epilog="`tokenreward COMMAND --help` has the options of a command and examples.",
    )
    parser.add_argument("--version", action="version", version=f"tokenreward {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    command = next((argument for argument in argv if not argument.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name == command:
            importlib.import_module(f"tokenreward.cli.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def _explanation(error: Exception) -> tuple[str, int] | None:
    """The line to print and the exit code; None for a bug of ours, whose traceback is of use."""
    from tokenreward.errors import RewardError
    from tokenreward.settings import SettingsError
    from tokenreward_client.errors import BadArgument, ClientError

    if isinstance(error, CommandError):
        return str(error), error.exit_code
    if isinstance(error, BadArgument):
        return str(error), 2
    if isinstance(error, (ClientError, RewardError, SettingsError)):
        return str(error), 1
    if isinstance(error, OSError) and error.strerror is not None:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}", 1
    if isinstance(error, ModuleNotFoundError):
        name = error.name or ""
        if name and not name.startswith("tokenreward"):
            needs = "this needs the packages of the service, of which"
            return f"{needs} {name} is missing: pip install 'tokenreward[server]'", 1
    return None
