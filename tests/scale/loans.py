"""Lending on a real Ray, judged: four replicas, and bursts that one of them accepts.

    python -m scale.loans [python haproxy]

Behind each proxy: a burst of 1,000 requests, 1,000 items in one request, the same while a replica
that borrows is killed, and what replicas cost that have nothing to do. Each burst is work for
12.5 s of four replicas.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from scale import TOKENS_PER_S
from scale.burst import (
    ITEM,
    NUM_ITEMS,
    ROUTE,
    SETTINGS,
    TOKENS_OF_AN_ITEM,
    Callers,
    text_of,
    vars_of,
)
from scale.service import PROXIES, outcome_behind, slow_service
from tokenreward.deployment import plan

NUM_REPLICAS = 4
IDEAL_S = NUM_ITEMS * TOKENS_OF_AN_ITEM / TOKENS_PER_S / NUM_REPLICAS
LEAST_SHARE = 0.9
MOST_IDLE_CPU = 0.05  # of a core, Ray's own work in a replica included
TIMEOUT_S = 120.0
KILL_AFTER_S = 3.0
SETTLE_S, IDLE_S = 5.0, 10.0


def judged() -> int:
    failures = []
    for proxy in sys.argv[1:] or PROXIES:
        outcome = outcome_behind(proxy, ["-m", "scale.loans", "--inside"])
        print(f"{proxy}: {json.dumps(outcome)}")
        failures += [f"{proxy}: {line}" for line in judge(outcome)]
        shares = [IDEAL_S / outcome[name]["makespan_s"] for name in ("many", "one")]
        print(f"{proxy}: {shares[0]:.0%} and {shares[1]:.0%} of the ideal")
    print("\n".join(failures) or "all as promised")
    return bool(failures)


def judge(outcome: dict[str, Any]) -> list[str]:
    """What is not as promised."""
    problems = []
    for name in ("many", "one", "killed"):
        burst = outcome[name]
        if burst["num_lost"] or burst["num_wrong"] or set(burst["statuses"]) != {"200"}:
            problems.append(f"{name}: {burst}")
        if name != "killed" and IDEAL_S / burst["makespan_s"] < LEAST_SHARE:
            problems.append(f"{name} took {burst['makespan_s']:.1f} s, {IDEAL_S} s were possible")
    if not outcome["killed"]["counts"].get("lent returned"):
        problems.append("the replica that was killed had borrowed nothing")
    if max(outcome["idle_cpu"]) > MOST_IDLE_CPU:
        problems.append(f"idle replicas took {outcome['idle_cpu']} of a core")
    return problems


def inside(file: Path) -> None:
    """Runs the service in this namespace, and writes what came of it to a file."""
    deployment = {**SETTINGS["deployments"][0], "num_replicas": NUM_REPLICAS, "num_cpus": 0.5}
    del deployment["autoscaling"]
    try:
        with slow_service({**SETTINGS, "deployments": [deployment]}) as (_, url):
            file.write_text(json.dumps(asyncio.run(drive(url))))
    finally:
        os.kill(os.getpid(), signal.SIGKILL)  # Ray's threads do not outlive Ray


async def drive(url: str) -> dict[str, Any]:
    outcome: dict[str, Any] = {}
    async with aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
    ) as client:
        await asyncio.gather(*(Callers(client).post() for _ in range(50)))  # each has a rate
        for name, burst in (("many", many), ("one", one), ("killed", killed)):
            await asyncio.sleep(2)
            before, began = await counts(client), time.monotonic()
            outcome[name] = await burst(client)
            outcome[name]["makespan_s"] = time.monotonic() - began
            outcome[name]["counts"] = (await counts(client)) - before
            if name == "one":
                outcome["idle_cpu"] = await idle_cpu()
    return outcome


async def many(client: aiohttp.ClientSession) -> dict[str, Any]:
    callers = Callers(client)
    await asyncio.gather(*(callers.post() for _ in range(NUM_ITEMS)))
    return vars_of(callers)


async def one(client: aiohttp.ClientSession) -> dict[str, Any]:
    body = {"scorer": "reward_model", "items": [ITEM] * NUM_ITEMS}
    async with client.post(ROUTE, json=body) as answer:
        content = await answer.json(content_type=None)
    scores = [item["score"] for item in content.get("items", [])]
    return {
        "statuses": {str(answer.status): 1},
        "num_lost": NUM_ITEMS - len(scores),
        "num_wrong": sum(score != TOKENS_OF_AN_ITEM for score in scores),
    }


async def killed(client: aiohttp.ClientSession) -> dict[str, Any]:
    """The burst in one request, whose lender has the longest queue, and a kill of another."""
    burst = asyncio.create_task(one(client))
    await asyncio.sleep(KILL_AFTER_S)
    text = await text_of(client, "/metrics")
    pattern = r'tokenreward_queued_items\{deployment="slow",replica="(\S+?)"\} (\S+)'
    queued = {name: float(number) for name, number in re.findall(pattern, text)}
    borrower = min(queued, key=lambda name: queued[name])
    psutil.Process(replica_pids()[borrower]).kill()
    return {**await burst, "queued": sorted(queued.values())}


def replica_pids() -> dict[str, int]:
    """The process of each replica, by its id."""
    import ray

    from tokenreward.deployment.replica_counts import ray_controller

    details = ray.get(ray_controller().get_deployment_details.remote("slow", plan.REPLICA))
    return {replica.replica_id: replica.pid for replica in details.replicas}


async def idle_cpu() -> list[float]:
    """The share of a core that each replica takes while nobody asks for anything."""
    await asyncio.sleep(SETTLE_S)
    processes = [psutil.Process(pid) for pid in replica_pids().values()]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    await asyncio.sleep(IDLE_S)
    after = [sum(process.cpu_times()[:2]) for process in processes]
    return [(end - start) / IDLE_S for start, end in zip(before, after, strict=True)]


async def counts(client: aiohttp.ClientSession) -> Counter[str]:
    """Items that each replica computed, and items lent, so far."""
    text = await text_of(client, "/metrics")
    numbers: Counter[str] = Counter()
    computed = re.findall(
        r'tokenreward_batch_items_sum\{deployment="slow",replica="(\S+?)"\} (\S+)', text
    )
    for replica, number in computed:
        numbers[replica] = int(float(number))
    for labels, number in re.findall(r"tokenreward_lent_items_total\{(\S+)\} (\S+)", text):
        numbers["lent " + labels.partition('outcome="')[2].partition('"')[0]] += int(float(number))
    return numbers


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(Path(sys.argv[2]))
    sys.exit(judged())
