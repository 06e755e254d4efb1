"""`tokenreward schema`: the JSON schema of the settings, the OpenAPI document, or Ray Serve's
config made of a file.

It loads no checkpoint and starts nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tokenreward.cli import subcommand
from tokenreward.config import load_settings
from tokenreward.settings import Settings, SettingsError


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subcommand(
        subparsers,
        "schema",
        examples="""
            tokenreward schema > settings.schema.json
            tokenreward schema --openapi > openapi.json
            tokenreward schema --serve rewards.yaml > ray.yaml
        """,
    )
    document = parser.add_mutually_exclusive_group()
    document.add_argument(
        "--openapi", action="store_true", help="print the OpenAPI document of the HTTP API"
    )
    document.add_argument(
        "--serve", type=Path, metavar="FILE", help="print Ray Serve's config for these settings"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it; 1 if the settings cannot be served."""
    if args.openapi:
        from tokenreward.http.openapi import document

        print(json.dumps(document(), indent=2))
        return 0
    if args.serve is None:
        print(json.dumps(Settings.model_json_schema(), indent=2))
        return 0
    import yaml

    from tokenreward.deployment.plan import serve_config

    try:
        config = serve_config(load_settings(args.serve))
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(yaml.safe_dump(config, sort_keys=False), end="")
    return 0
