"""What cannot be sent is refused before anything is, with the path of the field at fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenreward_client import BadArgument, Client

GOOD = {"prompt": "p", "response": "abc"}


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([GOOD, {"prompt": "p"}], "items[1].response"),
        ([GOOD | {"respnse": "x"}], "items[0].respnse"),
        ([GOOD | {"finished": "yes"}], "items[0].finished"),
        ([GOOD | {"policy_logprobs": [float("nan")]}], "items[0].policy_logprobs[0]"),
        ([GOOD | {"response": [1, 2.5]}], "items[0].response"),
        ([GOOD | {"response": np.array([0.5])}], "items[0].response"),
        ([GOOD | {"response": [True]}], "items[0].response"),
        ([GOOD | {"response": [[1], [2]]}], "items[0].response"),
        ([GOOD | {"response": [2**31]}], "items[0].response"),
        ([GOOD | {"response": {"ids_b64": "?"}}], "items[0].response.ids_b64"),
        ([GOOD | {"response": [1], "spans": [[0, 1]]}], "items[0]"),
        ([GOOD | {"spans": [[0, 1], [1, 3]], "mask": [1]}], "items[0]"),
        ([GOOD | {"response": "\ud800"}], "items[0]"),
        (["text"], "items[0]"),
        (("prompt", "response"), "items[0]"),
        ([None], "items[0]"),
        ([("a", "b", "c")], "items[0]"),
        (GOOD, "items"),
        ("text", "items"),
    ],
)
def test_item_that_cannot_be_sent_names_its_field(edge: Any, items: Any, param: str) -> None:
    with Client(edge.url) as client, pytest.raises(BadArgument) as caught:
        client.score(items)
    assert caught.value.param == param
    assert edge.seen == []


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"scorer": "a", "scorers": ["b"]}, "scorers"),
        ({"scorers": "endogenous"}, "scorers"),
        ({"scorers": []}, "scorers"),
        ({"combine": {"a": 1.0}}, None),
        ({"scorers": ["a"], "combine": {"a": float("nan")}}, "combine.a"),
        ({"scorers": ["a"], "options": {"b": {}}}, "options.b"),
        ({"credit": {"name": "best"}}, "credit.name"),
        ({"credit": {"naem": "last"}}, "credit.naem"),
        ({"min_version": -1}, "min_version"),
        ({"on_error": "ignore"}, "on_error"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("inf")}, "timeout_s"),
    ],
)
def test_request_that_cannot_be_sent_names_its_field(
    edge: Any, arguments: dict[str, Any], param: str | None
) -> None:
    with Client(edge.url) as client, pytest.raises(BadArgument) as caught:
        client.score([GOOD], **arguments)
    assert caught.value.param == param
    assert edge.seen == []


def test_misspelt_argument_is_a_type_error(edge: Any) -> None:
    with Client(edge.url) as client, pytest.raises(TypeError, match="optoins"):
        client.score([GOOD], optoins={})


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"base_url": "http://"}, "base_url"),
        ({"base_url": "http://host:99999"}, "base_url"),
        ({"base_url": "http://host/?q=1"}, "base_url"),
        ({"base_url": None}, "base_url"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": "sk-hush\n"}, "api_key"),
        ({"timeout_s": -1.0}, "timeout_s"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_concurrency": 0}, "max_concurrency"),
    ],
)
def test_client_with_unusable_settings_is_refused(settings: dict[str, Any], param: str) -> None:
    with pytest.raises(BadArgument) as caught:
        Client(**settings)
    assert caught.value.param == param
    assert "hush" not in str(caught.value)
