"""`tokenreward check`: whether a config can be served. It validates the settings, then loads and
probes every checkpoint.

It starts no service and needs no Ray.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tokenreward.cli import subcommand
from tokenreward.config import demo_settings, load_settings, read_api_keys
from tokenreward.settings import DeploymentSettings, SettingsError


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subcommand(
        subparsers,
        "check",
        more="Exit code 1 if any is refused.",
        examples="""
            tokenreward check --config rewards.yaml
            tokenreward check --config rewards.yaml --settings-only
        """,
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML settings; default: the embedded demo"
    )
    parser.add_argument(
        "--settings-only",
        action="store_true",
        help="validate the file without loading any checkpoint",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 if every deployment can be served, 1 if one is refused: each is looked at.

    Raises:
        SettingsError: The config or its key file is wrong.
    """
    settings = demo_settings() if args.config is None else load_settings(args.config)
    read_api_keys(settings.api_keys_file)
    read_api_keys(settings.admin_keys_file, "admin_keys_file")
    from tokenreward.http.plans import check_plans

    check_plans(settings)
    exit_code = max(_check_scorers(deployment) for deployment in settings.deployments)
    if exit_code == 0:
        print(f"settings: {len(settings.deployments)} deployments, all valid")
    if exit_code or args.settings_only:
        return exit_code
    return max(_check(deployment) for deployment in settings.deployments)


def _check_scorers(deployment: DeploymentSettings) -> int:
    from tokenreward.engine.plan import served_scorers

    try:
        served_scorers(deployment)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _check(deployment: DeploymentSettings) -> int:
    from tokenreward.checkpoints.checkpoint import CheckpointRefused
    from tokenreward.engine import Engine

    try:
        engine = Engine.load(deployment, say=print)
    except CheckpointRefused as error:
        print(f"error: {deployment.name}: {error}", file=sys.stderr)
        return 1
    except SettingsError as error:  # which names the deployment
        print(f"error: {error}", file=sys.stderr)
        return 1
    for scorer in engine.describe():
        print(
            f"{deployment.name}: serves {scorer['name']} ({scorer['type']}), credits "
            f"{', '.join(scorer['credits'])}"
        )
    return 0
