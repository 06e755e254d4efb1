"""The client's errors cross processes whole, and a failure of the service can be found in its
log."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import httpx
import pytest

from tokenreward_client import (
    BadArgument,
    BadReply,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    ItemFailed,
    NotText,
    ServerRefused,
)
from tokenreward_client.response import error_of

ERRORS = [
    ClientError("m"),
    BadArgument("m", param="items[3].response"),
    NotText("m", index=7),
    ServerRefused("m", status=422, code="c", param="p", retryable=True),
    ItemFailed("m", index=3, code="c", param="p", scorer="s"),
    ConnectionFailed("m"),
    DeadlineExceeded("m"),
    BadReply("m"),
]
COPIES = [
    copy.copy,
    copy.deepcopy,
    *(lambda e, n=n: pickle.loads(pickle.dumps(e, n)) for n in range(6)),  # noqa: S301
]


def test_every_error_is_among_those_tried() -> None:
    assert {type(error) for error in ERRORS} == {ClientError, *ClientError.__subclasses__()}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("again", COPIES)
def test_copy_has_all_that_the_error_has(error: ClientError, again: Callable[[Any], Any]) -> None:
    error.retryable = not type(error).retryable
    copied = again(error)
    assert type(copied) is type(error)
    assert (copied.args, vars(copied), str(copied)) == (error.args, vars(error), str(error))


def refuse() -> None:
    raise ServerRefused("m", status=503, code="overloaded", param="items", retryable=True)


def test_error_of_another_process_arrives_whole() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        error = pool.submit(refuse).exception(timeout=60)
    assert isinstance(error, ServerRefused)
    assert (str(error), error.status, error.code, error.param) == (
        "overloaded: `items`: m",
        503,
        "overloaded",
        "items",
    )


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize(("status", "is_said"), [(500, True), (503, True), (422, False)])
def test_refusal_keeps_the_id_under_which_the_log_has_it(
    status: int, is_said: bool, ours: bool
) -> None:
    body = (
        {"error": {"code": "internal", "message": "m", "param": None, "retryable": True}}
        if ours
        else None
    )
    error = error_of(httpx.Response(status, json=body, headers={"x-request-id": "abc-1"}))
    assert isinstance(error, ServerRefused)
    assert error.request_id == "abc-1"
    assert ("(request abc-1)" in str(error)) == is_said
    without = error_of(httpx.Response(status, json=body))
    assert isinstance(without, ServerRefused)
    assert without.request_id is None
    assert "request" not in str(without)
