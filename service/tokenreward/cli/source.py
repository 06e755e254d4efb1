"""Where rewards come from: a running service over HTTP, or an engine in this process. Either is
`await score(items)`.

The engine, and torch with it, is imported only where it is asked for.
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
from tokenreward.wire import RewardsRequest, parse_json
from tokenreward_client import (
    AsyncClient,
    BadArgument,
    ConnectionFailed,
    DeadlineExceeded,
    Rewards,
    ServerRefused,
)
from tokenreward_client.call import Asked, Batch

if TYPE_CHECKING:
    from tokenreward.engine import Engine

Score = Callable[[list[dict[str, Any]]], Awaitable[list[Rewards]]]
_PROBE_TIMEOUT_S = 10.0


def source(args: argparse.Namespace) -> AbstractAsyncContextManager[Score]:
    """What the command line asks for; blocks while an engine loads.

    Raises CommandError, SettingsError, OSError, BadArgument.
    """
    asked = asked_for(args)
    batch = Batch([], args.scorer, asked)  # refuses now what would be refused for every line
    if not (args.demo or args.config):
        return _service(args, asked)
    if batch.names_another is not None:
        raise BadArgument(
            f"`{batch.names_another}` asks a second scorer: that takes a running service",
            param=batch.names_another,
        )
    settings = demo_settings() if args.demo else load_settings(args.config)
    return _own_engine(_engine(_deployment(settings, args.scorer)), args, asked)


def asked_for(args: argparse.Namespace) -> Asked:
    """Options, credit and what else travels with every item."""
    options, credit = json_object(args.options, "--options"), json_object(args.credit, "--credit")
    return Asked(options=options, credit=credit, return_tokens=bool(args.show), on_error="return")


@asynccontextmanager
async def _service(args: argparse.Namespace, asked: Asked) -> AsyncIterator[Score]:
    key = None if args.api_key_file is None else key_in(args.api_key_file)
    await probe(args.url, key)
    client = AsyncClient(
        args.url, api_key=key, timeout_s=args.timeout_s, max_concurrency=args.concurrency
    )

    async def score(items: list[dict[str, Any]]) -> list[Rewards]:
        return await client.score(items, args.scorer, **asked)

    async with client:
        yield score


async def probe(url: str, key: str | None) -> None:
    """A service that is not there is said at once; one that is still loading is waited for
    later."""
    try:
        probing = AsyncClient(url, api_key=key, timeout_s=_PROBE_TIMEOUT_S, max_retries=0)
    except BadArgument as error:
        if error.param != "base_url":
            raise
        raise CommandError(
            f"--url {str(error).removeprefix('`base_url` ')}, got `{url}`", exit_code=2
        ) from None
    async with probing as client:
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


@asynccontextmanager
async def _own_engine(
    engine: Engine, args: argparse.Namespace, asked: Asked
) -> AsyncIterator[Score]:
    async def score(items: list[dict[str, Any]]) -> list[Rewards]:
        batch = Batch(items, args.scorer, asked)
        positions = range(len(items))
        reply = await engine.score(
            parse_json(RewardsRequest, batch.body(positions)), timeout_s=args.timeout_s
        )
        return batch.in_order([batch.read(reply, positions)])

    try:
        yield score
    finally:
        await engine.close()


def _engine(deployment: DeploymentSettings) -> Engine:
    from tokenreward.checkpoints.checkpoint import CheckpointRefused
    from tokenreward.engine import Engine

    try:
        return Engine.load(deployment, say=_say)
    except CheckpointRefused as error:
        raise CommandError(str(error)) from None


def _deployment(settings: Settings, scorer: str) -> DeploymentSettings:
    """The one deployment that serves the scorer: no other is loaded."""
    served = {
        entry.served_name: deployment
        for deployment in settings.deployments
        for entry in deployment.scorers
    }
    if scorer not in served:
        raise CommandError(
            f"no deployment serves `{scorer}`; served are {', '.join(served)}", exit_code=2
        )
    return served[scorer]


def key_in(file: Path) -> str:
    """The first key in the file, which is read as the service reads its own: that one will do.
    Raises CommandError."""
    try:
        return read_api_keys(file)[0].get_secret_value()
    except SettingsError as error:
        raise CommandError(str(error).replace("`api_keys_file`", "--api-key-file", 1)) from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
