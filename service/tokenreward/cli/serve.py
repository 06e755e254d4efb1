"""`tokenreward serve`: the whole service on this machine, until Ctrl-C."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tokenreward.cli import subcommand
from tokenreward.config import demo_settings, load_settings, parse_settings, read_api_keys
from tokenreward.settings import Settings, SettingsError


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subcommand(
        subparsers,
        "serve",
        more="It says when it is ready; Ctrl-C stops it.",
        examples="""
            tokenreward serve
            tokenreward serve --config rewards.yaml --port 9000
        """,
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML settings; default: the embedded demo"
    )
    parser.add_argument("--host", help="address to listen on (default: the config's, 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the config's, 8000)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop; 1 if it could not start or died."""
    try:
        settings = settings_of(args)
        read_api_keys(settings.api_keys_file)
    except SettingsError as error:
        return _fail(str(error))
    from tokenreward.deployment.instance import Instance, StartFailed, refuse_taken_port
    from tokenreward.deployment.plan import internal_url

    try:
        refuse_taken_port(settings.host, settings.port)
    except StartFailed as error:
        return _fail(str(error))
    instance = Instance(settings, _say)
    on_stop_signal(lambda: _leave(instance.stop, 0))
    try:
        instance.connect()
        claim_signals()
        instance.deploy()
        _say(f"ready {internal_url(settings)}")
        _say(f"try: {curl(settings)}")
        instance.watch()
        _fail("Ray died; the service is down")
    except StartFailed as error:
        _fail(str(error))
    _say(f"logs are kept in {instance.logs}")
    return _leave(partial(instance.stop, keep_logs=True), 1)


def settings_of(args: argparse.Namespace) -> Settings:
    """The config's settings, or the demo's, with the command line's over them. Raises
    SettingsError."""
    settings = demo_settings() if args.config is None else load_settings(args.config)
    given = {name: getattr(args, name, None) for name in ("host", "port")}
    changed = {name: value for name, value in given.items() if value is not None}
    return parse_settings({**settings.model_dump(), **changed}) if changed else settings


def on_stop_signal(stop: Callable[[], object]) -> None:
    """Calls `stop` on its own thread at the first SIGINT or SIGTERM.

    A thread at the end of a pipe hears of a signal at once, also while the main thread is deep in
    Ray's C++ code, and no KeyboardInterrupt is raised anywhere.
    """
    listening, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    claim_signals()

    def wait() -> None:
        while os.read(listening, 1)[0] not in (signal.SIGINT, signal.SIGTERM):
            pass
        stop()

    threading.Thread(target=wait, daemon=True).start()


def claim_signals() -> None:
    """Have Python's own C handler take the signals, which wakes the thread; the Python handler has
    nothing to do."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)


def curl(settings: Settings) -> str:
    """A command line that scores something with the first scorer, as it stands."""
    from tokenreward.deployment.plan import internal_url

    scorer = settings.deployments[0].scorers[0].served_name
    key = (
        ""
        if settings.api_keys_file is None
        else f' -H "Authorization: Bearer $(head -n1 {settings.api_keys_file})"'
    )
    body = json.dumps({"scorer": scorer, "items": [_example(settings)]})
    return (
        f"curl {internal_url(settings)}/v1/rewards{key} -H 'Content-Type: application/json' -d "
        f"{shlex.quote(body)}"
    )


def _example(settings: Settings) -> dict[str, Any]:
    """Something to score: for the embedded models, a response from their world that gets a fact
    wrong."""
    if not settings.deployments[0].checkpoint.startswith("demo:"):
        return {"prompt": "2 + 2 =", "response": " 4."}
    from tokenreward.demo import example_pair

    pair = example_pair()
    return {"prompt": [{"role": "user", "content": pair.prompt}], "response": pair.corrupted}


def _leave(stop: Callable[[], None], code: int) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    silence = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # Ray's C++ threads write there of processes that are gone
        os.dup2(silence, descriptor)
    stop()
    os._exit(code)  # Ray's exit hooks would wait for them


def _say(line: str) -> None:
    print(line, flush=True)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 1
