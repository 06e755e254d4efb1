"""A replica follows pushes: in two calls, or by itself when it missed them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from fakes import web
from fakes.pushes import FakeDeployment, FakeReplica, settings_of
from tokenreward.deployment import follower
from tokenreward.errors import InvalidField, Loading
from tokenreward.settings import DeploymentSettings
from tokenreward.wire.weights import Weights


def pushed(version: int, checkpoint: str = "/pushed") -> Weights:
    return Weights(checkpoint=checkpoint, version=version)


def declared(version: int, checkpoint: str = "/declared") -> Weights:
    return Weights(checkpoint=checkpoint, version=version)


@pytest.fixture
def deployment() -> FakeDeployment:
    return FakeDeployment(1)


@pytest.fixture
def replica(deployment: FakeDeployment) -> FakeReplica:
    return deployment.replicas[0]


def refuse(replica: FakeReplica, reason: str) -> None:
    """Neither in place nor by a second engine can other weights be served."""
    replica.refusal = replica.engine.refusal = InvalidField(reason, param="checkpoint")


async def caught_up(replica: FakeReplica) -> None:
    """What Ray's health check starts, to its end."""
    replica.follower.check()
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})


async def test_a_prepared_version_serves_once_it_is_committed(replica: FakeReplica) -> None:
    report = await replica.follower.prepare(pushed(2), within_s=5)
    assert report == {"version": 1, "error": None}
    report = await replica.follower.commit(pushed(2), within_s=5)
    assert report == {"version": 2, "error": None}


async def test_what_is_discarded_is_dropped(replica: FakeReplica) -> None:
    await replica.follower.prepare(pushed(2), within_s=5)
    replica.follower.discard(3)  # another's
    assert replica.engine.prepared == pushed(2)
    replica.follower.discard(2)
    assert replica.engine.prepared is None
    assert replica.engine.version == 1


async def test_why_weights_cannot_be_prepared_is_in_the_report(replica: FakeReplica) -> None:
    replica.engine.refusal = InvalidField("`lm_head.weight` has the shape [3]", param="checkpoint")
    report = await replica.follower.prepare(pushed(2), within_s=5)
    assert report["error"]["message"] == "`lm_head.weight` has the shape [3]"
    assert (report["error"]["code"], report["version"]) == ("invalid_field", 1)


async def test_a_fault_of_ours_is_an_error_that_quotes_nothing(replica: FakeReplica) -> None:
    replica.engine.refusal = KeyError("secret")  # type: ignore[assignment]
    report = await replica.follower.prepare(pushed(2), within_s=5)
    assert report["error"]["code"] == "internal"
    assert "secret" not in report["error"]["message"]


@pytest.mark.parametrize("version", [0, 1, 4, 5])
async def test_a_version_that_is_passed_is_not_prepared(
    deployment: FakeDeployment, version: int
) -> None:
    replica = deployment.replicas[0]
    replica.follower.declared = settings_of(declared(5))
    report = await replica.follower.prepare(pushed(version), within_s=5)
    assert report["error"]["code"] == "version_conflict"
    assert replica.engine.num_prepared == 0


async def test_a_slow_prepare_is_reported_late_and_discarded_by_the_health_check(
    replica: FakeReplica,
) -> None:
    replica.engine.gate = asyncio.Event()
    report = await replica.follower.prepare(pushed(2), within_s=0.02)
    assert report["error"]["code"] == "deadline_exceeded"
    replica.engine.gate.set()
    await web.until(lambda: replica.engine.prepared is not None)
    await asyncio.sleep(0.05)
    replica.follower.check()
    assert replica.engine.prepared is None


async def test_the_health_check_leaves_what_is_yet_to_be_committed(replica: FakeReplica) -> None:
    await replica.follower.prepare(pushed(2), within_s=60)
    await caught_up(replica)
    assert replica.engine.prepared == pushed(2)


