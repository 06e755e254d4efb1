"""The numbers of replicas in the metrics, with a controller of Ray's that a test scripts."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve._private.common import ReplicaState
from ray.serve._private.controller import ServeController
from ray.serve.schema import DeploymentDetails, ReplicaDetails

from tokenreward.deployment import replica_counts as module
from tokenreward.deployment.replica_counts import num_loaded, replica_counts
from tokenreward.metrics import render

APPLICATIONS = {"lm": ("lm", "Replica"), "gateway": ("Gateway", "Gateway")}


class Controller:
    """Tells of each application's deployment what the test wrote."""

    def __init__(self, **details: Any) -> None:
        self._details = details
        self.get_deployment_details = SimpleNamespace(remote=self._remote)

    def _remote(self, app_name: str, deployment_name: str) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        details = self._details[app_name]
        if isinstance(details, Exception):
            future.set_exception(details)
        else:
            future.set_result(details)
        return future


def details(desired: int, *states: ReplicaState) -> Any:
    return SimpleNamespace(
        target_num_replicas=desired, replicas=[SimpleNamespace(state=state) for state in states]
    )


async def text(controller: Any) -> str:
    return render(await replica_counts(lambda: controller, APPLICATIONS)).decode()


async def test_replicas_that_start_or_stop_are_not_running() -> None:
    states = ReplicaState.RUNNING, ReplicaState.STARTING, ReplicaState.STOPPING
    lines = await text(Controller(lm=details(3, *states), Gateway=details(1, ReplicaState.RUNNING)))
    assert 'tokenreward_replicas_desired{deployment="lm",replica=""} 3.0' in lines
    assert 'tokenreward_replicas_running{deployment="lm",replica=""} 1.0' in lines
    assert 'tokenreward_replicas_desired{deployment="gateway",replica=""} 1.0' in lines


@pytest.mark.parametrize("error", [RayActorError(), TimeoutError(), KeyError("Replica")])
async def test_a_deployment_that_the_controller_does_not_tell_has_no_number(error: Any) -> None:
    lines = await text(Controller(lm=error, Gateway=details(2, ReplicaState.RUNNING)))
    assert 'deployment="lm"' not in lines
    assert 'tokenreward_replicas_running{deployment="gateway",replica=""} 1.0' in lines


async def test_without_a_controller_there_are_no_numbers() -> None:
    def gone() -> Any:
        raise ValueError("Failed to look up actor")

    assert await replica_counts(gone, APPLICATIONS) == {}
    assert await num_loaded(gone, "lm", "Replica") is None


async def test_replicas_that_a_new_controller_looks_for_have_loaded() -> None:
    controller = Controller(lm=details(6, *ReplicaState))
    loaded = [state for state in ReplicaState if not state.startswith(("START", "STOP"))]
    assert await num_loaded(lambda: controller, "lm", "Replica") == len(loaded) == 4


async def test_a_gcs_that_keeps_silent_holds_up_neither_the_event_loop_nor_the_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.1)
    answers, began = threading.Event(), time.monotonic()
    counting = asyncio.create_task(replica_counts(lambda: answers.wait(10), APPLICATIONS))
    await asyncio.sleep(0.01)
    assert not counting.done()
    assert await counting == {}
    assert time.monotonic() - began < 5
    answers.set()


def test_the_controller_has_the_method_and_its_answer_the_fields() -> None:
    assert hasattr(ServeController, "get_deployment_details")
    assert {"target_num_replicas", "replicas"} <= set(DeploymentDetails.model_fields)
    assert "state" in ReplicaDetails.model_fields
    assert ReplicaState.RUNNING == "RUNNING"
