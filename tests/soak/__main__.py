"""`make soak`: a service with autoscaling under a load that rises and falls, with a push of weights
every minute. Nothing may be lost, and no process may grow.

It exits with 1 if a request had no answer or a wrong one, if a reply had two versions, or if the
memory of a process grew by more than 2 % after the first third of the time. By then every shape of
batch has come, and caches are full. Ray's own processes are shown and not judged.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fakes.readings import readings
from fakes.serve import ServedPolicy, demo
from fakes.versions import Truths
from soak import kinds, memory
from soak.load import Load
from tokenreward_client import AsyncClient, ClientError

ADMIN_KEY = "sesame"
CHECKPOINTS = ("demo:sft", "demo:dpo")
AUTOSCALING = {
    "max_replicas": 3,
    "target_queue_s": 1,
    "upscale_delay_s": 1,
    "downscale_delay_s": 15,
}
PUSH_EVERY_S = 60.0
LOOK_EVERY_S = 5.0
MOST_GROWTH = 0.02
# What they keep is not ours to choose.
RAYS_OWN = {"gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent"}


@dataclass
class Watched:
    """What was seen of the service beside the answers.

    Attributes:
        replicas: Whenever a number changed: seconds, replicas that are to run, replicas that run.
        lent: Items lent, by replica and outcome.
        push_s: Seconds of each push.
        missed: Pushes whose reply named a replica that had not changed.
        failed: Pushes that were given up, and why.
    """

    replicas: list[tuple[float, int, int]] = field(default_factory=list)
    lent: dict[str, float] = field(default_factory=dict)
    push_s: list[float] = field(default_factory=list)
    missed: int = 0
    failed: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", type=Path, help="a file for all that was seen")
    args = parser.parse_args()
    sft, rm = (kinds.DEPLOYMENTS[name] for name in (kinds.SFT, kinds.RM))
    deployments = [
        {**sft, "num_cpus": 0.5, "autoscaling": AUTOSCALING},
        {**rm, "num_cpus": 0.5},
    ]
    with tempfile.TemporaryDirectory() as folder:
        keys, config = Path(folder) / "admins", Path(folder) / "service.yaml"
        keys.write_text(ADMIN_KEY + "\n")
        config.write_text(json.dumps({"deployments": deployments, "admin_keys_file": str(keys)}))
        with demo(Path(folder), "--config", str(config)) as service:
            load, watched, processes = asyncio.run(run(service, args.minutes * 60))
    if args.json:
        seen = {"tally": vars(load.tally), "watched": vars(watched)}
        content = {**seen, "processes": [asdict(each) for each in processes]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(content, default=list))
    print("\n".join(lines(load, watched)))
    warm_up_s, window_s = args.minutes * 20, args.minutes * 10  # of 30 minutes, ten and five
    print("\n".join(memory.table(processes, warm_up_s, window_s)))
    problems = judge(load, watched, args.minutes) + grown(processes, warm_up_s, window_s)
    print("\n".join(problems) or "all as promised")
    return bool(problems)


async def run(
    service: ServedPolicy, seconds: float
) -> tuple[Load, Watched, list[memory.ProcessMemory]]:
    """Load, pushes and looks at the processes, for so long."""
    truths = {
        kinds.SFT: await Truths.computed(kinds.DEPLOYMENTS[kinds.SFT], CHECKPOINTS, kinds.ITEMS),
        kinds.RM: await Truths.computed(kinds.DEPLOYMENTS[kinds.RM], ["demo:rm"], kinds.ITEMS),
    }
    for each in truths.values():
        errors = {place: each.error_of(place) for place in range(len(kinds.ITEMS))}
        assert {place: code for place, code in errors.items() if code} == kinds.ERRORS
    load, watched = Load(service.url, truths), Watched()
    processes, is_done = memory.Memory(service.root), asyncio.Event()
    began = time.monotonic()
    callers = asyncio.create_task(load.run(is_done))
    others = [
        asyncio.create_task(push_forever(service.url, watched)),
        asyncio.create_task(look_forever(load, watched, processes)),
    ]
    await asyncio.wait([callers, *others], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        if task.done():
            task.result()
        task.cancel()
    is_done.set()
    await callers
    print(f"{time.monotonic() - began:.0f} s")
    return load, watched, list(processes.processes.values())


async def push_forever(url: str, watched: Watched) -> None:
    async with AsyncClient(url, timeout_s=120) as client:
        version = 1
        while True:
            await asyncio.sleep(PUSH_EVERY_S)
            version += 1
            began = time.monotonic()
            try:
                reply = await client.update_weights(
                    kinds.SFT,
                    checkpoint=CHECKPOINTS[(version - 1) % 2],
                    version=version,
                    admin_key=ADMIN_KEY,
                )
            except ClientError as error:
                watched.failed.append(f"version {version}: {error}")
                continue
            watched.push_s.append(time.monotonic() - began)
            watched.missed += any(each.version != version for each in reply.replicas)


async def look_forever(load: Load, watched: Watched, processes: memory.Memory) -> None:
    began = time.monotonic()
    while True:
        at = time.monotonic() - began
        processes.look(at)
        text = await load.text("/metrics")
        counts = [
            int(sum(readings(text, f"replicas_{name}", deployment=kinds.SFT).values()))
            for name in ("desired", "running")
        ]
        if not watched.replicas or watched.replicas[-1][1:] != tuple(counts):
            watched.replicas.append((at, counts[0], counts[1]))
        watched.lent |= readings(text, "lent_items_total", deployment=kinds.SFT)
        await asyncio.sleep(LOOK_EVERY_S)


def lines(load: Load, watched: Watched) -> list[str]:
    """The figures, for people."""
    tally = load.tally
    return [
        f"requests: {dict(sorted(tally.statuses.items()))}, {tally.num_hung_up} hung up, "
        f"{tally.num_late} late, the longest {tally.longest_s:.1f} s",
        f"connections that broke, whose requests were sent again: {tally.broken}",
        f"items: {tally.num_items} right, of which {tally.num_errors} errors; "
        f"{len(tally.lost)} requests lost, {len(tally.wrong)} items wrong, "
        f"{len(tally.mixed)} replies of two versions",
        f"pushes: {len(watched.push_s)}, the longest {max(watched.push_s, default=0):.1f} s; "
        f"{watched.missed} were missed by a replica at first; {len(tally.versions)} versions",
        f"replicas (s, to run, running): {watched.replicas}",
        f"items lent: {sum(watched.lent.values()):.0f}, {lent(watched, 'returned'):.0f} returned",
    ]


def lent(watched: Watched, outcome: str) -> float:
    return sum(number for labels, number in watched.lent.items() if f'="{outcome}"' in labels)


def judge(load: Load, watched: Watched, minutes: float) -> list[str]:
    """What is not as promised."""
    tally, problems = load.tally, []
    for name in ("lost", "wrong", "mixed"):
        cases = getattr(tally, name)
        if cases:
            problems.append(f"{len(cases)} {name}: {cases[:5]}")
    errors = {status: n for status, n in tally.statuses.items() if status not in EXPECTED}
    if errors:
        problems.append(f"statuses that nobody deserves: {errors}")
    problems += watched.failed
    if len(watched.push_s) < int(minutes) - 1:
        problems.append(f"only {len(watched.push_s)} pushes")
    running = [number for _, _, number in watched.replicas]
    if max(running) < 2 or 1 not in running[running.index(max(running)) :]:
        problems.append(f"replicas did not come and go: {watched.replicas}")
    if not lent(watched, "computed"):
        problems.append("nothing was lent")
    return problems


EXPECTED = {"200", "400", "404", "408", "422", "503", "504"}


def grown(processes: list[memory.ProcessMemory], warm_up_s: float, window_s: float) -> list[str]:
    """The processes that are larger at the end, without Ray's own."""
    problems = []
    for process in processes:
        growth = process.growth(warm_up_s, window_s)
        if process.name in RAYS_OWN:
            continue
        if growth is not None and growth[1] > (1 + MOST_GROWTH) * growth[0]:
            problems.append(f"{process.name} grew from {growth[0]:.1f} to {growth[1]:.1f} MiB")
    return problems


if __name__ == "__main__":
    sys.exit(main())
