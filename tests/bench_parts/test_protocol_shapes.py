"""Each protocol's request for a sample and the native one get the same numbers, to the bit, from a
replica of the demo's models."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.routing import Mount

from bench.protocol_shapes import DEPLOYMENTS, SHAPES, Shape, samples
from bench.protocols import check
from tokenreward.engine import Engine
from tokenreward.engine.slot import Slot
from tokenreward.http.app import build_app
from tokenreward.http.protocols import find_protocols
from tokenreward.http.replica import ReplicaBackend
from tokenreward.http.request_limits import Limits
from tokenreward.metrics import Metrics
from tokenreward.settings import DeploymentSettings
from tokenreward.wire.paths import REWARDS_PATH

LIMITS = Limits(max_body_bytes=10**6, max_request_items=8, request_timeout_s=60)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    mounts, engines = [], []
    for settings in DEPLOYMENTS:
        metrics = Metrics()
        parsed = DeploymentSettings.model_validate({**settings, "device": "cpu"})
        engines.append(Engine.load(parsed, report=metrics.report))
        slot = Slot(engines[-1])
        backend = ReplicaBackend(settings["name"], slot, metrics=metrics, limits=LIMITS)
        mounts.append(Mount(f"/d/{settings['name']}", build_app(backend)))
    transport = httpx.ASGITransport(app=Starlette(routes=mounts))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as asking:
        yield asking
    for engine in engines:
        await engine.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_a_shape_and_the_native_request_get_the_same_numbers(
    client: httpx.AsyncClient, shape: Shape
) -> None:
    [sample] = samples(1)
    replies = []
    for path, body in (
        (shape.path, shape.body(sample)),
        (REWARDS_PATH, shape.native_body(sample)),
    ):
        answer = await client.post(f"/d/{shape.deployment}{path}", json=body)
        assert answer.status_code == 200, answer.text
        replies.append(answer)
    ours: Any = shape.numbers(replies[0].json(), sample)
    native = shape.native_numbers(replies[1].json(), sample)
    assert np.asarray(ours, dtype=np.float32).reshape(-1).tolist() == native.astype("f4").tolist()


@pytest.mark.parametrize("scores", [[1.1], [1.0, 1.0], []])
def test_numbers_that_are_not_the_native_ones_are_seen(scores: list[float]) -> None:
    shape, native = SHAPES[0], json.dumps({"items": [{"score": 1.0}]})
    check(shape, samples(1), [json.dumps({"rewards": [1.0]})], [native])
    with pytest.raises(AssertionError, match="openrlhf"):
        check(shape, samples(1), [json.dumps({"rewards": scores})], [native])


def test_each_protocol_but_the_native_one_has_a_shape() -> None:
    names = {each.name for each in find_protocols().values()} - {"native"}
    assert {shape.name.partition(",")[0] for shape in SHAPES} == names
