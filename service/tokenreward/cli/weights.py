"""`tokenreward weights`: push weights to a deployment of a running service, or show which it has.

It sends names of folders. Whether the weights fit is for the service.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenreward.cli import CommandError, subcommand
from tokenreward.config import read_api_keys
from tokenreward_client import Client


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subcommand(
        subparsers,
        "weights",
        more="Without --checkpoint it shows them. It prints JSON.",
        examples="""
            tokenreward weights rm --admin-key-file admin.txt
            tokenreward weights rm --admin-key-file admin.txt --checkpoint /runs/200 --version 200
        """,
    )
    parser.add_argument("deployment", help="the deployment's name")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the running service")
    parser.add_argument(
        "--admin-key-file", type=Path, required=True, metavar="FILE", help="its first key is used"
    )
    parser.add_argument("--checkpoint", help="folder, as the service's machines see it, or hub id")
    parser.add_argument("--version", type=int, metavar="N", help="greater than what is served")
    parser.add_argument("--adapter", help="the LoRA adapter on the checkpoint")
    parser.add_argument("--reference-checkpoint", help="what `implicit` compares with")
    parser.add_argument("--timeout-s", type=float, default=300.0, metavar="S")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Push or show; 1 if a replica does not serve what was pushed yet.

    Raises:
        SettingsError: The key file cannot be used.
        CommandError: Flags are missing.
        ClientError: The service refuses or does not answer.
    """
    admin_key = read_api_keys(args.admin_key_file, "--admin-key-file")[0].get_secret_value()
    names = ("checkpoint", "version", "adapter", "reference_checkpoint")
    push = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    with Client(args.url, timeout_s=args.timeout_s) as client:
        if not push:
            weights = client.weights(args.deployment, admin_key)
            print(json.dumps(asdict(weights), indent=2))
            return 0
        if "checkpoint" not in push or "version" not in push:
            message = "a push needs --checkpoint and --version"
            raise CommandError(message, exit_code=2)
        reply = client.update_weights(args.deployment, admin_key=admin_key, **push)
    print(json.dumps(asdict(reply), indent=2))
    return int(any(replica.version != reply.version for replica in reply.replicas))
