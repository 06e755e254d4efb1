"""A run of TRL's trainer over a service that is full, or loses a process in the middle of it."""

# ruff: noqa: E402 - without the trainers' packages nothing heavy is imported
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import published

published.site()

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import TrainerCallback
from trl import GRPOTrainer

from fakes import serve, web
from tokenreward_client import AsyncClient, Client, DeadlineExceeded, ItemFailed
from tokenreward_client.trainers.trl import reward_func
from trainers.trl import runs

MAX_TOKENS = 160


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serve.ServedPolicy]:
    folder = tmp_path_factory.mktemp("service")
    with serve.running(folder, max_sequence_tokens=MAX_TOKENS) as service:
        yield service


class AtStep(TrainerCallback):
    """Calls a function at the beginning of one step."""

    def __init__(self, step: int, function: Callable[[], None]) -> None:
        self.step, self.function = step, function

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        if state.global_step == self.step:
            self.function()


def run(policy: Any, folder: Path, client: Client, at_step_2: Callable[[], None]) -> Any:
    """Five steps whose rewards and advantages both come from the client."""
    trainer = runs.train(
        runs.DenseTrainer,
        policy,
        folder,
        steps=5,
        callbacks=[AtStep(2, at_step_2)],
        reward_funcs=[reward_func(client, "logprob", options={"aggregation": "mean"})],
        client=client,
        scorer="logprob",
    )
    return [row for row in trainer.state.log_history if "dense/reward" in row]


def check_whole(rows: list[dict[str, float]]) -> None:
    """Each step has the rewards of all its completions."""
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    for row in rows:
        assert row["dense/missing"] == row["rewards/logprob/missing"] == 0.0
        assert math.isfinite(row["dense/reward"]) and row["grad_norm"] > 0


class Front:
    """Passes requests on to a service, unless it is full."""

    def __init__(self, service: serve.ServedPolicy) -> None:
        self.upstream, self.full_until = service.url, 0.0
        self.app = Starlette(routes=[Route("/{path:path}", self.answer, methods=["GET", "POST"])])

    def fill(self, seconds: float) -> None:
        self.full_until = time.monotonic() + seconds

    async def answer(self, request: Request) -> Response:
        if time.monotonic() < self.full_until:
            error = {"code": "overloaded", "message": "full", "param": None, "retryable": True}
            return JSONResponse({"error": error}, 503, {"retry-after": "1"})
        body, headers = await request.body(), dict(request.headers)
        async with httpx.AsyncClient(base_url=self.upstream, timeout=60) as upstream:
            path = request.url.path
            reply = await upstream.request(request.method, path, content=body, headers=headers)
        return Response(reply.content, reply.status_code, dict(reply.headers))


def test_ten_seconds_of_503_cost_ten_seconds_and_no_reward(
    policy: Any, service: serve.ServedPolicy, tmp_path: Path
) -> None:
    front = Front(service)
    with web.serving(front.app) as url, Client(url) as client:
        check_whole(run(policy, tmp_path, client, lambda: front.fill(10.0)))
    assert time.monotonic() > front.full_until > 0.0


def test_a_service_that_stays_full_ends_the_run_at_the_clients_deadline(
    policy: Any, service: serve.ServedPolicy, tmp_path: Path
) -> None:
    front = Front(service)
    with (
        web.serving(front.app) as url,
        Client(url, timeout_s=5.0) as client,
        pytest.raises(DeadlineExceeded, match="overloaded"),
    ):
        run(policy, tmp_path, client, lambda: front.fill(3600.0))


@pytest.mark.parametrize("name", ["ServeReplica:sft", "ServeReplica:Gateway", "ProxyActor"])
def test_a_killed_process_is_waited_for_and_no_reward_is_lost(
    policy: Any, service: serve.ServedPolicy, tmp_path: Path, name: str
) -> None:
    with Client(service.url) as client:
        check_whole(run(policy, tmp_path, client, lambda: service.kill(name)))


def rows_with_one_too_long() -> list[dict[str, Any]]:
    """The second prompt of a step has more tokens than the deployment reads."""
    turns = runs.prompts(2)
    long = [{"role": "user", "content": turns[1][0]["content"] * 3}]
    return [{"prompt": turns[0]}, {"prompt": long}] * 2


def test_one_bad_item_among_good_ones_is_none_and_the_good_ones_train(
    policy: Any, service: serve.ServedPolicy, tmp_path: Path
) -> None:
    client = Client(service.url)
    reward = runs.Recording(reward_func(client, "logprob", on_error="none"))
    trainer = runs.train(
        runs.DenseTrainer,
        policy,
        tmp_path,
        rows=rows_with_one_too_long(),
        steps=2,
        reward_funcs=[reward],
        client=client,
        scorer="logprob",
        on_error="none",
    )
    for _, _, rewards in reward.calls:
        assert [number is None for number in rewards] == [False] * runs.SIZE + [True] * runs.SIZE
    rows = [row for row in trainer.state.log_history if "dense/missing" in row]
    assert [row["dense/missing"] for row in rows] == [0.5, 0.5]
    assert all(row["rewards/logprob/missing"] == runs.SIZE for row in rows)
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)


def test_or_it_ends_the_run_with_its_name(
    policy: Any, service: serve.ServedPolicy, tmp_path: Path
) -> None:
    with pytest.raises(ItemFailed, match=rf"items\[4\].*{MAX_TOKENS}") as raised:
        runs.train(
            GRPOTrainer,
            policy,
            tmp_path,
            rows=rows_with_one_too_long(),
            steps=2,
            reward_funcs=[reward_func(AsyncClient(service.url), "logprob")],
        )
    assert raised.value.index == runs.SIZE
