"""A redeploy leaves the replica in rotation: it is noted at once, and changes in the background."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import Any

import pytest

from fakes import web
from fakes.pushes import FakeDeployment, FakeReplica, settings_of
from tokenreward.errors import InternalError, InvalidField, RequestError, Updating
from tokenreward.wire.weights import Weights

UNFIT = InvalidField("lm_head.weight has another shape", param="checkpoint")


def weights(version: int, checkpoint: str = "/declared") -> Weights:
    return Weights(checkpoint=checkpoint, version=version)


@pytest.fixture
def deployment() -> FakeDeployment:
    return FakeDeployment(1)


@pytest.fixture
def replica(deployment: FakeDeployment) -> Any:
    replica = deployment.replicas[0]
    yield replica
    replica.loading.set()


def declare(replica: FakeReplica, version: int, checkpoint: str = "/declared") -> None:
    replica.follower.declare(settings_of(weights(version, checkpoint)))


async def at_rest(replica: FakeReplica) -> None:
    """Returns once nothing goes on in the background."""
    replica.loading.set()
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})


async def begin_to_load(replica: FakeReplica, version: int) -> None:
    """Returns while a second engine of this version is being loaded."""
    replica.loading.clear()
    replica.engine.refusal = UNFIT
    declare(replica, version)
    await web.until(lambda: [each.version for each in replica.loads] == [version])


async def test_weights_that_fit_are_copied_into_the_engine_that_serves(
    replica: FakeReplica,
) -> None:
    engine = replica.engine
    declare(replica, 2, "/other")
    assert engine.version == 1  # it returned at once
    await at_rest(replica)
    assert replica.engine is engine
    assert engine.served == weights(2, "/other")
    assert (engine.declared.checkpoint, replica.loads) == ("/other", [])


async def test_weights_that_do_not_fit_are_loaded_beside_what_serves(replica: FakeReplica) -> None:
    first = replica.engine
    await begin_to_load(replica, 2)
    assert replica.engine is first
    assert (first.is_closed, replica.gauges["newest_version"]) == (False, 2)
    assert replica.follower.status()["error"] is None  # it is on its way
    await at_rest(replica)
    assert (first.is_closed, first.version) == (True, 1)
    assert replica.engine.served == weights(2)
    assert replica.engine.declared == settings_of(weights(2))
    assert replica.gauges == {"newest_version": 2, "model_version": 2}


@pytest.mark.parametrize("version", [0, 1])
async def test_a_version_that_is_not_greater_takes_a_second_engine(
    replica: FakeReplica, version: int
) -> None:
    declare(replica, version, "/other")
    await at_rest(replica)
    assert replica.engine.served == weights(version, "/other")
    assert len(replica.loads) == 1


async def test_what_serves_already_is_not_loaded(replica: FakeReplica) -> None:
    engine = replica.engine
    declare(replica, 1)
    await at_rest(replica)
    assert replica.engine is engine
    assert (replica.loads, engine.num_prepared) == ([], 0)


async def test_an_adapter_that_is_declared_under_a_version_below_the_pushed_one_is_not_loaded(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    push = weights(5, "/pushed")
    deployment.registry.record("lm", push)
    await replica.follower.catch_up()
    engine = replica.engine
    adapted = Weights(checkpoint="/declared", version=3, adapter="/lora")
    replica.follower.declare(settings_of(adapted))
    await at_rest(replica)
    assert (replica.engine, engine.served, replica.loads) == (engine, push, [])
    await replica.follower.start(settings_of(adapted))  # as a replica that comes anew
    assert replica.engine.served == push


async def test_a_newer_redeploy_supersedes_one_that_is_being_loaded(replica: FakeReplica) -> None:
    first = replica.engine
    await begin_to_load(replica, 2)
    declare(replica, 3, "/other")
    await at_rest(replica)
    assert [each.version for each in replica.loads] == [2, 3]
    assert replica.engine.served == weights(3, "/other")
    assert first.is_closed


async def test_a_redeploy_that_is_taken_back_while_it_is_loaded_changes_nothing(
    replica: FakeReplica,
) -> None:
    first = replica.engine
    await begin_to_load(replica, 2)
    declare(replica, 1)
    await at_rest(replica)
    assert replica.engine is first
    assert replica.gauges == {"newest_version": 1, "model_version": 1}


async def test_a_load_that_fails_once_it_is_superseded_says_nothing(
    replica: FakeReplica, caplog: pytest.LogCaptureFixture
) -> None:
    await begin_to_load(replica, 2)
    replica.refusal = OSError("gone")
    declare(replica, 1)
    await at_rest(replica)
    assert replica.follower.status()["error"] is None
    assert "gone" not in caplog.text


async def test_a_push_goes_on_while_a_second_engine_is_loaded_and_supersedes_it(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    first = replica.engine
    await begin_to_load(replica, 2)
    first.refusal = None
    push = weights(3, "/pushed")
    assert (await replica.follower.prepare(push, within_s=5))["error"] is None
    deployment.registry.record("lm", push)
    assert await replica.follower.commit(push, within_s=5) == {"version": 3, "error": None}
    await at_rest(replica)
    assert replica.engine is first
    assert first.served == push
    assert replica.gauges == {"newest_version": 3, "model_version": 3}


async def test_a_push_that_fits_the_engine_in_load_alone_may_come_again(
    replica: FakeReplica,
) -> None:
    await begin_to_load(replica, 2)
    error = (await replica.follower.prepare(weights(3), within_s=5))["error"]
    assert (error["code"], error["retryable"]) == ("updating", True)
    assert "version 2 is being loaded" in error["message"]
    await at_rest(replica)
    assert (await replica.follower.prepare(weights(3), within_s=5))["error"] is None


async def test_a_push_that_waits_for_its_turn_while_the_load_ends_may_come_again(
    replica: FakeReplica,
) -> None:
    await begin_to_load(replica, 2)
    async with replica.reloader.busy:
        push = asyncio.ensure_future(replica.follower.prepare(weights(3), within_s=5))
        await asyncio.sleep(0)
        replica.loading.set()
        # The load told its own version, then the one that still serves.
        await web.until(lambda: replica.gauges.get("model_version") == 1)
    error = (await push)["error"]
    assert (error["code"], error["retryable"]) == ("updating", True)
    await at_rest(replica)
    assert replica.engine.version == 2


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("prepare", Updating("they were discarded")),
        ("commit", Updating("their files changed")),
        ("commit", InternalError("the copy failed")),
    ],
)
async def test_weights_that_fit_are_not_loaded_beside_what_serves_because_something_came_between(
    replica: FakeReplica, method: str, error: RequestError
) -> None:
    engine = replica.engine
    setattr(engine, {"prepare": "refusal", "commit": "fault"}[method], error)
    declare(replica, 2, "/other")
    await at_rest(replica)
    assert (replica.loads, engine.version) == ([], 1)
    assert engine.declared == settings_of(weights(1))  # what a push would be loaded over
    assert replica.follower.status()["error"]["message"] == error.message
    engine.refusal = engine.fault = None
    await replica.follower.catch_up()
    assert engine.served == weights(2, "/other")
    assert engine.declared == settings_of(weights(2, "/other"))


async def test_a_push_that_is_prepared_on_the_engine_before_is_caught_up_with(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    await begin_to_load(replica, 2)
    replica.engine.refusal = None
    push = weights(3, "/pushed")
    await replica.follower.prepare(push, within_s=60)
    await at_rest(replica)
    assert replica.engine.version == 2
    deployment.registry.record("lm", push)
    assert await replica.follower.commit(push, within_s=5) == {"version": 3, "error": None}
    assert replica.engine.served == push


async def test_a_push_that_waits_for_the_engine_before_is_updating_and_goes_on_afterwards(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    replica.engine.refusal = UNFIT
    first, push = replica.engine, weights(3, "/pushed")
    with replica.slot.lease():
        declare(replica, 2)
        await web.until(lambda: replica.engine is not first)
        deployment.registry.record("lm", push)
        for call in (replica.follower.prepare, replica.follower.commit):
            report = await call(push, within_s=0.05)
            assert (report["version"], report["error"]["code"]) == (2, "updating")
            assert "version 1 still answers" in report["error"]["message"]
        assert not first.is_closed
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
    assert replica.engine.served == push
    assert first.is_closed


async def test_a_redeploy_that_fails_keeps_what_serves_and_is_tried_again_more_and_more_rarely(
    replica: FakeReplica, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "ray.serve")
    first = replica.engine
    reason = InvalidField("`/absent` is no folder", param="checkpoint")
    replica.refusal = first.refusal = reason
    declare(replica, 2, "/absent")
    now, waited, attempts = time.monotonic, 0.0, list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now() + waited)
    for _ in range(1800):  # Ray's health checks, half an hour of them
        replica.follower.check()
        await at_rest(replica)
        if len(replica.loads) > len(attempts):
            attempts.append(waited)
        waited += 1.0
    pauses = [later - sooner for sooner, later in itertools.pairwise(attempts)]
    assert pauses[:4] == [8, 16, 32, 60]
    assert set(pauses[4:]) <= {60, 61}
    status = replica.follower.status()
    assert (status["version"], status["declared"]["version"]) == (1, 2)
    assert status["error"]["message"] == "`/absent` is no folder"
    assert replica.gauges["newest_version"] == 2
    assert replica.engine is first
    assert caplog.text.count("is no folder") == 1
    declare(replica, 1)
    await at_rest(replica)
    assert replica.follower.status()["error"] is None
    assert replica.gauges["newest_version"] == 1


async def test_loads_that_fail_late_have_a_tenth_of_the_time(
    replica: FakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, waited = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now() + waited[0])
    await begin_to_load(replica, 2)
    replica.refusal = InvalidField("out of memory", param="checkpoint")
    waited[0] += 100  # seconds that the load takes
    await at_rest(replica)
    for after_s, num_loads in ((800, 1), (150, 2)):
        waited[0] += after_s
        replica.follower.check()
        await at_rest(replica)
        assert len(replica.loads) == num_loads


async def test_a_registry_that_is_silent_delays_no_redeploy_that_comes_after(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    deployment.store.error = OSError("GCS is gone")
    declare(replica, 2)
    await at_rest(replica)
    assert replica.engine.version == 1  # a push may be newer
    deployment.store.error = None
    declare(replica, 3)
    await at_rest(replica)
    assert replica.engine.version == 3
