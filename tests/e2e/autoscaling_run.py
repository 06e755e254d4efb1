"""A service of one replica that may become two: a backlog, and then a light load until it is one
again.

    python autoscaling_run.py FILE

The replicas' passes take time and compute nothing. What callers and metrics said goes to FILE, as
JSON. It judges nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from fakes import web
from fakes.readings import readings
from scale.service import slow_service

NAME = "slow"
PROMPT_TOKENS = 200
LENGTHS = range(150, 250)  # tokens of a response
# A large request is 5 s of work for one replica: it waits there, and another replica is idle. Lone
# items beside it come to both.
LARGE, LONE = 100, 1
CALLERS = (LARGE, LONE, LONE)
LIGHT_PAUSE_S = 0.2
SETTINGS: dict[str, Any] = {
    "deployments": [
        {
            "name": NAME,
            "checkpoint": "demo:rm",
            "task": "reward_model",
            "scorers": [{"type": "reward_model"}],
            "max_batch_tokens": 4000,
            "num_cpus": 0.5,
            "autoscaling": {
                "max_replicas": 2,
                "target_queue_s": 2,
                "upscale_delay_s": 0,
                "downscale_delay_s": 2,
            },
        }
    ]
}
POLICY = {"min_window_s": 5.0}
PATHS = (f"/d/{NAME}/v1/rewards", "/v1/rewards")
PATIENCE_S = 150.0
POLL_S = 0.3


class OneTryCallers:
    """Ask for rewards, and never ask again for the same.

    Args:
        client: Sends the requests.

    Attributes:
        statuses: How many answers had each status.
        num_wrong: Items whose rewards are not theirs.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._numbers = itertools.count()
        self.statuses: Counter[int] = Counter()
        self.num_wrong = 0

    async def ask(self, num_items: int) -> None:
        """One request, to the deployment or to the gateway by turns. The items of no two are of one
        length, so that an answer to another would be seen."""
        number = next(self._numbers)
        lengths = [LENGTHS[(number + item) % len(LENGTHS)] for item in range(num_items)]
        items = [{"prompt": [5] * PROMPT_TOKENS, "response": [6] * length} for length in lengths]
        body = {"scorer": "reward_model", "items": items}
        answer = await self._client.post(PATHS[number % len(PATHS)], json=body)
        self.statuses[answer.status_code] += 1
        if answer.status_code == 200:
            for item, length in zip(answer.json()["items"], lengths, strict=True):
                expected = [0.0] * (length - 1) + [float(PROMPT_TOKENS + length)]
                self.num_wrong += item["rewards"] != expected

    async def ask_forever(self, num_items: int) -> None:
        """Asks again as soon as there is an answer."""
        while True:
            await self.ask(num_items)

    def outcome(self) -> dict[str, Any]:
        """What they saw, for JSON."""
        return {"statuses": dict(self.statuses), "num_wrong": self.num_wrong}


async def drive(url: str) -> dict[str, Any]:
    """The backlog, and the light load after it."""
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, trust_env=False) as client:
        began = time.monotonic()
        busy = OneTryCallers(client)
        tasks = [asyncio.create_task(busy.ask_forever(num_items)) for num_items in CALLERS]
        grown = await figures_when(client, is_grown)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        grown["seconds"] = time.monotonic() - began

        light = OneTryCallers(client)
        shrinking = asyncio.create_task(figures_when(client, is_small))
        tasks = []
        while not shrinking.done():
            tasks.append(asyncio.create_task(light.ask(LONE)))
            await asyncio.sleep(LIGHT_PAUSE_S)
        await asyncio.gather(*tasks)
        small = await shrinking
        small["seconds"] = time.monotonic() - began
    return {"busy": busy.outcome(), "grown": grown, "light": light.outcome(), "small": small}


async def figures_when(client: httpx.AsyncClient, is_reached: Any) -> dict[str, Any]:
    """The figures of the deployment once they are as wanted, or the last ones before patience
    ended."""
    until = time.monotonic() + PATIENCE_S
    while True:
        text = (await client.get("/metrics")).text
        answered = readings(text, "requests_total", deployment=NAME)
        computed = readings(text, "batch_items_sum", deployment=NAME)
        lent = readings(text, "lent_items_total", deployment=NAME)
        figures = {
            "desired": sum(readings(text, "replicas_desired", deployment=NAME).values()),
            "running": sum(readings(text, "replicas_running", deployment=NAME).values()),
            "answered": sum(count > 0 and 'status="200"' in key for key, count in answered.items()),
            "computed": sum(count > 0 for count in computed.values()),
            "lent": sum(count for key, count in lent.items() if 'outcome="computed"' in key),
        }
        if is_reached(figures) or time.monotonic() > until:
            return figures
        await asyncio.sleep(POLL_S)


def is_grown(figures: dict[str, Any]) -> bool:
    """Whether there are two replicas that answered requests and computed items, some of them for
    each other."""
    counts = (figures[name] for name in ("desired", "running", "answered", "computed"))
    return figures["lent"] > 0 and all(count == 2 for count in counts)


def is_small(figures: dict[str, Any]) -> bool:
    """Whether there is one replica, and no other is on its way out."""
    return figures["desired"] == figures["running"] == figures["computed"] == 1


def main(file: Path) -> None:
    with slow_service({**SETTINGS, "port": web.free_port()}, policy=POLICY) as (_, url):
        file.write_text(json.dumps(asyncio.run(drive(url))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
