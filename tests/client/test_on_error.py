"""`on_error="return"`: what ends one request is the error of its items, and the other requests'
answers are kept."""

from __future__ import annotations

import time
from typing import Any

import pytest

from fakes.edge import keyed, scores
from tokenreward_client import AsyncClient, BadReply, Client, ConnectionFailed, ServerRefused

RETURN: dict[str, Any] = {
    "on_error": "return",
    "settings": {"max_concurrency": 1, "max_retries": 1},
}
BUSY = {"code": "out_of_memory", "message": "m", "param": None, "retryable": True}


@pytest.fixture(autouse=True)
def two_items_per_request(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Client, AsyncClient):
        monkeypatch.setattr(kind, "max_request_items", 2)


@pytest.mark.parametrize(
    ("trouble", "num_tries", "code", "retryable"),
    [
        ("refused", 1, "invalid_field", False),
        ("failed", 2, "internal", True),
        ("broken", 2, "connection_failed", True),
        ("bad", 1, "bad_reply", False),
        ("proxy", 2, "http_502", True),
    ],
)
def test_what_ends_one_request_is_its_items_error_and_the_others_go_on(
    edge: Any, score: Any, items: Any, trouble: str, num_tries: int, code: str, retryable: bool
) -> None:
    replies = {
        "refused": edge.says(422, "invalid_field", retryable=False, param="items[0].mask"),
        "failed": edge.says(500, "internal", retryable=True),
        "broken": edge.broken,
        "bad": lambda body: edge.reply([]),
        "proxy": edge.html(502),
    }

    def troubled(body: Any) -> Any:
        return (replies[trouble] if body["items"][0]["response"] == "r2" else edge.ok)(body)

    edge.script.extend([troubled] * 8)
    answers = score(items(6), **RETURN)
    assert len(edge.seen) == 2 + num_tries
    assert scores(answers) == [0, 1, None, None, 4, 5]
    for answer in answers[2:4]:
        assert answer.rewards is None
        assert answer.request_id is None
        assert (answer.error.code, answer.error.retryable) == (code, retryable)
    if trouble == "refused":
        assert answers[3].error.param == "items[2].mask"


def test_deadline_of_one_request_keeps_what_came_before(edge: Any, score: Any, items: Any) -> None:
    def late(body: Any) -> Any:
        return edge.says(503, "overloaded", retryable=True, Retry_After="60")(body)

    edge.script.extend([edge.ok, late])
    began = time.monotonic()
    answers = score(items(4), timeout_s=20, **RETURN)
    assert time.monotonic() - began < 10
    assert scores(answers) == [0, 1, None, None]
    assert answers[2].error.code == "deadline_exceeded"
    assert "overloaded" in answers[2].error.message


def test_item_that_has_an_answer_keeps_it_when_its_request_ends(
    edge: Any, score: Any, items: Any
) -> None:
    edge.script.extend(
        [edge.changed(1, rewards=None, score=None, error=BUSY), lambda body: edge.reply([])]
    )
    answers = score(items(2), **RETURN)
    assert scores(answers) == [0, None]
    assert answers[1].error.code == "out_of_memory"


def test_half_of_a_request_that_is_too_large_fails_alone(edge: Any, score: Any, items: Any) -> None:
    edge.script.extend([edge.says(413, "larger_than_queue", retryable=False)] * 2)
    answers = score(items(2), **RETURN)
    assert scores(answers) == [None, 1]
    assert answers[0].error.code == "larger_than_queue"


def test_several_scorers_have_no_results_where_no_answer_came(
    edge: Any, score: Any, items: Any
) -> None:
    result = {"rewards": [1.0, 2.0], "score": 1.0}
    edge.script.extend(
        [
            lambda body: edge.reply([keyed(0, a=result), keyed(1, a=result)]),
            lambda body: edge.reply([]),
        ]
    )
    answers = score(items(4), scorers=["a"], **RETURN)
    assert (answers[0].error, answers[2].error.code, answers[2].scorers) == (None, "bad_reply", {})


@pytest.mark.parametrize("num_items", [2, 5])
def test_with_nothing_answered_the_error_is_raised(
    edge: Any, score: Any, items: Any, num_items: int
) -> None:
    edge.script.extend([edge.says(422, "unknown_option", retryable=False)] * 3)
    with pytest.raises(ServerRefused, match="unknown_option"):
        score(items(num_items), **RETURN)


@pytest.mark.parametrize(("trouble", "raised"), [("broken", ConnectionFailed), ("bad", BadReply)])
def test_errors_that_are_to_be_raised_are_raised_at_once(
    edge: Any, score: Any, items: Any, trouble: str, raised: type[Exception]
) -> None:
    edge.script.extend([edge.broken if trouble == "broken" else lambda body: edge.reply([])])
    with pytest.raises(raised):
        score(items(6), settings={"max_concurrency": 1, "max_retries": 0})
    assert len(edge.seen) < 6  # how many more are sent until it is raised depends on the threads
