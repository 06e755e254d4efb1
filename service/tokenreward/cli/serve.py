"""`tokenreward serve`: the whole service on this machine, until Ctrl-C.

It knows how to start, to say what to try, and to stop. What runs is `tokenreward.deployment`'s.
"""

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
from tokenreward.wire.paths import REWARDS_PATH


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subcommand(
        subparsers,
        "serve",
        more="It says when it is ready; Ctrl-C stops it.",
        examples="""
            tokenreward serve
            tokenreward serve --config rewards.yaml --port 9000
            tokenreward serve --config smol
        """,
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML settings; default: the embedded demo"
    )
    parser.add_argument("--host", help="address to listen on (default: the config's, 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the config's, 8000)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal stops it; 1 if it could not start or died."""
    try:
        settings = effective_settings(args)
        read_api_keys(settings.api_keys_file)
        read_api_keys(settings.admin_keys_file, "admin_keys_file")
    except SettingsError as error:
        return _fail(str(error))
    from tokenreward.deployment.instance import Instance
    from tokenreward.deployment.machine import StartFailed, refuse_taken_port
    from tokenreward.deployment.plan import internal_url
    from tokenreward.http.plans import check_plans

    try:
        check_plans(settings)
        refuse_taken_port(settings.host, settings.port)
        instance = Instance(settings, _say)
    except (SettingsError, StartFailed) as error:
        return _fail(str(error))
    on_stop_signal(lambda: _stop_and_exit(instance.stop, 0))
    try:
        instance.start(on_connected=claim_signals)
        _say(f"ready {internal_url(settings)}")
        _say(f"try: {example_command(settings, internal_url(settings))}")
        instance.watch()
        _fail("Ray died; the service is down")
    except StartFailed as error:
        _fail(str(error))
    _say(f"logs are kept in {instance.logs}")
    return _stop_and_exit(partial(instance.stop, keep_logs=True), 1)


def example_command(settings: Settings, url: str) -> str:
    """A shell command that scores something with the first scorer.

    With API keys, the first one goes to curl through a pipe: it is in no list of processes and in
    no shell's history. A key is the first run of printable ASCII in the file, since the file holds
    nothing else but white space and maybe a byte order mark. `grep -a -o` finds it whatever ends
    the lines.

    Args:
        settings: What is served, on the keys of which file.
        url: The address of the service.
    """
    scorer = settings.deployments[0].scorers[0].served_name
    body = json.dumps({"scorer": scorer, "items": [_example(settings)]})
    request = f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    if settings.api_keys_file is None:
        return f"curl {url}{REWARDS_PATH} {request}"
    file = shlex.quote(str(settings.api_keys_file))
    first_key = f"LC_ALL=C grep -a -o '[[:graph:]]*' < {file} | head -n 1"
    header = "sed 's/^/Authorization: Bearer /'"
    return f"{first_key} | {header} | curl {url}{REWARDS_PATH} -H @- {request}"


def on_stop_signal(stop: Callable[[], object]) -> None:
    """Calls `stop` on a thread of its own at the first SIGINT or SIGTERM.

    A thread at the end of a pipe hears of a signal at once, even while the main thread is deep in
    Ray's C++ code, and no KeyboardInterrupt is raised anywhere.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    claim_signals()

    def wait() -> None:
        while os.read(read_end, 1)[0] not in (signal.SIGINT, signal.SIGTERM):
            pass
        stop()

    threading.Thread(target=wait, daemon=True).start()


def claim_signals() -> None:
    """Has Python's own C handler take the signals, which wakes the thread of `on_stop_signal`.

    The Python handler has nothing left to do.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)


def effective_settings(args: argparse.Namespace) -> Settings:
    """The settings of the config, or of the demo; `--host` and `--port` override them."""
    settings = demo_settings() if args.config is None else load_settings(args.config)
    overrides = {"host": args.host, "port": args.port}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    return parse_settings({**settings.model_dump(exclude_unset=True), **overrides})


def _example(settings: Settings) -> dict[str, Any]:
    """An item to score, with a wrong fact. For the embedded models it is from their world."""
    checkpoint = settings.deployments[0].checkpoint
    if checkpoint == "demo:smol":
        question = [{"role": "user", "content": "What is the capital of France?"}]
        return {"prompt": question, "response": "The capital of France is Berlin."}
    if not checkpoint.startswith("demo:"):
        return {"prompt": "2 + 2 =", "response": " 4."}
    from tokenreward.demo import example_pair

    pair = example_pair()
    return {"prompt": [{"role": "user", "content": pair.prompt}], "response": pair.corrupted}


def _stop_and_exit(stop: Callable[[], None], code: int) -> int:
    """Ends the process, without Ray's exit hooks: they would wait for processes that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Ray's C++ threads complain on stdout and stderr of the processes that `stop` kills.
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    stop()
    os._exit(code)


def _say(line: str) -> None:
    print(line, flush=True)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 1
