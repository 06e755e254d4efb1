"""The reward function as TRL calls it, before a client that is written here."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from typing import Any

import numpy as np
import pytest

from tokenreward.wire import ErrorDetail
from tokenreward_client import AsyncClient, BadArgument, Client, ConnectionFailed, Rewards
from tokenreward_client.trainers.trl import reward_func

URL = "http://127.0.0.1:9"


class Answers:
    """Answers the length of the response as the score; "wrong" fails, "down" ends the call."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.settings: dict[str, Any] = {}
        self.scorer: str | None = None

    def __call__(self, items: Any, scorer: Any = None, **settings: Any) -> list[Rewards]:
        self.items, self.scorer, self.settings = list(items), scorer, settings
        return [self.answer(item) for item in self.items]

    def answer(self, item: dict[str, Any]) -> Rewards:
        response = item["response"]
        text = response if isinstance(response, str) else response["content"]
        if text == "down":
            raise ConnectionFailed("nobody listens")
        if text == "wrong":
            return Rewards(None, error=ErrorDetail(code="too_long", message="long", param=None))
        rewards = np.array([1.0, 0.5, -2.0], dtype=np.float32)
        score = None if text == "scoreless" else float(len(text))
        return Rewards(rewards, score=score)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    answers = Answers()
    monkeypatch.setattr(Client, "score", lambda self, *a, **k: answers(*a, **k))

    async def score(self: Any, *args: Any, **settings: Any) -> list[Rewards]:
        return answers(*args, **settings)

    monkeypatch.setattr(AsyncClient, "score", score)
    return answers


def call(function: Any, completions: Any, prompts: Any = None, **columns: Any) -> Any:
    prompts = prompts or ["p"] * len(completions)
    return asyncio.run(function(prompts=prompts, completions=completions, **columns))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_texts_go_as_they_are_and_their_scores_come_back(answers: Answers, kind: Any) -> None:
    function = reward_func(kind(URL), "rm", credit={"name": "uniform"}, timeout_s=5.0)
    completions = ["abc", "a"]
    columns = {"completion_ids": [[1], [2]], "trainer_state": object(), "answer": ["x", "y"]}
    assert call(function, completions, ["p", "q"], **columns) == [3.0, 1.0]
    assert answers.items == [
        {"prompt": "p", "response": "abc"},
        {"prompt": "q", "response": "a"},
    ]
    assert answers.scorer == "rm"
    settings = {"credit": {"name": "uniform"}, "timeout_s": 5.0, "on_error": "raise"}
    assert answers.settings == settings


USER, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "four"}
TOOL = [{"role": "assistant", "content": "", "tool_calls": [{}]}, {"role": "tool", "content": "4"}]


def test_of_messages_the_last_is_judged_and_those_before_it_are_prompt(answers: Answers) -> None:
    function = reward_func(Client(URL))
    assert call(function, [[ANSWER], [*TOOL, ANSWER]], [[USER], [USER]]) == [4.0, 4.0]
    assert answers.items[0] == {"prompt": [USER], "response": ANSWER}
    assert answers.items[1] == {"prompt": [USER, *TOOL], "response": ANSWER}


def test_columns_become_fields_and_an_unfinished_completion_is_said_to_be_one(
    answers: Answers,
) -> None:
    function = reward_func(Client(URL), columns={"score": "grade"}, end_ids={2, 9})
    ids = [[5, 2], [5, 6], [9], []]
    call(function, ["a", "b", "c", ""], grade=[0.5, 1.0, 2.0, 3.0], completion_ids=ids)
    assert [item["finished"] for item in answers.items] == [True, False, True, False]
    assert [item["score"] for item in answers.items] == [0.5, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(("value", "number"), [("sum", -0.5), ("mean", -0.5 / 3)])
def test_the_tokens_rewards_may_count_in_place_of_the_score(
    answers: Answers, value: Any, number: float
) -> None:
    assert call(reward_func(Client(URL), value=value), ["abc"]) == pytest.approx([number])


def test_a_scorer_without_a_score_is_never_worth_zero(answers: Answers) -> None:
    with pytest.raises(BadArgument, match="gives no score"):
        call(reward_func(Client(URL)), ["scoreless"])


def test_a_wrong_item_is_none_and_counted_if_the_user_says_so(
    answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = []
    function = reward_func(Client(URL), "rm", on_error="none")
    unsendable = [{"role": "assistant", "content": "x", "tool_calls": [{"name": "f"}]}]
    completions = ["abc", "wrong", unsendable, []]
    prompts = ["p", "p", [USER], [USER]]
    rewards = call(
        function, completions, prompts, log_metric=lambda *metric: metrics.append(metric)
    )
    assert rewards == [3.0, None, None, None]
    assert metrics == [("rewards/rm/missing", 3.0)]
    assert answers.settings["on_error"] == "return"
    assert len(answers.items) == 2
    for place in (1, 2, 3):
        assert f"completion {place} of the batch has no reward" in caplog.text


def test_else_what_cannot_be_sent_ends_the_step_and_says_where(answers: Answers) -> None:
    with pytest.raises(BadArgument) as raised:
        call(reward_func(Client(URL)), ["abc", []], ["p", [USER]])
    assert raised.value.__notes__ == ["completion 1 of the batch"]
    assert answers.items == []


@pytest.mark.parametrize("on_error", ["raise", "none"])
def test_a_service_that_does_not_answer_is_an_error_and_no_reward(
    answers: Answers, on_error: Any
) -> None:
    with pytest.raises(ConnectionFailed):
        call(reward_func(Client(URL), on_error=on_error), ["down"])


def test_trl_sees_an_async_function_with_the_scorers_name_that_can_be_pickled() -> None:
    function = reward_func(Client(URL), "rm")
    assert inspect.iscoroutinefunction(function.__call__)
    assert function.__name__ == "rm"
    assert reward_func(Client(URL)).__name__ == "endogenous"
    both = reward_func(Client(URL), scorers=["a", "b"], combine={"a": 1.0, "b": 2.0})
    assert both.__name__ == "a_b"
    assert pickle.loads(pickle.dumps(function)).__name__ == "rm"  # noqa: S301 - our own


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"value": "last"}, "`value`: must be one of"),
        ({"on_error": "return"}, '`on_error`: must be "raise" or "none"'),
        ({"scorers": ["a", "b"]}, "several scorers need weights"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        reward_func(Client(URL), **settings)
