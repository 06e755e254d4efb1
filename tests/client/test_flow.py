"""The retry policy alone: a generator, a clock that only sleeping moves, and no I/O."""

from __future__ import annotations

from email.utils import formatdate
from typing import Any

import httpx
import pytest

from tokenreward.settings import Settings
from tokenreward_client import BadReply, ConnectionFailed, DeadlineExceeded, ServerRefused
from tokenreward_client.call import Call, score_request
from tokenreward_client.flow import Flow, Send
from tokenreward_client.request import send_until_answered
from tokenreward_client.response import error_of, retry_after_s
from tokenreward_client.retry import Attempts, Retry
from tokenreward_client.window import Window

OVERLOADED = {"error": {"code": "overloaded", "message": "m", "param": None, "retryable": True}}
FAILED = {"error": {"code": "internal", "message": "m", "param": None, "retryable": True}}
OK = httpx.Response(200)
REPLY = {
    "id": "x",
    "items": [{"index": 0, "rewards": [0.5], "score": 0.5}],
    "usage": {"prompt_tokens": 1, "response_tokens": 1},
    "timing": dict.fromkeys(("queue_s", "tokenize_s", "compute_s"), 0.0),
}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def seconds(step: Any) -> float:
    """The length of a pause, which another request's answer may end or not."""
    pause_s = step[1] if isinstance(step, tuple) else step
    assert isinstance(pause_s, float)
    return pause_s


class Walk:
    """Drives a flow through a list of answers and remembers its steps."""

    def __init__(
        self, *answers: Any, max_retries: int = 10, timeout_s: float = 100.0, jitter: float = 0.0
    ) -> None:
        self.clock = Clock()
        self.answers = list(answers)
        self.steps: list[Any] = []
        retry = Retry(
            max_retries=max_retries, clock=self.clock, wall_clock=self.clock, random=lambda: jitter
        )
        self.attempts = Attempts(retry, self.clock.now + timeout_s)

    def run(self, flow: Flow[Any] | None = None) -> Any:
        flow = flow or send_until_answered("/v1/rewards", lambda: b"{}", self.attempts)
        answer: Any = None
        try:
            while True:
                step = flow.send(answer)
                self.steps.append(step)
                if isinstance(step, Send):
                    answer = self.answers.pop(0)
                else:
                    self.clock.now += seconds(step)
                    answer = None
        except StopIteration as stop:
            return stop.value

    @property
    def pauses(self) -> list[float]:
        return [seconds(step) for step in self.steps if not isinstance(step, Send)]

    @property
    def sends(self) -> list[Send]:
        return [step for step in self.steps if isinstance(step, Send)]


def refused(status: int = 503, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=OVERLOADED, headers=headers)


def test_pauses_double_up_to_the_longest() -> None:
    walk = Walk(*[refused()] * 7, OK)
    assert walk.run() is OK
    assert walk.pauses == [0.5, 1, 2, 4, 8, 8, 8]


def test_jitter_shortens_a_pause_by_a_quarter_at_most() -> None:
    walk = Walk(refused(), refused(), OK, jitter=1.0)
    walk.run()
    assert walk.pauses == [0.375, 0.75]


def test_retry_after_in_seconds_is_waited_out_and_jitter_only_stretches_it() -> None:
    for jitter, pause_s in ((0.0, 7.0), (1.0, 7.7)):
        walk = Walk(refused(**{"retry-after": "7"}), OK, jitter=jitter)
        walk.run()
        assert walk.pauses == [pytest.approx(pause_s)]


def test_retry_after_shorter_than_the_backoff_does_not_shorten_it() -> None:
    walk = Walk(refused(**{"retry-after": "0"}), OK)
    walk.run()
    assert walk.pauses == [0.5]


def test_retry_after_as_a_date_counts_from_the_servers_own_date() -> None:
    skewed = {"date": formatdate(5000, usegmt=True), "retry-after": formatdate(5009, usegmt=True)}
    assert retry_after_s(refused(**skewed), lambda: 1.0) == 9
    alone = {"retry-after": formatdate(5009, usegmt=True)}
    assert retry_after_s(refused(**alone), lambda: 5000.0) == 9


