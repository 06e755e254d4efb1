"""The `tokenreward` command: picks the subcommand and turns what goes wrong into one line on stderr
and an exit code.

It imports the module of the subcommand that was named and no other, so `tokenreward score` works
where only the client is installed. Exit codes: 0 done, 1 it failed, 2 it was asked wrongly, 130
interrupted.
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
    "check": "load the checkpoints of a config, probe them, and say what would be served",
    "schema": "print the JSON schema of the settings, or Ray Serve's config",
}


class CommandError(Exception):
    """The command cannot do what it was asked; the message is for the person who asked."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(argv: list[str] | None = None) -> int:
    """Run one command line, by default the process's own, and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = _parser(argv).parse_args(argv)
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has left; Python would complain again while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        explained = _explained(error)
        if explained is None:
            raise
        line, exit_code = explained
        # A service's message may quote text of others.
        print("error:", safe_text(line, keep="\n\t"), file=sys.stderr)
        return exit_code


def subcommand(
    subparsers: Any, name: str, *, more: str = "", examples: str
) -> argparse.ArgumentParser:
    """The parser of one command: its summary and what `more` there is to say above the arguments,
    examples below."""
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


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenreward",
        description="Dense per-token rewards for RL of language models.",
        epilog="`tokenreward COMMAND --help` has the options of a command and examples.",
    )
    parser.add_argument("--version", action="version", version=f"tokenreward {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    named = next((argument for argument in argv if not argument.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name == named:
            importlib.import_module(f"tokenreward.cli.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def _explained(error: Exception) -> tuple[str, int] | None:
    """What to tell the person and the exit code, or None for a bug of ours, whose traceback is
    wanted."""
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
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 1
    if isinstance(error, ModuleNotFoundError) and not (error.name or "tokenreward").startswith(
        "tokenreward"
    ):
        return f"this needs {error.name}, which comes with: pip install 'tokenreward[server]'", 1
    return None
