"""docs/http.md names every route and every field of the listing, and no other."""

from __future__ import annotations

import re
from typing import Any

import httpx
from starlette.routing import Route

from fakes.pages import page
from tokenreward.engine.slot import Slot
from tokenreward.http.app import build_app
from tokenreward.http.replica import ReplicaBackend
from tokenreward.http.request_limits import Limits
from tokenreward.metrics import Metrics
from tokenreward.wire.paths import WEIGHTS_PATH

PAGE = page("docs/http.md")


def names_in(table: str) -> set[str]:
    """What stands in backquotes in the first column of the table that begins with this head."""
    rows = PAGE.partition(table)[2].partition("\n\n")[0].splitlines()[2:]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_every_route_is_on_the_page() -> None:
    limits = Limits(max_body_bytes=1, max_request_items=1, request_timeout_s=1.0)
    guard = build_app(ReplicaBackend("lm", Slot(), metrics=Metrics(), limits=limits))
    routes = [route for route in guard.routes if isinstance(route, Route)]
    methods = {(route.path.rstrip("/") or "/", "POST" in (route.methods or ())) for route in routes}
    methods |= {(WEIGHTS_PATH, False), (WEIGHTS_PATH, True)}  # of a gateway with admin keys
    assert names_in("| route | what it gives |") == {
        f"{'POST' if posts else 'GET'} {path}" for path, posts in methods
    }


async def test_every_field_of_the_listing_is_on_the_page(served: Any) -> None:
    async with httpx.AsyncClient(base_url=served.url) as client:
        entries = (await client.get("/v1/scorers")).json()["scorers"]
    fields = set().union(*entries)
    assert names_in("| field | meaning |") == fields | {"$defs"}  # of options that have models