async def test_a_replica_that_missed_a_push_catches_up(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    deployment.registry.record("lm", pushed(3))
    await caught_up(replica)
    assert (replica.engine.version, replica.engine.num_prepared) == (3, 1)
    await caught_up(replica)
    assert replica.engine.num_prepared == 1


async def test_a_commit_that_was_missed_serves_what_was_prepared(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    await replica.follower.prepare(pushed(3), within_s=5)
    deployment.registry.record("lm", pushed(3))
    await caught_up(replica)
    assert (replica.engine.version, replica.engine.num_prepared) == (3, 1)


async def test_a_commit_without_a_prepare_catches_up_first(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    deployment.registry.record("lm", pushed(3))
    report = await replica.follower.commit(pushed(3), within_s=5)
    assert report == {"version": 3, "error": None}


async def test_a_catch_up_that_fails_keeps_serving_says_why_and_is_tried_again(
    deployment: FakeDeployment, replica: FakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.registry.record("lm", pushed(3))
    refuse(replica, "no such folder")
    await caught_up(replica)
    status = replica.follower.status()
    assert (status["version"], status["error"]["message"]) == (1, "no such folder")
    assert replica.gauges["newest_version"] == 3
    replica.engine.refusal = None
    await caught_up(replica)
    assert replica.follower.status()["error"] is not None  # an attempt may cost a whole load
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 1000)  # however long the attempt took
    await caught_up(replica)
    status = replica.follower.status()
    assert (status["version"], status["error"]) == (3, None)


async def test_a_commit_serves_no_other_weights_of_its_version(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    await replica.follower.prepare(pushed(2, "/of-a-gateway-that-was-stuck"), within_s=5)
    deployment.registry.record("lm", pushed(2))
    assert (await replica.follower.commit(pushed(2), within_s=5))["error"] is None
    assert replica.engine.served == pushed(2)


async def test_a_commit_of_a_version_that_is_declared_anew_waits_until_that_serves(
    replica: FakeReplica,
) -> None:
    replica.loading.clear()
    replica.follower.declare(settings_of(declared(1, "/anew")))
    commit = asyncio.create_task(replica.follower.commit(declared(1, "/anew"), within_s=20))
    await web.until(lambda: len(replica.loads) == 1)
    replica.loading.set()
    assert await commit == {"version": 1, "error": None}
    assert replica.engine.served == declared(1, "/anew")


async def test_a_prepare_whose_turn_comes_too_late_reads_nothing(replica: FakeReplica) -> None:
    async with replica.reloader.busy:  # a redeploy, for example
        report = await replica.follower.prepare(pushed(2), within_s=0.02)
        assert report["error"]["code"] == "deadline_exceeded"
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
    assert replica.engine.num_prepared == 0


async def test_what_is_still_being_prepared_is_discarded(replica: FakeReplica) -> None:
    replica.engine.gate = asyncio.Event()
    await replica.follower.prepare(pushed(2), within_s=0.02)
    replica.follower.discard(2)
    assert replica.engine.num_discarded > 1


async def test_a_failure_of_before_is_no_failure_of_the_next_push(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    deployment.store.error = OSError("GCS is gone")
    await caught_up(replica)
    assert (await replica.follower.prepare(pushed(2), within_s=5))["error"] is None
    assert (await replica.follower.commit(pushed(2), within_s=5))["error"] is None


async def test_a_commit_that_cannot_catch_up_says_why(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    deployment.registry.record("lm", pushed(3))
    refuse(replica, "no such folder")
    report = await replica.follower.commit(pushed(3), within_s=5)
    assert (report["version"], report["error"]["message"]) == (1, "no such folder")


async def test_a_registry_that_is_gone_harms_no_health_check(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    deployment.store.error = OSError("GCS is gone")
    await caught_up(replica)
    assert replica.engine.version == 1
    assert replica.follower.status()["error"]["code"] == "loading"


@pytest.mark.parametrize(
    ("version", "newest"),
    [(3, pushed(5)), (5, pushed(5)), (6, declared(6))],
)
async def test_the_greater_of_the_pushed_and_the_declared_is_the_newest(
    deployment: FakeDeployment, replica: FakeReplica, version: int, newest: Weights
) -> None:
    deployment.registry.record("lm", pushed(5))
    replica.follower.declare(settings_of(declared(version)))
    await caught_up(replica)
    assert replica.engine.served == newest


async def test_a_registry_that_lost_a_push_takes_no_replica_back(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    deployment.registry.record("lm", pushed(5))
    await caught_up(replica)
    deployment.store.values.clear()
    replica.follower.declare(settings_of(declared(1)))
    await caught_up(replica)
    assert replica.engine.served == pushed(5)
    deployment.registry.record("lm", pushed(6))
    await caught_up(replica)
    assert replica.engine.version == 6


async def test_a_pushed_version_that_the_settings_passed_is_not_caught_up_with(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    deployment.registry.record("lm", pushed(5))
    await replica.follower.start(settings_of(declared(6)))
    num_loads = len(replica.loads)
    await caught_up(replica)
    assert (replica.engine.version, replica.engine.num_prepared) == (6, 0)
    assert len(replica.loads) == num_loads


async def test_a_registry_that_keeps_silent_holds_up_nothing_for_long(
    deployment: FakeDeployment, replica: FakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "REGISTRY_S", 0.05)
    deployment.store.delays_s["keys"] = 3.0
    began = time.monotonic()
    await caught_up(replica)
    with pytest.raises(Loading):
        await replica.follower.start(settings_of(declared(2)))
    report = await replica.follower.commit(pushed(2), within_s=5)
    assert time.monotonic() - began < 2.5
    assert report["error"]["code"] == replica.follower.status()["error"]["code"] == "loading"
    assert (replica.engine.version, replica.loads) == (1, [])


async def test_a_silent_registry_is_asked_again_soon(
    deployment: FakeDeployment, replica: FakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, waited = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now() + waited[0])

    def hang(*_: object) -> list[str]:
        waited[0] += 10.0  # as long as it is waited for
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(deployment.store, "keys", hang)
        await caught_up(replica)
    deployment.registry.record("lm", pushed(3))
    waited[0] += 8
    await caught_up(replica)
    assert replica.engine.version == 3


@pytest.mark.parametrize(
    ("push", "declaration", "served"),
    [
        (pushed(2), declared(3), pushed(2)),  # a redeploy that failed everywhere
        (pushed(3), declared(2), declared(2)),  # a push whose folder is gone
    ],
)
async def test_a_start_serves_what_was_before_weights_that_cannot_be_loaded_and_says_so(
    deployment: FakeDeployment,
    replica: FakeReplica,
    monkeypatch: pytest.MonkeyPatch,
    push: Weights,
    declaration: Weights,
    served: Weights,
) -> None:
    deployment.registry.record("lm", push)
    replica.absent = {max(push, declaration, key=lambda each: each.version).checkpoint}
    replica.other_versions = [2, 1]  # they could not follow, either
    await replica.follower.start(settings_of(declaration))
    status = replica.follower.status()
    assert (status["version"], replica.engine.served) == (2, served)
    assert status["declared"]["version"] == declaration.version
    assert "is no folder" in status["error"]["message"]
    assert (replica.gauges["newest_version"], replica.gauges["model_version"]) == (3, 2)
    assert replica.engine.declared == settings_of(declaration)
    replica.absent = set()
    num_loads = len(replica.loads)
    await caught_up(replica)
    assert len(replica.loads) == num_loads  # its pause is not over
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 1000)  # however long the start took
    await caught_up(replica)
    status = replica.follower.status()
    assert (status["version"], status["error"]) == (3, None)


async def test_after_a_start_that_took_long_the_newest_is_loaded_again_nine_times_as_late(
    deployment: FakeDeployment, replica: FakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, skipped = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now() + sum(skipped))
    deployment.registry.record("lm", pushed(3))
    replica.absent = {"/pushed"}
    replica.loading.clear()
    starting = asyncio.create_task(replica.follower.start(settings_of(declared(2))))
    await web.until(lambda: bool(replica.loads))
    skipped.append(100)
    replica.loading.set()
    await starting
    replica.absent = set()
    for seconds, version in [(800, 2), (1000, 3)]:
        skipped.append(seconds)
        await caught_up(replica)
        assert replica.engine.version == version


@pytest.mark.parametrize("others", [[3], [2, 4], [None]])
async def test_a_start_goes_not_back_while_another_replica_serves_newer_weights_or_is_silent(
    deployment: FakeDeployment, replica: FakeReplica, others: list[int | None]
) -> None:
    deployment.registry.record("lm", pushed(3))
    replica.absent, replica.other_versions = {"/pushed"}, others
    with pytest.raises(InvalidField, match="`/pushed` is no folder"):
        await replica.follower.start(settings_of(declared(2)))
    assert [each.version for each in replica.loads] == [3]


async def test_a_start_takes_no_other_weights_of_the_version_that_was_pushed(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    deployment.registry.record("lm", pushed(3))
    replica.absent = {"/pushed"}
    with pytest.raises(InvalidField):
        await replica.follower.start(settings_of(declared(3)))
    assert len(replica.loads) == 1


async def test_a_start_that_can_load_nothing_says_why_not_the_newest(
    deployment: FakeDeployment, replica: FakeReplica
) -> None:
    deployment.registry.record("lm", pushed(3))
    replica.absent = {"/pushed", "/declared"}
    with pytest.raises(InvalidField, match="`/pushed` is no folder"):
        await replica.follower.start(settings_of(declared(2)))


def settings(**changes: Any) -> DeploymentSettings:
    scorers = [{"type": "endogenous"}]
    return DeploymentSettings.model_validate(
        {
            "name": "lm",
            "checkpoint": "org/model",
            "task": "causal_lm",
            "scorers": scorers,
            **changes,
        }
    )


def test_settings_with_their_own_weights_are_the_same() -> None:
    own = settings(adapter="org/lora", adapter_revision="b", revision="a", version=4)
    assert own.with_weights(own.weights) == own


def test_a_revision_goes_with_the_repository_that_it_was_declared_for() -> None:
    own = settings(
        revision="a",
        adapter="org/lora",
        adapter_revision="b",
        reference_checkpoint="org/base",
        reference_revision="c",
    )
    changed = own.with_weights(Weights(checkpoint="/runs/7", version=7, adapter="/runs/7/lora"))
    assert changed.version == 7
    assert (changed.checkpoint, changed.revision) == ("/runs/7", None)
    assert (changed.adapter, changed.adapter_revision) == ("/runs/7/lora", None)
    assert (changed.reference_checkpoint, changed.reference_revision) == ("org/base", "c")
