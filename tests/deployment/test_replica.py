"""Redeploys and pushes of real weights, through the replica as Ray calls it."""

from __future__ import annotations

import asyncio
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployment.conftest import Alone
from fakes import tiny, web
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.deployment import peers
from tokenreward.engine import Engine
from tokenreward.wire import RewardsRequest, parse
from tokenreward.wire.weights import Weights

REQUEST = parse(
    RewardsRequest, {"scorer": "endogenous", "items": [{"prompt": [5, 6], "response": [7, 8]}]}
)


def config(checkpoint: object, version: int) -> dict[str, Any]:
    return {"checkpoint": str(checkpoint), "version": version}


async def redeploy(replica: Any, checkpoint: object, version: int) -> None:
    """Returns once the change has been made, or has failed."""
    await replica.reconfigure(config(checkpoint, version))
    await replica.follower.catch_up()


async def rewards(replica: Any) -> tuple[int, np.ndarray]:
    """The version of a reply, and its rewards."""
    with replica.slot.lease() as engine:
        reply = await engine.score(REQUEST)
    return reply.version, reply.items[0].rewards


async def fresh_rewards(replica: Any) -> np.ndarray:
    """Those of an engine that starts with the settings that serve."""
    engine = Engine.load(replica.slot.engine.settings)
    try:
        return (await engine.score(REQUEST)).items[0].rewards
    finally:
        await engine.close()


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("other") / "weights", seed=7)


@pytest.fixture(scope="module")
def other_shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("other") / "shape", "qwen3")


async def test_a_redeploy_of_the_same_shape_is_copied_into_the_engine_that_serves(
    replica: Any, language_model: Path, other_weights: Path
) -> None:
    await replica.reconfigure(config(language_model, 1))
    engine, before = replica.slot.engine, await rewards(replica)
    await redeploy(replica, other_weights, 2)
    assert replica.slot.engine is engine
    version, after = await rewards(replica)
    assert (before[0], version) == (1, 2)
    np.testing.assert_array_equal(after, await fresh_rewards(replica))
    assert not np.array_equal(before[1], after)
    assert replica.gauge("model_version") == 2


async def test_a_redeploy_of_another_shape_is_loaded_while_the_engine_before_serves(
    replica: Any, language_model: Path, other_shape: Path
) -> None:
    await replica.reconfigure(config(language_model, 1))
    first = weakref.ref(replica.slot.engine)
    replica.gate.clear()
    await replica.reconfigure(config(other_shape, 2))
    await web.until(lambda: replica.loads[1:] == [str(other_shape)], seconds=60)
    await replica.check_health()
    assert (await rewards(replica))[0] == 1
    assert (replica.gauge("model_version"), replica.gauge("newest_version")) == (1, 2)
    replica.gate.set()
    await replica.follower.catch_up()
    version, after = await rewards(replica)
    assert version == 2
    np.testing.assert_array_equal(after, await fresh_rewards(replica))
    assert first() is None
    assert replica.gauge("model_version") == 2


async def test_requests_under_way_are_answered_by_the_engine_that_they_began_on(
    replica: Any, language_model: Path, other_shape: Path
) -> None:
    await replica.reconfigure(config(language_model, 1))
    engine = replica.slot.engine
    done = asyncio.Event()

    async def call() -> list[int]:
        versions = []
        while not done.is_set():
            versions.append((await rewards(replica))[0])
        return versions

    callers = [asyncio.create_task(call()) for _ in range(3)]
    await redeploy(replica, other_shape, 2)
    await rewards(replica)
    done.set()
    for versions in await asyncio.gather(*callers):
        assert set(versions) == {1, 2}
        assert versions == sorted(versions)
    assert replica.slot.engine is not engine


async def test_a_redeploy_that_cannot_be_loaded_keeps_what_serves(
    replica: Any, language_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Exception, match="absent"):  # nothing serves yet
        await replica.reconfigure(config(tmp_path / "absent", 1))
    await replica.reconfigure(config(language_model, 1))
    engine = replica.slot.engine
    await redeploy(replica, tmp_path / "absent", 2)
    assert replica.slot.engine is engine
    assert engine.version == 1
    follower = replica.follower
    assert "absent" in str(follower.status()["error"])
    assert follower.status()["declared"]["version"] == 2
    assert replica.gauge("newest_version") == 2
    shutil.copytree(language_model, tmp_path / "absent")
    await follower.catch_up()  # as Ray's health checks have it do
    assert (engine.version, follower.status()["error"]) == (2, None)
    await redeploy(replica, language_model, 3)
    assert replica.slot.engine.version == 3
    assert replica.gauge("newest_version") == 3


async def test_settings_that_are_wrong_keep_what_serves(replica: Any, language_model: Path) -> None:
    await replica.reconfigure(config(language_model, 1))
    await replica.reconfigure(config(language_model, -1))
    status = replica.follower.status()
    assert (status["version"], status["error"]["param"]) == (1, "version")


