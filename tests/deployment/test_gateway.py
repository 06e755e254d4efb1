"""What the gateway makes of its replicas' answers, with a Ray handle that a test scripts."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from ray.serve.handle import DeploymentBroadcastResponse

from tokenreward.deployment import gateway
from tokenreward.deployment.gateway import call_replicas, has_ready, snapshots

SILENT = object()


class Handle:
    """Answers a broadcast with what the test wrote for the method."""

    def __init__(self, **answers: list[Any] | Exception) -> None:
        self._answers = answers

    def broadcast(self, method: str, *arguments: Any) -> Any:
        self._method = method
        return self

    async def _fetch_replica_results_async(self) -> list[Any]:
        answers = self._answers[self._method]
        if isinstance(answers, Exception):
            raise answers
        return [Answer(answer) for answer in answers]


class Answer:
    """One replica's answer, which never comes if it is SILENT."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def get_async(self) -> Any:
        if self._answer is SILENT:
            await asyncio.Event().wait()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


async def test_a_silent_replica_costs_a_push_its_own_answer_alone() -> None:
    handle = Handle(commit_weights=[{"version": 2}, SILENT, RuntimeError("no memory")])
    arguments = ({"checkpoint": "/new", "version": 2}, 1.0)
    answers = await call_replicas(lambda _: handle, "lm", "commit_weights", arguments, 0.05)
    assert [type(answer) for answer in answers] == [dict, TimeoutError, RuntimeError]


@pytest.mark.parametrize(
    ("answers", "ready"),
    [
        ([None], True),
        ([RuntimeError("the device thread is gone")], False),
        ([RuntimeError("the device thread is gone"), None], True),
        ([], False),
        (TimeoutError(), False),
    ],
)
async def test_replica_whose_health_check_raises_is_not_ready(answers: Any, ready: bool) -> None:
    snapshot = [("r1", [])]
    handle = Handle(check_health=answers, snapshot=snapshot)
    assert await has_ready({"lm": handle}.__getitem__, "lm") is ready


async def test_a_deployment_that_is_gone_fails_alone() -> None:
    handles = {"lm": Handle(snapshot=[("r1", [])])}
    assert await snapshots(handles.__getitem__, ["gone", "lm"]) == {("lm", "r1"): []}
    assert await has_ready(handles.__getitem__, "gone") is False


async def test_metrics_are_those_of_the_replicas_that_answer() -> None:
    handle = Handle(snapshot=[("r1", []), RuntimeError("it died")])
    assert await snapshots({"lm": handle}.__getitem__, ["lm"]) == {("lm", "r1"): []}


async def test_metrics_of_all_gateways_stand_beside_a_deployment_of_that_name() -> None:
    own, other = ("g1", [{"name": "one"}]), ("g2", [{"name": "two"}])
    handles = {"Gateway": Handle(snapshot=[own, other]), "gateway": Handle(snapshot=[("r1", [])])}
    assert await snapshots(handles.__getitem__, ["gateway"]) == {
        ("gateway", "g1"): own[1],
        ("gateway", "g2"): other[1],
        ("gateway", "r1"): [],
    }


async def test_a_replica_that_keeps_silent_costs_its_own_answer_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = Handle(check_health=[SILENT, None], snapshot=[SILENT, ("r1", [])])
    began = time.monotonic()
    assert await has_ready({"lm": handle}.__getitem__, "lm") is True
    assert time.monotonic() - began < 1
    monkeypatch.setattr(gateway, "GATHER_TIMEOUT_S", 0.2)
    assert await snapshots({"lm": handle}.__getitem__, ["lm"]) == {("lm", "r1"): []}


async def test_a_handle_that_ray_does_not_give_holds_up_no_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway, "GATHER_TIMEOUT_S", 0.1)
    answers = threading.Event()

    def handle_of(_: str) -> Any:
        answers.wait(10)
        raise RuntimeError("the controller is away")

    began = time.monotonic()
    asking = asyncio.create_task(has_ready(handle_of, "lm"))
    await asyncio.sleep(0.01)
    assert not asking.done()
    assert await asking is False
    (late,) = await call_replicas(handle_of, "lm", "weights_status", (), 0.1)
    assert isinstance(late, TimeoutError)
    assert time.monotonic() - began < 5
    answers.set()
    assert await has_ready(handle_of, "lm") is False  # whatever Ray raises


def test_rays_broadcast_gives_the_answer_of_each_replica() -> None:
    assert "_fetch_replica_results_async" in dir(DeploymentBroadcastResponse)
