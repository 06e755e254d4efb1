"""Both clients against a real HTTP server: what is sent, split, retried and given up."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fakes.edge import keyed, scores
from fakes.hang_up import hanging_up
from tokenreward.wire import Item, decode_ids
from tokenreward_client import (
    AsyncClient,
    BadReply,
    Client,
    ConnectionFailed,
    DeadlineExceeded,
    ServerRefused,
)
from tokenreward_client.retry import Retry

RETRYABLE = {"code": "out_of_memory", "message": "m", "param": None, "retryable": True}


def test_rewards_are_float32_vectors_with_model_and_version(
    edge: Any, score: Any, items: Any
) -> None:
    [answer] = score(items(1))
    assert answer.rewards.dtype == np.float32
    assert answer.rewards.tolist() == [0, 0]
    assert (answer.score, answer.model, answer.version, answer.error) == (0.0, "m", 3, None)
    assert edge.bodies[0]["encoding_format"] == "base64"
    assert edge.bodies[0]["scorer"] == "endogenous"


def test_large_batch_is_split_kept_in_order_and_bounded(
    edge: Any, score: Any, items: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (Client, AsyncClient):
        monkeypatch.setattr(kind, "max_request_items", 8)
    edge.delay_s = 0.02
    answers = score(items(81), settings={"max_concurrency": 3})
    assert scores(answers) == list(range(81))
    assert sorted(len(body["items"]) for body in edge.bodies) == [7] * 7 + [8] * 4
    assert 2 <= edge.most_in_flight <= 3


def test_request_is_split_by_bytes_and_an_oversized_item_goes_alone(
    edge: Any, score: Any, items: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (Client, AsyncClient):
        monkeypatch.setattr(kind, "max_request_bytes", 110)
    many = items(6)
    many[2]["prompt"] = "p" * 500
    assert scores(score(many, settings={"max_concurrency": 1})) == list(range(6))
    assert [len(body["items"]) for body in edge.bodies] == [2, 1, 2, 1]


def test_413_is_sent_again_in_halves(edge: Any, score: Any, items: Any) -> None:
    edge.script.extend([edge.says(413, "larger_than_queue", retryable=False)] * 2)
    assert scores(score(items(5))) == list(range(5))
    assert [len(body["items"]) for body in edge.bodies] == [5, 2, 1, 1, 3]


def test_413_for_one_item_is_final(edge: Any, score: Any, items: Any) -> None:
    edge.script.append(edge.says(413, "body_too_large", retryable=False))
    with pytest.raises(ServerRefused) as caught:
        score(items(1))
    assert (caught.value.status, caught.value.code) == (413, "body_too_large")


@pytest.mark.parametrize("trouble", ["overloaded", "bad_gateway", "not_found", "broken"])
def test_trouble_that_passes_is_retried(edge: Any, score: Any, items: Any, trouble: str) -> None:
    answers = {
        "overloaded": edge.says(503, "overloaded", retryable=True, Retry_After="0"),
        "bad_gateway": edge.html(502),
        "not_found": edge.html(404),
        "broken": edge.broken,
    }
    edge.script.extend([answers[trouble]] * 2)
    assert scores(score(items(3))) == [0, 1, 2]
    assert len(edge.seen) == 3


def test_retry_after_is_honoured(edge: Any, score: Any, items: Any) -> None:
    edge.script.append(edge.says(503, "overloaded", retryable=True, Retry_After="30"))
    with pytest.raises(DeadlineExceeded, match="overloaded"):
        score(items(1), settings={"timeout_s": 20})
    assert len(edge.seen) == 1


def test_tries_run_out(edge: Any, score: Any, items: Any) -> None:
    edge.script.extend([edge.html(502)] * 3)
    with pytest.raises(ServerRefused) as caught:
        score(items(1), settings={"max_retries": 2})
    assert (caught.value.status, caught.value.code, caught.value.retryable) == (502, None, True)
    assert len(edge.seen) == 3


def test_refusal_is_raised_at_once_with_its_code(edge: Any, score: Any, items: Any) -> None:
    edge.script.append(edge.says(422, "credit_not_supported", retryable=False))
    with pytest.raises(ServerRefused, match="as scripted") as caught:
        score(items(1))
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        422,
        "credit_not_supported",
        "items",
    )
    assert len(edge.seen) == 1


def test_only_items_with_a_retryable_error_are_sent_again(
    edge: Any, score: Any, items: Any
) -> None:
    edge.script.append(edge.changed(2, rewards=None, score=None, error=RETRYABLE))
    assert scores(score(items(4))) == [0, 1, 2, 3]
    assert [[item["response"] for item in body["items"]] for body in edge.bodies] == [
        ["r0", "r1", "r2", "r3"],
        ["r2"],
    ]


def test_failure_of_one_request_stops_the_others(
    edge: Any, score: Any, items: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (Client, AsyncClient):
        monkeypatch.setattr(kind, "max_request_items", 1)
        monkeypatch.setattr(kind, "retry", Retry(first_pause_s=60, longest_pause_s=60))
    edge.script.extend(
        [edge.html(502), edge.says(422, "unknown_option", retryable=False), *[edge.html(502)] * 2]
    )
    began = time.monotonic()
    with pytest.raises(ServerRefused, match="unknown_option"):
        score(items(20), settings={"max_concurrency": 4})
    assert time.monotonic() - began < 15
    assert len(edge.seen) <= 8
    for thread in threading.enumerate():
        if thread.name.startswith("tokenreward"):
            thread.join(timeout=10)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    "ids",
    [[5, 6, 7], (5, 6, 7), np.array([5, 6, 7]), np.array([5, 6, 7], dtype=np.uint16)],
    ids=lambda ids: str(type(ids)),
)
def test_ids_travel_as_base64_and_fix_the_length(edge: Any, score: Any, ids: Any) -> None:
    edge.script.append(
        lambda body: edge.reply([{"index": 0, "rewards": [1.0, 2.0, 3.0], "score": 6.0}])
    )
    [answer] = score([{"prompt": [1], "response": ids}])
    assert answer.rewards.tolist() == [1, 2, 3]
    sent = edge.bodies[0]["items"][0]["response"]
    assert decode_ids(sent, param="x").tolist() == [5, 6, 7]
    edge.script.append(lambda body: edge.reply([{"index": 0, "rewards": [1.0, 2.0], "score": 6.0}]))
    with pytest.raises(BadReply, match="promised were 3"):
        score([{"prompt": [1], "response": ids}])


def test_items_may_be_wire_items_dicts_or_pairs(edge: Any, score: Any) -> None:
    edge.script.append(lambda body: edge.reply([{"index": i, "rewards": [1.0]} for i in range(3)]))
    chat = [{"role": "user", "content": "2+2?"}]
    spans = np.array([[0, 1]])
    score(
        [
            Item(prompt="p", response="r"),
            {"prompt": chat, "response": "r", "spans": spans, "mask": (1,)},
            (chat, "r"),
        ]
    )
    assert edge.bodies[0]["items"] == [
        {"prompt": "p", "response": "r"},
        {"prompt": chat, "response": "r", "spans": [[0, 1]], "mask": [1]},
        {"prompt": chat, "response": "r"},
    ]


def test_messages_keep_what_the_wire_does_not_name(edge: Any, score: Any) -> None:
    calls = [{"id": "1", "function": {"name": "add", "arguments": "{}"}}]
    prompt = [{"role": "assistant", "content": None, "tool_calls": calls}]
    edge.script.append(lambda body: edge.reply([{"index": 0, "rewards": [1.0]}]))
    score(
        [
            {
                "prompt": prompt,
                "response": "r",
                "tools": [{"a": 1}],
                "chat_template_kwargs": {"b": None},
            }
        ]
    )
    assert edge.bodies[0]["items"] == [
        {
            "prompt": prompt,
            "response": "r",
            "tools": [{"a": 1}],
            "chat_template_kwargs": {"b": None},
        }
    ]


def test_no_items_are_no_request(edge: Any, score: Any) -> None:
    assert score([]) == []
    assert edge.seen == []


@pytest.mark.parametrize("present", [{"a"}, {"a", "b", "c"}, set()])
def test_scorer_that_is_missing_or_unasked_is_an_exception(
    edge: Any, score: Any, items: Any, present: set[str]
) -> None:
    result = {"rewards": [1.0, 2.0], "score": 1.0}
    edge.script.append(lambda body: edge.reply([keyed(0, **dict.fromkeys(present, result))]))
    with pytest.raises(BadReply, match="scorers"):
        score(items(1), scorers=["a", "b"])


def test_deadline_travels_and_silence_past_it_is_an_exception(
    edge: Any, score: Any, items: Any
) -> None:
    edge.delay_s = 3
    with pytest.raises(DeadlineExceeded):
        score(items(1), timeout_s=1)
    assert 0 < float(edge.seen[0][1]["x-request-timeout-seconds"]) <= 1


@pytest.mark.parametrize("num_items", [1, 3])
def test_deadline_counts_while_another_call_holds_the_slot(
    edge: Any, items: Any, monkeypatch: pytest.MonkeyPatch, num_items: int
) -> None:
    monkeypatch.setattr(Client, "max_request_items", 1)
    edge.delay_s = 3
    with Client(edge.url, max_concurrency=1) as client, ThreadPoolExecutor() as threads:
        first = threads.submit(client.score, items(1))
        wait_until(lambda: edge.in_flight)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.score(items(num_items), timeout_s=0.3)
        assert time.monotonic() - began < 2
        assert scores(first.result()) == [0]
        edge.delay_s = 0
        assert scores(client.score(items(2))) == [0, 1]
    assert len(edge.seen) == 3


async def test_deadline_counts_while_another_awaited_call_holds_the_slot(
    edge: Any, items: Any
) -> None:
    edge.delay_s = 3
    async with AsyncClient(edge.url, max_concurrency=1) as client:
        first = asyncio.ensure_future(client.score(items(1)))
        await asyncio.to_thread(wait_until, lambda: edge.in_flight)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await client.score(items(1), timeout_s=0.3)
        assert time.monotonic() - began < 2
        assert scores(await first) == [0]
        edge.delay_s = 0
        assert scores(await client.score(items(1))) == [0]
    assert len(edge.seen) == 2


def wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_server_that_is_not_there_is_a_failed_connection(edge: Any, score: Any, items: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        edge_url, edge.url = edge.url, f"http://127.0.0.1:{closed.getsockname()[1]}"
        try:
            with pytest.raises(ConnectionFailed, match="no answer from http://127"):
                score(items(1), settings={"max_retries": 1})
        finally:
            edge.url = edge_url


def test_connection_closed_without_an_answer_is_retried(edge: Any, score: Any, items: Any) -> None:
    """A listener that closes every connection: each try must be a new one."""
    with hanging_up() as (url, methods):
        edge_url, edge.url = edge.url, url
        try:
            with pytest.raises(ConnectionFailed):
                score(items(1), settings={"max_retries": 2})
        finally:
            edge.url = edge_url
    assert methods == [b"GET ", *[b"POST"] * 3]


def test_key_is_sent_and_never_shown(
    edge: Any, score: Any, items: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    score(items(1), settings={"api_key": "sk-secret"})
    assert edge.seen[0][1]["authorization"] == "Bearer sk-secret"
    with Client("http://me:hush@host", api_key="sk-secret") as client:
        assert repr(client) == "Client('http://host', api_key=<set>)"
    assert "sk-secret" not in caplog.text
    assert "sk-secret" not in repr(vars(client))


def test_a_key_is_sent_though_the_url_names_a_user(
    edge: Any, score: Any, items: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "url", edge.url.replace("//", "//me:hush@"))
    score(items(1), settings={"api_key": "sk-secret"})
    score(items(1))
    sent = [headers["authorization"] for _, headers, _ in edge.seen]
    assert sent == ["Bearer sk-secret", "Basic bWU6aHVzaA=="]


def test_event_loops_one_after_the_other_and_at_the_same_time_share_a_client(
    edge: Any, items: Any
) -> None:
    """AReaL has a loop for its rollouts and another one, in another thread, for its evaluation."""
    client = AsyncClient(edge.url, max_concurrency=2)

    async def ask() -> list[float | None]:
        answers = [await client.score(items(2)) for _ in range(10)]
        await client.close()
        return [answer.score for each in answers for answer in each]

    assert asyncio.run(ask()) == [0, 1] * 10
    with ThreadPoolExecutor() as threads:
        calls = [threads.submit(asyncio.run, ask()) for _ in range(4)]
        assert [call.result(60) for call in calls] == [[0, 1] * 10] * 4


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_left_connections_open_is_no_harm_to_the_next(edge: Any, items: Any) -> None:
    client = AsyncClient(edge.url)
    for _ in range(3):
        assert asyncio.run(client.score(items(1)))[0].score == 0
    del client
    gc.collect()  # Python warns of the sockets here