@pytest.mark.parametrize("value", ["soon", "-3", "nan", "inf", "", "Wed, 99 Foo 2026"])
def test_retry_after_that_says_nothing_is_no_wait(value: str) -> None:
    assert retry_after_s(refused(**{"retry-after": value}), lambda: 0.0) == 0


def test_retry_after_past_the_deadline_gives_up_at_once() -> None:
    walk = Walk(refused(**{"retry-after": "101"}))
    with pytest.raises(DeadlineExceeded, match="overloaded") as caught:
        walk.run()
    assert walk.pauses == []
    assert isinstance(caught.value.__cause__, ServerRefused)


def test_server_is_told_what_remains_of_the_deadline() -> None:
    walk = Walk(refused(**{"retry-after": "30"}), OK)
    walk.run()
    assert [send.headers["x-request-timeout-seconds"] for send in walk.sends] == [
        "100.000",
        "70.000",
    ]
    assert [send.timeout_s for send in walk.sends] == [100, 70]


def test_shortest_deadline_that_is_sent_is_a_millisecond() -> None:
    walk = Walk(OK, timeout_s=0.0011)
    walk.run()
    assert walk.sends[0].headers["x-request-timeout-seconds"] == "0.001"


def test_latest_deadline_that_is_sent_is_the_latest_that_a_service_takes_by_default() -> None:
    walk = Walk(OK, timeout_s=86_400.0)
    walk.run()
    latest_s = Settings.model_fields["max_timeout_s"].default
    assert float(walk.sends[0].headers["x-request-timeout-seconds"]) == latest_s
    assert walk.sends[0].timeout_s == 86_400.0


@pytest.mark.parametrize("timeout_s", [0.0, 0.0004, 0.0009])
def test_deadline_that_has_passed_sends_nothing(timeout_s: float) -> None:
    walk = Walk(OK, timeout_s=timeout_s)
    with pytest.raises(DeadlineExceeded):
        walk.run()
    assert walk.steps == []


def test_tries_are_limited_and_the_last_error_is_raised() -> None:
    walk = Walk(*[httpx.Response(500, json=FAILED)] * 3, max_retries=2)
    with pytest.raises(ServerRefused) as caught:
        walk.run()
    assert (caught.value.status, caught.value.code, caught.value.retryable) == (
        500,
        "internal",
        True,
    )
    assert len(walk.sends) == 3


def test_being_overloaded_costs_no_try_and_is_waited_out_until_the_deadline() -> None:
    walk = Walk(*[refused(**{"retry-after": "1"})] * 100, max_retries=0)
    with pytest.raises(DeadlineExceeded, match="gave up after 16 tries: overloaded") as caught:
        walk.run()
    assert walk.pauses == [1, 1, 2, 4, *[8] * 11]
    assert isinstance(caught.value.__cause__, ServerRefused)


def test_request_that_was_refused_and_waits_in_line_to_the_end_names_the_refusal() -> None:
    walk = Walk()
    window = Window(1, walk.clock)
    older, attempts = (Attempts(walk.attempts.retry, 1100.0, window) for _ in range(2))
    flow: Any = send_until_answered("/v1/rewards", lambda: b"{}", attempts)
    assert isinstance(next(flow), Send)
    walk.clock.now += seconds(flow.send(refused()))
    older.join_line()
    ticket, timeout_s = flow.send(False)
    walk.clock.now += timeout_s
    assert not ticket.done()
    with pytest.raises(DeadlineExceeded, match="gave up after 1 tries: overloaded") as caught:
        flow.send(False)
    assert isinstance(caught.value.__cause__, ServerRefused)
    assert walk.clock.now == 1100


def test_request_that_waits_in_line_to_the_end_and_was_never_sent_says_so() -> None:
    walk = Walk()
    walk.attempts.window.join(-1)
    with pytest.raises(DeadlineExceeded, match="could be sent"):
        walk.run()
    assert walk.sends == []


