"""Added latency is what a request took less its pass, for our service and for an application that
scores nothing."""

from __future__ import annotations

import json

import httpx
import pytest

from bench import driver
from bench.latency import added_ms
from bench.rivals import empty_app
from fakes import web


def test_the_pass_of_each_request_is_taken_off_its_own_time() -> None:
    replies = [json.dumps({"timing": {"compute_s": seconds}}) for seconds in (0.2, 0.05)]
    assert added_ms(driver.Load(1.0, [0.25, 0.06], replies)) == pytest.approx([50.0, 10.0])


def test_the_empty_application_works_as_long_as_it_says_and_only_for_a_post() -> None:
    with web.serving(empty_app.app) as url:
        load = driver.drive_alone(f"{url}/empty", ["{}"] * 3)
        probe = httpx.get(f"{url}/empty", trust_env=False).json()
    assert probe == {"timing": {"compute_s": 0.0}}
    for took, reply in zip(load.latencies_s, load.replies, strict=True):
        assert empty_app.BUSY_S <= json.loads(reply)["timing"]["compute_s"] <= took
    assert min(added_ms(load)) < 1000 * empty_app.BUSY_S