async def test_a_redeploy_of_the_version_that_serves_loads_other_weights(
    replica: Any, language_model: Path, tmp_path: Path
) -> None:
    await replica.reconfigure(config(language_model, 1))
    engine = replica.slot.engine
    await redeploy(replica, language_model, 1)
    assert replica.slot.engine is engine
    shutil.copytree(language_model, tmp_path / "other")
    await redeploy(replica, tmp_path / "other", 1)
    assert replica.slot.engine.settings.checkpoint == str(tmp_path / "other")


async def test_pushed_weights_are_the_floor_of_what_a_redeploy_loads(
    replica: Any, language_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(language_model, tmp_path / "pushed")
    replica.registry.record("lm", Weights(checkpoint=str(tmp_path / "pushed"), version=5))
    await replica.reconfigure(config(language_model, 1))  # as a replica that starts
    engine = replica.slot.engine
    assert (engine.version, engine.settings.checkpoint) == (5, str(tmp_path / "pushed"))
    for version in (3, 5):
        await redeploy(replica, language_model, version)
        assert replica.slot.engine is engine
    await redeploy(replica, language_model, 6)
    engine = replica.slot.engine
    assert (engine.version, engine.settings.checkpoint) == (6, str(language_model))


async def test_a_start_with_a_push_needs_no_declared_checkpoint(
    replica: Any, language_model: Path, tmp_path: Path
) -> None:
    push = Weights(checkpoint=str(language_model), version=5)
    replica.registry.record("lm", push)
    await replica.reconfigure(config(tmp_path / "absent", 1))
    status = replica.follower.status()
    assert (status["version"], status["error"]) == (5, None)
    assert (await rewards(replica))[0] == 5


@pytest.mark.parametrize("damage", ["absent", "damaged", "another kind"])
async def test_a_start_serves_the_push_before_a_redeploy_that_cannot_be_loaded(
    replica: Any, language_model: Path, tmp_path: Path, damage: str
) -> None:
    replica.registry.record("lm", Weights(checkpoint=str(language_model), version=5))
    folder = tmp_path / "declared"
    if damage != "absent":
        shutil.copytree(language_model, folder)
        name = "model.safetensors" if damage == "damaged" else "config.json"
        (folder / name).write_bytes(b"{}")
    replica.others = [{"version": 5}]
    await replica.reconfigure(config(folder, 6))
    version, before = await rewards(replica)
    status = replica.follower.status()
    assert (version, status["version"], status["declared"]["version"]) == (5, 5, 6)
    assert str(folder) in status["error"]["message"]
    assert (replica.gauge("model_version"), replica.gauge("newest_version")) == (5, 6)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(language_model, folder)
    await replica.follower.catch_up()
    version, after = await rewards(replica)
    assert (version, replica.follower.status()["error"]) == (6, None)
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("others", "num_loaded"),
    [
        ([{"version": 6}], 1),
        ([TimeoutError()], 1),
        ([{"version": 5}], 2),  # the controller has started again, and hands out one of them so far
        ([], None),
    ],
)
async def test_a_start_serves_nothing_older_than_others_serve(
    replica: Any, language_model: Path, tmp_path: Path, others: list[Any], num_loaded: int | None
) -> None:
    replica.registry.record("lm", Weights(checkpoint=str(tmp_path / "gone"), version=6))
    replica.others, replica.num_loaded = others, num_loaded
    with pytest.raises(CheckpointRefused, match="gone"):
        await replica.reconfigure(config(language_model, 5))
    replica.others, replica.num_loaded = [], 0  # all of them start
    await replica.reconfigure(config(language_model, 5))
    status = replica.follower.status()
    assert (status["version"], "gone" in status["error"]["message"]) == (5, True)


async def test_a_replica_that_cannot_find_its_peers_tries_again_and_says_so_once(
    replica: Any,
    language_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts = []

    class Lost(Alone):
        def __init__(self, deployment: str) -> None:
            attempts.append(deployment)
            if len(attempts) < 4:
                raise OSError("the GCS is away")
            super().__init__(deployment)

    monkeypatch.setattr("tokenreward.deployment.replica.RayPeers", Lost)
    monkeypatch.setattr("tokenreward.deployment.replica.LENDING_PAUSE_S", 0.01)
    monkeypatch.setattr("tokenreward.deployment.peers.here", None)
    await replica.reconfigure(config(language_model, 1))
    await web.until(lambda: len(attempts) == 1)
    await redeploy(replica, language_model, 0)  # a second engine: lending begins anew
    await web.until(lambda: peers.here is not None)
    await asyncio.sleep(0.05)
    assert attempts == ["lm"] * 4
    assert caplog.text.count("lending cannot begin") == 1
