"""Where a request goes: straight to the deployment that has all of it, else through the gateway."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fakes.edge import keyed, scores
from tokenreward_client import AsyncClient, BadArgument, Client, DeadlineExceeded
from tokenreward_client.flow import Send
from tokenreward_client.listing import Listing
from tokenreward_client.retry import Attempts, Retry

LISTING = {
    "scorers": [
        {
            "name": "endogenous",
            "type": "endogenous",
            "deployment": "sft",
            "route": "/d/sft/v1/rewards",
            "limits": {"max_sequence_tokens": 4096},
        },
        {
            "name": "logprob",
            "type": "endogenous",
            "deployment": "sft",
            "route": "/d/sft/v1/rewards",
        },
        {
            "name": "reward_model",
            "type": "reward_model",
            "deployment": "rm",
            "route": "/d/rm/v1/rewards",
        },
    ]
}


def test_listing_that_fails_is_not_asked_for_on_every_call(edge: Any, items: Any) -> None:
    with Client(edge.url) as client:
        for _ in range(3):
            client.score(items(1))
    assert edge.num_listed == 1


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"scorer": "reward_model"}, "/d/rm/v1/rewards"),
        ({"scorer": "unlisted"}, "/v1/rewards"),
        ({}, "/d/sft/v1/rewards"),
    ],
)
def test_request_goes_straight_to_the_deployment(
    edge: Any, score: Any, items: Any, arguments: dict[str, Any], path: str
) -> None:
    edge.listing = LISTING
    score(items(1), **arguments)
    assert edge.paths == [path]


PARTIAL = {"scorers": LISTING["scorers"][:2], "unavailable": ["rm"]}


def test_a_scorer_that_a_listing_had_to_leave_out_goes_through_the_gateway_and_is_looked_for_again(
    edge: Any, items: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge.listing = PARTIAL
    with Client(edge.url) as client:
        for _ in range(2):
            client.score(items(1), scorer="reward_model")
        assert (edge.paths, edge.num_listed) == (["/v1/rewards"] * 2, 1)
        monkeypatch.setattr("tokenreward_client.listing.ASK_AGAIN_AFTER_S", 0.0)
        client.scorers()
        edge.listing = LISTING
        client.score(items(1), scorer="reward_model")
        client.score(items(1), scorer="reward_model")
    assert (edge.paths[2:], edge.num_listed) == (["/d/rm/v1/rewards"] * 2, 3)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_listing_waits_for_a_scorer_whose_deployment_still_loads(edge: Any, kind: Any) -> None:
    edge.listing = PARTIAL
    loaded = threading.Timer(1.0, setattr, (edge, "listing", LISTING))

    def names(*wait_for: str) -> list[str]:
        if kind is Client:
            with Client(edge.url) as client:
                return [each.name for each in client.scorers(wait_for=wait_for)]

        async def ask() -> list[str]:
            async with AsyncClient(edge.url) as client:
                return [each.name for each in await client.scorers(wait_for=wait_for)]

        return asyncio.run(ask())

    assert (names("endogenous"), edge.num_listed) == (["endogenous", "logprob"], 1)
    loaded.start()
    assert names("a=reward_model") == ["endogenous", "logprob", "reward_model"]
    assert edge.num_listed > 2


def test_one_name_that_is_no_list_is_refused(edge: Any) -> None:
    with Client(edge.url) as client, pytest.raises(BadArgument, match="wait_for"):
        client.scorers(wait_for="reward_model")


def test_a_listing_waits_for_no_scorer_that_every_deployment_lacks(edge: Any) -> None:
    edge.listing = LISTING
    with Client(edge.url) as client:
        assert client.scorers(wait_for=["unlisted"])
    assert edge.num_listed == 1


STILL_LOADING = "'reward_model' is not listed, and rm did not answer: its weights may still load"


def test_a_deployment_that_loads_for_too_long_is_said_in_one_sentence(edge: Any) -> None:
    edge.listing = PARTIAL
    with (
        Client(edge.url, timeout_s=2) as client,
        pytest.raises(DeadlineExceeded, match=STILL_LOADING),
    ):
        client.scorers(wait_for=["reward_model"])
    assert edge.num_listed >= 2


IDS = [{"prompt": [5], "response": [6, 7]}]


def test_ids_for_a_scorer_whose_deployment_still_loads_wait_until_its_tokenizer_is_known(
    edge: Any, score: Any
) -> None:
    edge.listing = PARTIAL
    loaded = {**LISTING["scorers"][2], "tokenizer": "abc"}
    listing = {"scorers": [*LISTING["scorers"][:2], loaded]}
    threading.Timer(1.0, setattr, (edge, "listing", listing)).start()
    edge.script.append(lambda body: edge.reply([{"index": 0, "rewards": [1.0, 2.0]}]))
    [answer] = score(IDS, "reward_model", fingerprint="abc")
    assert answer.rewards.tolist() == [1, 2]
    assert edge.num_listed > 2


def test_ids_for_one_that_loads_for_too_long_are_not_sent(edge: Any, score: Any) -> None:
    edge.listing = PARTIAL
    with pytest.raises(DeadlineExceeded, match=STILL_LOADING):
        score(IDS, "reward_model", fingerprint="abc", timeout_s=1.0)
    assert not edge.paths


def test_who_waits_for_the_listing_of_another_call_waits_for_its_own_scorer(edge: Any) -> None:
    """Of two deployments that load, the one that the other call asks for is there first."""
    first, second = ({"name": name, "tokenizer": "abc"} for name in ("first", "second"))
    edge.listing = {"scorers": [], "unavailable": ["one", "two"]}
    for _ in range(2):
        edge.script.append(lambda body: edge.reply([{"index": 0, "rewards": [1.0, 2.0]}]))
    with Client(edge.url) as client, ThreadPoolExecutor() as threads:
        calls = [threads.submit(client.score, IDS, "first", fingerprint="abc")]
        until = time.monotonic() + 20
        while not edge.num_listed and time.monotonic() < until:
            time.sleep(0.01)
        calls.append(threads.submit(client.score, IDS, "second", fingerprint="abc"))
        time.sleep(0.3)  # behind the first call
        edge.listing = {"scorers": [first], "unavailable": ["two"]}
        calls[0].result(20)
        time.sleep(0.3)
        edge.listing = {"scorers": [first, second]}
        assert calls[1].result(20)[0].rewards.tolist() == [1, 2]


def test_so_is_one_of_which_the_last_listing_comes_too_late(
    edge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge.listing = PARTIAL
    monkeypatch.setattr(Client, "retry", Retry(first_pause_s=0.2, longest_pause_s=0.2))
    threading.Timer(1.0, setattr, (edge, "listing_delay_s", 10.0)).start()
    with (
        Client(edge.url, timeout_s=2) as client,
        pytest.raises(DeadlineExceeded, match=STILL_LOADING),
    ):
        client.scorers(wait_for=["reward_model"])


@pytest.mark.parametrize(
    ("names", "path"),
    [
        (["endogenous", "logprob"], "/d/sft/v1/rewards"),
        (["a=endogenous", "b=endogenous"], "/d/sft/v1/rewards"),
        (["endogenous", "reward_model"], "/v1/rewards"),
    ],
)
def test_several_scorers_go_straight_only_to_one_deployment(
    edge: Any, score: Any, items: Any, names: list[str], path: str
) -> None:
    edge.listing = LISTING
    result = {"rewards": [1.0, 2.0]}
    edge.script.append(lambda body: edge.reply([keyed(0, **dict.fromkeys(names, result))]))
    score(items(1), scorers=names)
    assert edge.paths == [path]


def test_deployment_that_has_gone_is_reached_through_the_gateway(
    edge: Any, score: Any, items: Any
) -> None:
    edge.listing = LISTING
    edge.script.append(edge.html(404))
    assert scores(score(items(1))) == [0]
    assert edge.paths == ["/d/sft/v1/rewards", "/v1/rewards"]


def test_kl_reference_on_another_deployment_needs_the_gateway(
    edge: Any, score: Any, items: Any
) -> None:
    edge.listing = LISTING
    score(items(1), scorer="reward_model", credit={"kl": {"coef": 0.1, "reference": "logprob"}})
    assert edge.paths == ["/v1/rewards"]


@pytest.mark.parametrize(
    "arguments", [{"scorer": "endogenous"}, {"scorers": ["endogenous"]}], ids=["single", "keyed"]
)
def test_score_from_another_scorer_needs_the_gateway(
    edge: Any, score: Any, items: Any, arguments: Any
) -> None:
    edge.listing = LISTING
    options = {"score_from": "reward_model"}
    if "scorers" in arguments:
        options = {"endogenous": options}
        edge.script.append(lambda body: edge.reply([keyed(0, endogenous={"rewards": [0.0, 0.0]})]))
    score(items(1), **arguments, options=options)
    assert edge.paths == ["/v1/rewards"]
    assert edge.num_listed == 0


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"score_from": {"type": "string", "default": "reward_model"}}, "/v1/rewards"),
        ({"score_from": {"type": "string", "default": None}}, "/d/lm/v1/rewards"),
        ({"score_from": {"type": "string"}}, "/d/lm/v1/rewards"),
        ({"score_from": 3}, "/d/lm/v1/rewards"),
        ({}, "/d/lm/v1/rewards"),
        ([1], "/d/lm/v1/rewards"),
    ],
    ids=repr,
)
def test_scorer_that_its_operator_gives_another_ones_score_needs_the_gateway(
    edge: Any, score: Any, items: Any, options: Any, path: str
) -> None:
    edge.listing = {
        "scorers": [{"name": "spread", "route": "/d/lm/v1/rewards", "options": options}]
    }
    score(items(1), "spread")
    assert edge.paths == [path]


@pytest.mark.parametrize("listing", [LISTING, None], ids=["listed", "failing"])
async def test_first_calls_at_once_ask_for_one_listing(edge: Any, items: Any, listing: Any) -> None:
    edge.listing = listing
    async with AsyncClient(edge.url) as client:
        await asyncio.gather(*(client.score(items(1)) for _ in range(64)))
    assert edge.num_listed == 1
    assert set(edge.paths) == {"/v1/rewards" if listing is None else "/d/sft/v1/rewards"}


@pytest.mark.parametrize("listing", [LISTING, None], ids=["listed", "failing"])
def test_first_calls_of_many_threads_ask_for_one_listing(
    edge: Any, items: Any, listing: Any
) -> None:
    edge.listing = listing
    together = threading.Barrier(16)
    with Client(edge.url) as client, ThreadPoolExecutor(16) as pool:

        def call() -> Any:
            together.wait()
            return client.score(items(1))

        for future in [pool.submit(call) for _ in range(16)]:
            future.result()
    assert edge.num_listed == 1


async def test_first_calls_with_a_fingerprint_ask_for_one_listing(edge: Any, items: Any) -> None:
    edge.listing = {"scorers": [{"name": "endogenous", "deployment": "sft", "tokenizer": "t"}]}
    ids = {"prompt": [1], "response": "r1", "spans": [[0, 1], [1, 2]]}
    async with AsyncClient(edge.url) as client:
        await asyncio.gather(*(client.score([ids], fingerprint="t") for _ in range(64)))
    assert edge.num_listed == 1


def test_call_that_ends_while_it_asks_for_the_listing_ends_its_turn() -> None:
    listing = Listing()
    first, second = (
        listing.direct_path(["endogenous"], Attempts(Retry(), Retry().clock() + 10))
        for _ in range(2)
    )
    assert isinstance(next(first), Send)
    ticket, _ = next(second)  # type: ignore[misc]
    assert not ticket.done()
    first.close()
    assert ticket.done()
    assert isinstance(second.send(True), Send)


def test_call_whose_turn_does_not_come_in_time_goes_through_the_gateway() -> None:
    listing = Listing()
    asking, flow = (
        listing.direct_path(["endogenous"], Attempts(Retry(), Retry().clock() + 10))
        for _ in range(2)
    )
    next(asking)
    _, timeout_s = next(flow)  # type: ignore[misc]
    assert 0 < timeout_s <= 10
    with pytest.raises(StopIteration) as stop:
        flow.send(False)
    assert stop.value.value is None  # no direct path


def test_request_goes_to_the_route_that_the_listing_names(
    edge: Any, score: Any, items: Any
) -> None:
    edge.listing = {
        "scorers": [
            {"name": name, "deployment": "sft", "route": "/elsewhere/sft-2/v1/rewards"}
            for name in ("endogenous", "logprob")
        ]
    }
    score(items(1))
    result = {"rewards": [1.0, 2.0]}
    edge.script.append(
        lambda body: edge.reply([keyed(0, **dict.fromkeys(["endogenous", "logprob"], result))])
    )
    score(items(1), scorers=["endogenous", "logprob"])
    assert edge.paths == ["/elsewhere/sft-2/v1/rewards"] * 2


@pytest.mark.parametrize(
    "route",
    [
        "//evil.example/v1/rewards",
        "/d//v1/rewards",
        "http://evil.example/v1/rewards",
        "evil.example/v1/rewards",
        "/d/../../v1/rewards",
        "/d/./v1/rewards",
        "/d/%2e%2e/v1/rewards",
        "/d/rm/v1/rewards?key=1",
        "/d/rm/v1/rewards#x",
        "/d\\rm/v1/rewards",
        "/d/rm/v1/rewards\n",
        "/d/r m/v1/rewards",
        "",
        "/",
        None,
        3,
        ["/d/rm/v1/rewards"],
    ],
    ids=repr,
)
def test_route_that_is_no_plain_path_of_the_service_is_not_followed(
    edge: Any, score: Any, items: Any, route: Any
) -> None:
    edge.listing = {"scorers": [{"name": "endogenous", "deployment": "sft", "route": route}]}
    assert scores(score(items(1))) == [0]
    assert edge.paths == ["/v1/rewards"]


def test_listing_is_asked_once(edge: Any, items: Any) -> None:
    edge.listing = LISTING
    with Client(edge.url) as client:
        client.score(items(1))
        edge.listing = None
        client.score(items(1))
    assert edge.paths == ["/d/sft/v1/rewards"] * 2


async def test_scorers_lists_what_the_server_says(edge: Any) -> None:
    edge.listing = LISTING
    with Client(edge.url) as client:
        scorers = client.scorers()
    async with AsyncClient(edge.url) as client:
        assert await client.scorers() == scorers
    assert [scorer.name for scorer in scorers] == ["endogenous", "logprob", "reward_model"]
    assert scorers[0].model_extra == {
        "route": "/d/sft/v1/rewards",
        "limits": {"max_sequence_tokens": 4096},
    }


@pytest.mark.parametrize(("timeout_s", "listing_s"), [(8.0, 2.0), (300.0, 10.0)])
def test_listing_may_take_a_quarter_of_the_deadline_and_ten_seconds_at_most(
    edge: Any, score: Any, items: Any, timeout_s: float, listing_s: float
) -> None:
    score(items(1), settings={"timeout_s": timeout_s})
    [headers] = edge.listing_headers
    assert float(headers["x-request-timeout-seconds"]) == pytest.approx(listing_s, abs=0.2)


def test_silent_listing_leaves_time_for_the_request(edge: Any, items: Any) -> None:
    edge.listing_delay_s = 1.5
    try:
        with Client(edge.url) as client:
            assert scores(client.score(items(1), timeout_s=4)) == [0]
    finally:
        edge.listing_delay_s = 0.0
    assert edge.paths == ["/v1/rewards"]
    assert float(edge.seen[0][1]["x-request-timeout-seconds"]) > 2.5
