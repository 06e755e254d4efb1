"""Who scores for `tokenreward score`: a running service over HTTP, or an engine in this process.

Either is an `await score(items)`. The engine, and torch with it, is imported only if it is used.
This module knows no files but those of settings and keys.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenreward.cli import CommandError
from tokenreward.cli.flags import json_object
from tokenreward.config import demo_settings, load_settings, read_api_keys
from tokenreward.settings import DeploymentSettings, Settings, SettingsError
from tokenreward.wire import ErrorDetail, RewardsRequest, parse_json
from tokenreward_client import (
    AsyncClient,
    BadArgument,
    ConnectionFailed,
    DeadlineExceeded,
    Rewards,
    ServerRefused,
)
from tokenreward_client.call import Call
from tokenreward_client.options import ScoreOptions

if TYPE_CHECKING:
    from tokenreward.engine import Engine

Score = Callable[[list[dict[str, Any]]], Awaitable[list[Rewards]]]

_PROBE_TIMEOUT_S = 10.0


def backend(args: argparse.Namespace) -> AbstractAsyncContextManager[Score]:
    """The backend that the command line names. It blocks while an engine loads.

    Returns:
        A context that gives `score`: one answer per item, in order, with an item's error in it.

    Raises:
        CommandError: The flags cannot be understood, or the checkpoint cannot be served.
        BadArgument: Options or credit would be refused for every item.
        SettingsError: The config is wrong.
        OSError: A file cannot be read.
    """
    arguments = ScoreOptions(
        options=json_object(args.options, "--options"),
        credit=json_object(args.credit, "--credit"),
        return_tokens=bool(args.show),
        on_error="return",
    )
    call = Call([], args.scorer, arguments)
    if not (args.demo or args.config):
        return _service(args, arguments)
    if call.dependencies:
        message = "asks a second scorer: that takes a running service"
        raise BadArgument(message, param=call.dependencies[0].param)
    settings = demo_settings() if args.demo else load_settings(args.config)
    return _own_engine(_load(_deployment_of(args.scorer, settings)), args, arguments)


async def probe(url: str, key: str | None) -> None:
    """Finds out at once whether a service is there. One that is still loading counts as there.

    Raises:
        CommandError: The URL cannot be one, or nothing listens there.
        ServerRefused: The key is not accepted.
        DeadlineExceeded: Something listens there and does not answer.
    """
    try:
        client = AsyncClient(url, api_key=key, timeout_s=_PROBE_TIMEOUT_S, max_retries=0)
    except BadArgument as error:
        if error.param != "base_url":
            raise
        raise CommandError(f"--url {error.args[0]}, got `{url}`", exit_code=2) from None
    async with client:
        try:
            await client.scorers()
        except ConnectionFailed as error:
            raise CommandError(f"{error}; is the service running?") from None
        except ServerRefused as error:
            if error.status == 401:
                raise
        except DeadlineExceeded as error:
            if not isinstance(error.__cause__, ServerRefused):
                raise


def first_key(file: Path | None) -> str | None:
    """The first key of a file that is read as the service reads its own; None without a file.

    Raises:
        CommandError: The file cannot be read or holds no usable key.
    """
    if file is None:
        return None
    try:
        return read_api_keys(file)[0].get_secret_value()
    except SettingsError as error:
        raise CommandError(str(error).replace("`api_keys_file`", "--api-key-file", 1)) from None


@asynccontextmanager
async def _service(args: argparse.Namespace, arguments: ScoreOptions) -> AsyncIterator[Score]:
    key = first_key(args.api_key_file)
    await probe(args.url, key)
    client = AsyncClient(
        args.url, api_key=key, timeout_s=args.timeout_s, max_concurrency=args.concurrency
    )

    async def score(items: list[dict[str, Any]]) -> list[Rewards]:
        try:
            return await client.score(items, args.scorer, **arguments)
        except ServerRefused as error:
            if error.status != 413:
                raise
            # The client sends what is too large in ever smaller parts: no item fits, even alone.
            if len(items) == 1:
                code, message = error.code or f"http_{error.status}", str(error.args[0])
                return [Rewards(None, error=ErrorDetail(code=code, message=message))]
        return [(await score([item]))[0] for item in items]

    async with client:
        yield score


@asynccontextmanager
async def _own_engine(
    engine: Engine, args: argparse.Namespace, arguments: ScoreOptions
) -> AsyncIterator[Score]:
    async def score(items: list[dict[str, Any]]) -> list[Rewards]:
        call = Call(items, args.scorer, arguments)
        positions = range(len(items))
        request = parse_json(RewardsRequest, call.body(positions))
        reply = await engine.score(request, timeout_s=args.timeout_s)
        return call.collect([call.read(reply, positions)])

    try:
        yield score
    finally:
        await engine.close()


def _load(deployment: DeploymentSettings) -> Engine:
    from tokenreward.checkpoints.checkpoint import CheckpointRefused
    from tokenreward.engine import Engine

    # The queue's limit protects a service from its callers. Here the lines that are read ahead are
    # all that can wait, and nobody would try again what is refused.
    deployment = deployment.model_copy(update={"max_queued_tokens": sys.maxsize})
    try:
        return Engine.load(deployment, say=lambda line: print(line, file=sys.stderr, flush=True))
    except CheckpointRefused as error:
        raise CommandError(str(error)) from None


def _deployment_of(scorer: str, settings: Settings) -> DeploymentSettings:
    """The deployment that serves the scorer; the others are not loaded."""
    names: list[str] = []
    for deployment in settings.deployments:
        names += [entry.served_name for entry in deployment.scorers]
        if scorer in names:
            return deployment
    raise CommandError(
        f"no deployment serves `{scorer}`; served are {', '.join(names)}", exit_code=2
    )
