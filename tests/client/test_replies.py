"""What comes back, kept or broken promise, from a real HTTP server to both clients."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.responses import Response

from fakes.edge import keyed, scores
from tokenreward_client import (
    AsyncClient,
    BadReply,
    Client,
    ItemFailed,
    ServerRefused,
)

RETRYABLE = {"code": "out_of_memory", "message": "m", "param": None, "retryable": True}
FINAL = {
    "code": "sequence_too_long",
    "message": "m",
    "param": "items[0].response",
    "retryable": False,
}


def test_item_error_that_stays_is_raised_after_all_are_done(
    edge: Any, score: Any, items: Any
) -> None:
    edge.script.append(edge.changed(1, rewards=None, score=None, error=FINAL))
    with pytest.raises(ItemFailed, match=r"items\[\d\]\S*: sequence_too_long") as caught:
        score(items(3))
    assert (caught.value.index, caught.value.code) == (1, "sequence_too_long")
    assert 'on_error="return" gives the answers of the other 2' in str(caught.value)
    assert len(edge.seen) == 1


def test_errors_count_the_callers_items(
    edge: Any, score: Any, items: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (Client, AsyncClient):
        monkeypatch.setattr(kind, "max_request_items", 2)
    error = FINAL | {"message": "it is long", "param": "items[1].response"}
    edge.script.extend([edge.ok, edge.changed(1, rewards=None, error=error)])
    with pytest.raises(
        ItemFailed, match=r"items\[3\]\.response: sequence_too_long: it is long"
    ) as caught:
        score(items(4), settings={"max_concurrency": 1})
    assert caught.value.param == "items[3].response"
    edge.script.extend(
        [edge.ok, edge.says(422, "invalid_field", retryable=False, param="items[0].mask")]
    )
    with pytest.raises(ServerRefused) as refused:
        score(items(4), settings={"max_concurrency": 1})
    assert refused.value.param == "items[2].mask"


def test_item_error_can_be_returned_and_is_never_a_zero(edge: Any, score: Any, items: Any) -> None:
    edge.script.append(edge.changed(1, rewards=None, score=None, error=FINAL))
    answers = score(items(3), on_error="return")
    assert scores(answers) == [0, None, 2]
    assert answers[1].rewards is None
    assert answers[1].error.code == "sequence_too_long"
    assert {answer.request_id for answer in answers} == {"x"}


def test_item_whose_retries_run_out_keeps_its_error_and_the_others_their_rewards(
    edge: Any, score: Any, items: Any
) -> None:
    edge.script.append(edge.changed(1, rewards=None, score=None, error=RETRYABLE))
    edge.script.extend([edge.says(500, "internal", retryable=True)] * 2)
    answers = score(items(2), on_error="return", settings={"max_retries": 2})
    assert scores(answers) == [0, None]
    assert answers[1].error.code == "out_of_memory"


@pytest.mark.parametrize(
    "fields",
    [
        {"rewards": [1.0]},
        {"rewards": [1.0, 2.0, 3.0]},
        {"rewards": [1.0, float("nan")]},
        {"rewards": [1.0, float("inf")]},
        {"rewards": [1.0, 1e39]},
        {"rewards": "AAAA"},
        {"rewards": "not base64!"},
        {"rewards": None},
        {"score": float("nan")},
        {"index": 0},
        {"index": 7},
    ],
)
def test_broken_promise_is_an_exception(
    edge: Any, score: Any, items: Any, fields: dict[str, Any]
) -> None:
    edge.script.append(edge.changed(1, **fields))
    with pytest.raises(BadReply):
        score(items(2), on_error="return")
    assert len(edge.seen) == 1


def test_missing_item_is_an_exception(edge: Any, score: Any, items: Any) -> None:
    edge.script.append(lambda body: edge.reply(edge.items(body)[:-1]))
    with pytest.raises(BadReply, match="indices"):
        score(items(2))


def test_doubled_item_is_an_exception(edge: Any, score: Any, items: Any) -> None:
    edge.script.append(lambda body: edge.reply(edge.items(body) + edge.items(body)[:1]))
    with pytest.raises(BadReply, match="indices"):
        score(items(2))


def test_shuffled_items_are_put_back(edge: Any, score: Any, items: Any) -> None:
    edge.script.append(lambda body: edge.reply(edge.items(body)[::-1]))
    assert scores(score(items(3))) == [0, 1, 2]


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"{}", b"[]"])
def test_200_that_is_no_reply_is_an_exception(
    edge: Any, score: Any, items: Any, body: bytes
) -> None:
    edge.script.append(lambda _: Response(body))
    with pytest.raises(BadReply):
        score(items(1))


def test_text_without_spans_must_have_as_many_rewards_as_tokens(edge: Any, score: Any) -> None:
    tokens = [{"id": 1, "text": "a", "span": [0, 1]}, {"id": 2, "text": "<|end|>", "span": None}]
    item = {"index": 0, "rewards": [1.0, 2.0], "score": 3.0, "tokens": tokens}
    edge.script.append(lambda body: edge.reply([item]))
    [answer] = score([("p", "a")], return_tokens=True)
    assert [token.text for token in answer.tokens] == ["a", "<|end|>"]
    edge.script.append(lambda body: edge.reply([item | {"rewards": [1.0]}]))
    with pytest.raises(BadReply, match="promised were 2"):
        score([("p", "a")], return_tokens=True)


def test_several_scorers_keep_their_good_results_when_an_item_is_sent_again(
    edge: Any, score: Any, items: Any
) -> None:
    good, other = (
        {"rewards": [1.0, 2.0], "score": 1.0, "version": 4},
        {"rewards": [3.0, 4.0], "score": 2.0},
    )
    bad = {"rewards": None, "error": RETRYABLE}
    edge.script.append(
        lambda body: edge.reply([keyed(0, a=good, b=bad), keyed(1, a=good, b=other)])
    )
    edge.script.append(lambda body: edge.reply([keyed(0, a=bad, b=other)]))
    first, second = score(items(2), scorers=["a", "b"])
    assert len(edge.seen) == 2
    assert edge.bodies[1]["scorers"] == ["a", "b"]
    for answer in (first, second):
        assert answer.rewards is None
        assert answer.scorers["a"].rewards.tolist() == [1, 2]
        assert answer.scorers["a"].version == 4
        assert answer.scorers["b"].rewards.tolist() == [3, 4]


@pytest.mark.parametrize("arguments", [{}, {"scorers": ["a", "b"]}])
def test_sources_name_the_weights_of_the_scorers_that_the_front_asked(
    edge: Any, score: Any, items: Any, arguments: dict[str, Any]
) -> None:
    sources = {"logprob": {"model": "sft", "version": 7}}
    result = {"rewards": [1.0, 2.0], "score": 1.0}
    first = keyed(0, a=result, b=result) if arguments else {"index": 0, **result}
    edge.script.append(lambda body: edge.reply([first], sources=sources))
    [answer] = score(items(1), **arguments)
    assert {name: (source.model, source.version) for name, source in answer.sources.items()} == {
        "logprob": ("sft", 7)
    }
    [answer] = score(items(1))
    assert answer.sources == {}


def test_an_item_that_is_sent_again_keeps_a_result_only_if_its_sources_stayed_the_same(
    edge: Any, score: Any, items: Any
) -> None:
    good, later = {"rewards": [1.0, 2.0], "score": 1.0}, {"rewards": [3.0, 4.0], "score": 2.0}
    bad = {"rewards": None, "error": RETRYABLE}

    def reply(version: int, **scorers: Any) -> None:
        sources = {"logprob": {"model": "m", "version": version}}
        edge.script.append(lambda body: edge.reply([keyed(0, **scorers)], sources=sources))

    reply(1, a=good, b=bad)
    reply(1, a=bad, b=good)
    [answer] = score(items(1), scorers=["a", "b"])
    assert (len(edge.seen), answer.sources["logprob"].version) == (2, 1)
    reply(1, a=good, b=bad)
    reply(2, a=bad, b=good)
    reply(2, a=later, b=good)
    [answer] = score(items(1), scorers=["a", "b"])
    assert (len(edge.seen), answer.sources["logprob"].version) == (5, 2)
    assert answer.scorers["a"].rewards.tolist() == [3, 4]


def test_combined_rewards_come_whole_from_the_reply_that_has_them(
    edge: Any, score: Any, items: Any
) -> None:
    result = {"rewards": [1.0, 2.0], "score": 1.0}
    bad = {"rewards": None, "error": RETRYABLE}
    edge.script.append(lambda body: edge.reply([keyed(0, a=bad, b=result)]))
    edge.script.append(lambda body: edge.reply([keyed(0, a=result, b=bad)]))
    edge.script.append(
        lambda body: edge.reply(
            [keyed(0, a=result, b=result) | {"rewards": [2.0, 4.0], "score": 2.0}]
        )
    )
    [answer] = score(items(1), scorers=["a", "b"], combine={"a": 1.0, "b": 1.0})
    assert answer.rewards.tolist() == [2, 4]
    assert len(edge.seen) == 3
    assert edge.bodies[0]["combine"] == {"a": 1.0, "b": 1.0}


def test_combination_that_is_missing_is_an_exception(edge: Any, score: Any, items: Any) -> None:
    result = {"rewards": [1.0, 2.0], "score": 1.0}
    edge.script.append(lambda body: edge.reply([keyed(0, a=result, b=result)]))
    with pytest.raises(BadReply, match="combined"):
        score(items(1), scorers=["a", "b"], combine={"a": 1.0, "b": 1.0})


def test_error_of_one_scorer_is_raised_with_its_name(edge: Any, score: Any, items: Any) -> None:
    result, bad = {"rewards": [1.0, 2.0]}, {"rewards": None, "error": FINAL}
    edge.script.append(lambda body: edge.reply([keyed(0, a=result, b=bad)]))
    with pytest.raises(ItemFailed, match=r"items\[\d\]\S* \(b\)") as caught:
        score(items(1), scorers=["a", "b"])
    assert caught.value.scorer == "b"