@pytest.mark.parametrize("code", ["loading", "updating"])
def test_weights_on_their_way_cost_no_try_and_no_place(code: str) -> None:
    body = {"error": {"code": code, "message": "m", "param": None, "retryable": True}}
    wait = httpx.Response(503, json=body, headers={"retry-after": "1"})
    walk = Walk(*[wait] * 30, OK, max_retries=0, timeout_s=300.0)
    walk.attempts.window = Window(4, walk.clock)
    assert walk.run() is OK
    assert walk.pauses == [1, 1, 2, 4, *[8] * 26]
    assert walk.attempts.window.limit == 4
    walk = Walk(*[wait] * 30, max_retries=0)
    with pytest.raises(DeadlineExceeded, match=f"gave up after 16 tries: {code}"):
        walk.run()


@pytest.mark.parametrize("codes", [{"loading", "overloaded"}, {"updating"}])
def test_waiting_and_failing_are_counted_apart(codes: set[str]) -> None:
    attempts = Walk(max_retries=1).attempts
    waits = [attempts.next_pause_s(codes, is_retryable=True) for _ in range(3)]
    assert waits == [0.5, 1, 2]
    more = {"out_of_memory", *codes}
    assert attempts.next_pause_s(more, is_retryable=True) == 0.5
    assert attempts.next_pause_s(more, is_retryable=True) is None


def test_failures_are_counted_whatever_lies_between_them() -> None:
    fails = httpx.Response(500, json=FAILED)
    walk = Walk(refused(), fails, refused(), fails, refused(), fails, OK, max_retries=2)
    with pytest.raises(ServerRefused, match="internal"):
        walk.run()
    assert len(walk.sends) == 6


@pytest.mark.parametrize("status", [404, 408, 429, 500, 502, 503, 504, 520])
def test_proxy_error_is_retried(status: int) -> None:
    walk = Walk(httpx.Response(status, html="<h1>no</h1>"), OK)
    assert walk.run() is OK


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 405, 413, 422])
def test_other_status_without_our_body_is_final(status: int) -> None:
    walk = Walk(httpx.Response(status, html="<h1>no</h1>"), OK)
    with pytest.raises(ServerRefused) as caught:
        walk.run()
    assert (caught.value.status, caught.value.code, len(walk.sends)) == (status, None, 1)


@pytest.mark.parametrize("status", [404, 422, 500, 503])
def test_our_body_decides_whatever_the_status(status: int) -> None:
    error = {"code": "c", "message": "m", "param": "p", "retryable": False}
    with pytest.raises(ServerRefused, match="c: `p`: m") as caught:
        Walk(httpx.Response(status, json={"error": error})).run()
    assert caught.value.param == "p"
    assert Walk(httpx.Response(status, json={"error": error | {"retryable": True}}), OK).run() is OK


@pytest.mark.parametrize(
    "body", [b"[]", b"null", b"{", b'{"error": "x"}', b'{"error": {"code": "c", "message": "m"}}']
)
def test_somebody_elses_error_body_is_a_proxys(body: bytes) -> None:
    error = error_of(httpx.Response(500, content=body))
    assert isinstance(error, ServerRefused)
    assert error.code is None
    assert error.retryable


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError,
        httpx.ReadTimeout,
        httpx.RemoteProtocolError,
        httpx.WriteError,
        httpx.ReadError,
    ],
)
def test_broken_connection_is_retried(error: type[httpx.TransportError]) -> None:
    walk = Walk(error("broke"), OK)
    assert walk.run() is OK
    assert walk.pauses == [0.5]


@pytest.mark.parametrize(
    "answer", [httpx.ConnectError("refused"), httpx.Response(404, text="a proxy without routes")]
)
def test_a_connection_is_tried_twice_a_second_and_given_up_after_the_same_time(
    answer: Any,
) -> None:
    walk = Walk(*[answer] * 100, max_retries=5)
    with pytest.raises((ConnectionFailed, ServerRefused)):
        walk.run()
    assert max(walk.pauses) == 0.5
    assert sum(walk.pauses) == pytest.approx(0.5 + 1 + 2 + 4 + 8)


