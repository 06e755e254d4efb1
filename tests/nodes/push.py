"""Pushes of weights to the cluster's language model, and whether all of its replicas follow.

Odd and even versions are two checkpoints, so that the rewards of each version are known. A push is
of one version everywhere in the end, or of none.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from nodes.cluster import ADMIN_KEY, KEY, NUM_SFT
from tokenreward_client import Client, ClientError

CHECKPOINTS = ("demo:dpo", "demo:sft")  # of even and of odd versions; version 1 is declared
_DEPLOYMENT = "sft"
# A gateway that died while it pushed holds others up for 30 s. Replicas that missed the commit
# follow with one of Ray's health checks, every second.
PUSH_S = 60.0
_FOLLOW_S = 60.0


def push(url: str, version: int, *, timeout_s: float = PUSH_S) -> str:
    """Pushes a version. Returns what went wrong, or ""."""
    with Client(url, api_key=KEY) as client:
        try:
            client.update_weights(
                _DEPLOYMENT,
                checkpoint=CHECKPOINTS[version % 2],
                version=version,
                admin_key=ADMIN_KEY,
                timeout_s=timeout_s,
            )
        except ClientError as error:
            return f"{type(error).__name__}: {error}"
    return ""


def newest(url: str) -> int:
    """The version that was pushed last."""
    return served(url)[0]


def served(url: str) -> tuple[int, list[int | None]]:
    """The version that was pushed last, and those that the replicas have."""
    with Client(url, api_key=KEY, timeout_s=30) as client:
        weights = client.weights(_DEPLOYMENT, ADMIN_KEY)
    declared = 1 if weights.pushed is None else weights.pushed.version
    return declared, [replica.version for replica in weights.replicas]


def half_states(urls: Sequence[str], versions: Iterable[int]) -> list[str]:
    """Waits until all replicas have the version that was pushed last.

    Args:
        urls: Addresses, which must all say so.
        versions: One of these it must be.

    Returns:
        What is not as it must be.
    """
    until = time.monotonic() + _FOLLOW_S
    allowed = set(versions)
    while True:
        states = [served(url) for url in urls]
        if all(last in allowed and each == [last] * NUM_SFT for last, each in states):
            return []
        if time.monotonic() > until:
            return [f"pushed and served: {states}, must be one of {sorted(allowed)}"]
        time.sleep(0.5)
