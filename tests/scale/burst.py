"""A service that grows, a burst, and a load under which it shrinks again, in a namespace of its
own.

    python burst.py FILE

It writes what it saw to FILE, as JSON, and judges nothing. Whether HAProxy or the Python proxy is
in front, the environment says.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

from scale.service import slow_service
from tokenreward.deployment import plan

NUM_ITEMS, TOKENS_OF_AN_ITEM = 1000, 400
MOST = 4
BEFORE_BURST_S = 5.0  # idle, so that the first figures are there
LEAST_S, MOST_S = 45.0, 240.0  # of the light load under which the service shrinks
PER_S = 4.0
TIMEOUT_S = 240.0
SETTINGS: dict[str, Any] = {
    "log_format": "json",
    "deployments": [
        {
            "name": "slow",
            "checkpoint": "demo:rm",
            "task": "reward_model",
            "scorers": [{"type": "reward_model"}],
            "max_batch_tokens": 4000,
            "max_concurrent_requests": 2048,
            "num_cpus": 1,
            "autoscaling": {
                "max_replicas": MOST,
                "target_queue_s": 2,
                "upscale_delay_s": 0,
                "downscale_delay_s": 15,
            },
        }
    ],
}
ITEM = {"prompt": [5] * 200, "response": [6] * (TOKENS_OF_AN_ITEM - 200)}
BODY = json.dumps({"scorer": "reward_model", "items": [ITEM]}).encode()
JSON = {"content-type": "application/json"}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACED = {**JSON, "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
ROUTE = "/d/slow/v1/rewards"


def main(file: Path) -> None:
    with slow_service(SETTINGS, keep_logs="--logs" in sys.argv) as (service, url):
        watch = Watch()
        threading.Thread(target=watch.run_forever, daemon=True).start()
        outcome = asyncio.run(drive(url, watch))
        outcome["traced"] = traced(service.logs / "serve")
        file.write_text(json.dumps(outcome))


class Watch:
    """Notes whenever the number of replicas changes, wanted or running.

    Attributes:
        changes: When, wanted, running.
    """

    def __init__(self) -> None:
        self.changes: list[tuple[float, int, int]] = []

    def run_forever(self) -> None:
        import ray

        from tokenreward.deployment.replica_counts import ray_controller

        controller = ray_controller()
        while True:
            details = ray.get(controller.get_deployment_details.remote("slow", plan.REPLICA))
            num_running = sum(replica.state == "RUNNING" for replica in details.replicas)
            now = details.target_num_replicas, num_running
            if not self.changes or self.changes[-1][1:] != now:
                self.changes.append((time.monotonic(), *now))
            time.sleep(0.1)


class Callers:
    """Posts items, and tries again what was refused, as the client does.

    Attributes:
        statuses: How many answers had each status.
        num_lost: Items without an answer in the end.
        num_wrong: Items whose answer is not theirs.
    """

    def __init__(self, client: aiohttp.ClientSession) -> None:
        self._client = client
        self.statuses: Counter[str] = Counter()
        self.num_lost = 0
        self.num_wrong = 0

    async def post(self) -> None:
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until:
            try:
                async with self._client.post(ROUTE, data=BODY, headers=JSON) as answer:
                    content = await answer.json(content_type=None)
            except aiohttp.ClientConnectionError as error:
                self.statuses[type(error).__name__] += 1
                await asyncio.sleep(0.5)
                continue
            self.statuses[str(answer.status)] += 1
            if answer.status < 500:
                self.num_wrong += content["items"][0]["score"] != TOKENS_OF_AN_ITEM
                return
            await asyncio.sleep(float(answer.headers.get("retry-after", 0.5)))
        self.num_lost += 1


async def drive(url: str, watch: Watch) -> dict[str, Any]:
    async with aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
    ) as client:
        warm = Callers(client)
        await warm.post()
        await asyncio.sleep(BEFORE_BURST_S)
        burst, began = Callers(client), time.monotonic()
        await asyncio.gather(*(burst.post() for _ in range(NUM_ITEMS)))
        ended = time.monotonic()
        num_items = await items_by_replica(client)
        light, tasks = Callers(client), []
        while (age := time.monotonic() - ended) < LEAST_S or (
            age < MOST_S and watch.changes[-1][1:] != (1, 1)
        ):
            tasks.append(asyncio.create_task(light.post()))
            await asyncio.sleep(1 / PER_S)
        await asyncio.gather(*tasks)
        async with client.post("/v1/rewards", data=BODY, headers=TRACED) as answer:
            assert answer.status == 200
        metrics = await text_of(client, "/metrics")
    return {
        "makespan_s": ended - began,
        "burst": vars_of(burst),
        "light": vars_of(light),
        "num_light": len(tasks),
        "items_by_replica": num_items,
        "changes": [(at - began, *counts) for at, *counts in watch.changes],
        "counts_in_metrics": re.findall(
            r'tokenreward_replicas_(\w+)\{deployment="slow",replica=""\} (\S+)', metrics
        ),
    }


def traced(folder: Path) -> list[tuple[str, int, bool]]:
    """The lines of all logs that belong to the trace: whose, their status, whether they have Ray's
    request id. Each line of a log of ours is JSON."""
    lines = [
        line for file in folder.glob("replica_*.log") for line in file.read_text().splitlines()
    ]
    records = [record for record in map(json.loads, lines) if record.get("trace_id") == TRACE]
    return sorted((each["deployment"], each["status"], "request_id" in each) for each in records)


async def text_of(client: aiohttp.ClientSession, path: str) -> str:
    async with client.get(path) as answer:
        return await answer.text()


async def items_by_replica(client: aiohttp.ClientSession) -> list[float]:
    """How many items each replica scored so far."""
    text = await text_of(client, "/metrics")
    found = re.findall(r'tokenreward_batch_items_sum\{deployment="slow",\S+ (\S+)', text)
    return sorted(map(float, found))


def vars_of(callers: Callers) -> dict[str, Any]:
    return {name: value for name, value in vars(callers).items() if not name.startswith("_")}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
