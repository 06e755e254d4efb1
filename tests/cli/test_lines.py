"""JSONL as people write it: blank lines, bad lines, other encodings."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from tokenreward.cli.lines import Line, read_groups

GOOD = b'{"prompt": "p", "response": "r"}\n'


def lines(content: bytes) -> list[Line]:
    return [line for group in read_groups(io.BytesIO(content), 2) for line in group]


def test_groups_hold_a_few_lines_each_and_all_bytes_are_counted() -> None:
    content = GOOD * 3 + b"\n\n" + GOOD * 2
    groups = list(read_groups(io.BytesIO(content), 2))
    assert [len(group) for group in groups] == [2, 2, 1]
    assert sum(line.num_bytes for group in groups for line in group) == len(content)


def test_blank_lines_count_as_lines_but_not_as_items() -> None:
    assert [(line.index, line.number) for line in lines(GOOD + b"\n  \n" + GOOD)] == [
        (0, 1),
        (1, 4),
    ]


def test_reading_is_lazy() -> None:
    stream = io.BytesIO(GOOD * 1000)
    next(read_groups(stream, 2))
    assert stream.tell() == 2 * len(GOOD)


@pytest.mark.parametrize(
    ("bad", "code", "message"),
    [
        (b'{"prompt": \n', "malformed_json", "not valid JSON: "),
        (b'{"prompt": "\xff"}\n', "malformed_json", "not UTF-8"),
        (
            b'{"prompt": "p", "response": "r", "score": ' + b"9" * 5000 + b"}\n",
            "malformed_json",
            "",
        ),
        (b"[" * 10**5 + b"\n", "malformed_json", "not valid JSON: "),
        (GOOD.decode().strip().encode("utf-16") + b"\n", "malformed_json", "not UTF-8"),
        (b"[1, 2]\n", "invalid_field", "must be an object"),
        (b'{"prompt": "p"}\n', "invalid_field", "it is required"),
        (
            b'{"prompt": "p", "response": "r", "spam": 1}\n',
            "invalid_field",
            "unknown field",
        ),
        (
            b'{"prompt": "p", "response": [1, 0.5]}\n',
            "invalid_field",
            "must be text",
        ),
        (
            b'{"prompt": "p", "response": "r", "mask": [1], "spans": []}\n',
            "invalid_field",
            "",
        ),
    ],
)
def test_bad_line_is_an_error_that_names_it_and_the_others_stay(
    bad: bytes, code: str, message: str
) -> None:
    before, wrong, after = lines(GOOD + bad + GOOD)
    assert before.item == after.item == json.loads(GOOD)
    assert wrong.item is None
    assert wrong.error is not None
    assert wrong.error.code == code
    assert wrong.error.message.startswith(message)
    assert wrong.error.param is not None
    assert wrong.error.param.startswith("line 2")
    assert (after.index, after.number) == (2, 3)


USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"prompt": "q", "completion": "yes", "label": True}, "q"),
        ({"prompt": [USER], "completion": [ANSWER]}, [USER]),
        ({"messages": [USER, ANSWER], "finished": False}, [USER]),
    ],
)
def test_rows_of_trl_are_items_of_the_fields_that_an_item_has(
    fields: dict[str, Any], prompt: Any
) -> None:
    (line,) = lines(json.dumps(fields).encode())
    expected = {"prompt": prompt, "response": "yes"}
    if "finished" in fields:
        expected["finished"] = False
    assert line.item == expected


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "chosen", "which `tokenreward eval`"),
        ({"messages": [USER]}, "messages[0].role", "must be the assistant's"),
        ({"completion": "yes"}, "prompt", "is required"),
    ],
)
def test_rows_that_hold_no_response_or_two_say_so(
    fields: dict[str, Any], param: str, message: str
) -> None:
    (line,) = lines(json.dumps(fields).encode())
    assert line.error is not None
    assert line.error.param == f"line 1.{param}"
    assert message in line.error.message


def test_byte_order_mark_and_missing_last_newline_are_fine() -> None:
    assert [line.error for line in lines(b"\xef\xbb\xbf" + GOOD + GOOD.strip())] == [None, None]