@pytest.mark.parametrize(
    ("answer", "can_be_woken"),
    [
        (refused(), True),
        (httpx.ConnectError("refused"), True),
        (httpx.Response(500, json=FAILED), False),
        (httpx.Response(502, text="a proxy"), False),
    ],
)
def test_another_requests_answer_ends_the_pause_of_what_was_told_later_or_had_no_connection(
    answer: Any, can_be_woken: bool
) -> None:
    walk = Walk(answer, OK)
    walk.run()
    assert any(isinstance(step, tuple) for step in walk.steps) is can_be_woken


def test_connection_that_never_works_is_raised_without_the_urls_password() -> None:
    request = httpx.Request("POST", "http://user:secret@host:1/v1/rewards")
    with pytest.raises(ConnectionFailed, match=r"http://host:1.*refused") as caught:
        Walk(httpx.ConnectError("refused", request=request), max_retries=0).run()
    assert "secret" not in str(caught.value)


def test_request_that_cannot_be_sent_is_not_retried() -> None:
    walk = Walk(httpx.UnsupportedProtocol("ftp"), OK)
    with pytest.raises(ConnectionFailed):
        walk.run()
    assert len(walk.sends) == 1


@pytest.mark.parametrize(
    "json", [None, {"error": {"code": "unknown_scorer", "message": "m", "retryable": False}}]
)
def test_404_on_the_direct_path_turns_to_the_gateway_once(json: Any) -> None:
    fallbacks = []
    reply = httpx.Response(200, json=REPLY)
    walk = Walk(httpx.Response(404, json=json), refused(), reply)
    call = Call([("p", "r")], "rm", {})
    flow = score_request(
        call, [0], walk.attempts, "/d/rm/v1/rewards", lambda: fallbacks.append(True)
    )
    assert walk.run(flow)[0].rewards == [0.5]
    assert [send.path for send in walk.sends] == ["/d/rm/v1/rewards", "/v1/rewards", "/v1/rewards"]
    assert fallbacks == [True]
    assert len(walk.pauses) == 1


@pytest.mark.parametrize("ids", ["tokenreward-1", "tokenreward-1, tokenreward-2"])
@pytest.mark.parametrize("status", [200, 503])
def test_answer_to_another_request_of_ours_is_a_bad_reply(ids: str, status: int) -> None:
    other = httpx.Response(status, headers={"x-request-id": ids})
    with pytest.raises(
        BadReply, match="the reply is to request tokenreward-1, sent was tokenreward-"
    ):
        Walk(other, OK).run()


@pytest.mark.parametrize("headers", [{}, {"x-request-id": "9f0c"}, {"x-request-id": "a, b"}])
def test_answer_without_an_id_of_ours_is_believed(headers: dict[str, str]) -> None:
    """Proxies put ids of their own in its place."""
    answer = httpx.Response(200, headers=headers)
    assert Walk(answer).run() is answer


def test_every_try_has_an_id_and_its_echo_is_believed() -> None:
    walk = Walk(refused(), None)
    flow: Any = send_until_answered("/v1/rewards", lambda: b"{}", walk.attempts)
    first = next(flow)
    assert seconds(flow.send(refused(**{"x-request-id": first.headers["x-request-id"]}))) > 0
    second = flow.send(None)
    while isinstance(second, float):
        walk.clock.now += second
        second = flow.send(None)
    assert second.headers["x-request-id"] != first.headers["x-request-id"]
    for echo in ("", "else, "):
        assert (
            error_of(
                httpx.Response(200, headers={"x-request-id": echo + second.request_id}),
                second.request_id,
            )
            is None
        )
    with pytest.raises(StopIteration):
        flow.send(httpx.Response(200, headers={"x-request-id": second.request_id}))
