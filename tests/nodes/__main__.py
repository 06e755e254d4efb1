"""Kills parts of a cluster of three nodes under load, and says what callers saw.

    python -m nodes                    # all faults, in namespaces of its own
    python -m nodes node cable         # some

Prints what is on each node, a line per fault, and the requests that failed or took long after it.
Ends with 1 if an answer was lost or wrong or a gap was too long.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from fakes import namespace
from nodes.cluster import KEY, Cluster
from nodes.faults import LASTING, NAMES, Faults
from nodes.load import KINDS, Callers
from nodes.push import push
from nodes.tries import slow_or_failed

_CALM_S = 5.0
_WATCHED_S = 25.0
_LONGEST_GAP_S = 5.0
_LONGEST_GAP_OF_A_NODE_S = 8.0
_MOST_LINES = 30  # of requests that failed or took long
_INSIDE = "--inside"


async def watch(cluster: Cluster, callers: Callers, name: str) -> bool:
    """Lets a fault happen under load, and prints what callers saw. Returns whether it was as
    promised."""
    limit_s = _LONGEST_GAP_OF_A_NODE_S if name == "node" else _LONGEST_GAP_S
    await asyncio.to_thread(Faults(cluster).prepare, name)
    for machine in cluster.machines:
        print(f"    {machine.name}: {', '.join(cluster.roles(machine))}", flush=True)
    await callers.begin()
    await asyncio.sleep(_CALM_S)
    began = time.monotonic()
    problems = await asyncio.to_thread(getattr(Faults(cluster), name))
    await asyncio.sleep(_WATCHED_S - (time.monotonic() - began))
    gaps = {kind: callers.sight.longest_gap_s(kind, began) for kind in KINDS}
    sight = await callers.end()
    num = sum(len(each) for each in sight.successes.values())
    line = ", ".join(f"{kind} {gaps[kind]:.1f} / {sight.longest_s[kind]:.1f} s" for kind in KINDS)
    load = os.getloadavg()[0]
    print(
        f"{name:<16}{num:>6} answers, {len(sight.lost)} lost, {sight.num_wrong} wrong; "
        f"longest gap / call: {line}; load {load:.0f}",
        flush=True,
    )
    lines = slow_or_failed(sight.tries, began)
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES:] = [f"and {len(lines) - _MOST_LINES} more"]
    for each in [*problems, *sight.lost[:5], *lines]:
        print(f"    {each}", flush=True)
    began = time.monotonic()
    if name in LASTING:
        await asyncio.to_thread(cluster.bring_back, cluster.others[-1])
    await asyncio.to_thread(cluster.wait_whole)
    print(f"    whole again after {time.monotonic() - began:.0f} s", flush=True)
    failures = [*problems, *sight.lost]
    return not failures and not sight.num_wrong and max(gaps.values()) <= limit_s


async def run(names: list[str]) -> int:
    """Exit code."""
    folder = Path(tempfile.mkdtemp(prefix="trn-"))
    began = time.monotonic()
    try:
        cluster = Cluster(folder)
        cluster.bring_up()
        print(f"three nodes are ready after {time.monotonic() - began:.0f} s", flush=True)
        callers = Callers(cluster.urls[:2], KEY)
        await callers.learn()
        if error := push(cluster.urls[0], 2):
            raise RuntimeError(f"nothing can be pushed: {error}")
        await callers.learn()
        results = [await watch(cluster, callers, name) for name in names]
    finally:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # its machine has ended with all of its own
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if all(results) else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="nodes")
    parser.add_argument("names", nargs="*", metavar="FAULT", help=", ".join(NAMES))
    parser.add_argument(_INSIDE, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.names or NAMES
    if set(names) - set(NAMES):
        parser.error(f"there are {', '.join(NAMES)}")
    for command in ("ip", "nsenter"):
        if shutil.which(command) is None:
            raise SystemExit(f"there is no command `{command}`")
    if not args.inside:
        command = [sys.executable, "-m", "nodes", _INSIDE]
        return namespace.run([*command, *names])
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    return asyncio.run(run(names))


if __name__ == "__main__":
    sys.exit(main())
