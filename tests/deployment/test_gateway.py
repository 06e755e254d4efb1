"""What the gateway makes of its replicas' answers, with a Ray handle that a test scripts."""

from __future__ import annotations

from typing import Any

import pytest

from tokenreward.deployment.gateway import has_ready, snapshots


class Handle:
    """Answers a broadcast with what the test wrote for the method."""

    def __init__(self, **answers: list[Any] | Exception) -> None:
        self._answers = answers

    def broadcast(self, method: str) -> Any:
        self._method = method
        return self

    async def results_async(self, **_: Any) -> list[Any]:
        answers = self._answers[self._method]
        if isinstance(answers, Exception):
            raise answers
        return answers


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
