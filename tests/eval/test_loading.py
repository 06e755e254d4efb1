"""Files: every format is recognised, and what is wrong is said with file, line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fakes.eval_data import write
from tokenreward.eval import KINDS, EvalError, load
from tokenreward.eval.rows import read_rows

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
BENCH = {
    "id": 1,
    "prompt": "q",
    "chosen": ["a", "b", "c"],
    "rejected": ["d", "e", "f"],
    "domain": "chat",
}
GROUP = {"prompt": "q", "responses": ["a", "b"], "labels": [0, 1]}
FLAGGED = {"prompt": "q", "response": "abc", "flagged": [[0, 1]]}
GSM8K = {"question": "q", "ground_truth": "g", "6b": {"is_correct": True, "solution": "s"}}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (PAIR, "preference"),
        (BENCH, "rm-bench"),
        (GROUP, "best-of-n"),
        (GSM8K, "best-of-n"),
        (FLAGGED, "tokens"),
        ({"prompt": "q", "response": "ab", "flags": [0, 1]}, "tokens"),
    ],
)
@pytest.mark.parametrize("as_array", [False, True])
def test_kind_is_seen_in_the_fields(
    tmp_path: Path, row: dict[str, Any], kind: str, as_array: bool
) -> None:
    file = write(tmp_path / "data", [row], as_array=as_array)
    assert load([file]).kind == kind == load([file], kind=kind).kind


def test_every_kind_is_known_by_its_name() -> None:
    assert list(KINDS) == ["rm-bench", "preference", "best-of-n", "tokens"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([PAIR, {"prompt": "q", "chosen": "a"}], "data line 2: `rejected` is required"),
        ([PAIR | {"chosen": 5}], "data line 1: `chosen` must be a string, got 5"),
        (
            [PAIR | {"prompt": []}],
            "`prompt` must be a string or a list of messages, got a list of length 0",
        ),
        ([PAIR | {"prompt": [{"content": "x"}]}], "data line 1: `prompt[0].role`: it is required"),
        ([PAIR | {"prompt": [{"role": "user", "content": 3}]}], "line 1: `prompt[0].content`"),
        (
            [PAIR | {"rejected": "\ud800"}],
            "data line 1: `rejected`: the item cannot be written as JSON",
        ),
        ([PAIR | {"subset": 7}], "data line 1: `subset` must be a string, got 7"),
        (
            [PAIR | {"rejected_flagged": [[0, 2]]}],
            "`rejected_flagged[0]` is [0, 2], but the response has 1 characters",
        ),
        ([PAIR | {"rejected_flagged": [[0, True]]}], "`rejected_flagged[0]` must be [start, end]"),
        (
            [PAIR | {"rejected_flagged": 1}],
            "`rejected_flagged` must be a list of [start, end] ranges, got 1",
        ),
        (
            [BENCH | {"chosen": ["a", "b"]}],
            "`chosen` must be a list of 3 strings, got a list of length 2",
        ),
        ([BENCH | {"rejected": ["a", "b", None]}], "`rejected[2]` must be a string, got null"),
        (
            [{k: v for k, v in BENCH.items() if k != "domain"}],
            "`domain` is not there, and the file's name begins with",
        ),
        (
            [GROUP | {"labels": [0]}],
            "`labels` must be a list of 2 flags, one per response, got a list of length 1",
        ),
        ([GROUP | {"labels": [0, 2]}], "`labels[1]` must be 0 or 1, got 2"),
        ([GROUP | {"labels": [0, 1.0]}], "`labels[1]` must be 0 or 1, got 1.0"),
        ([GROUP | {"responses": []}], "`responses` must be a list of one string or more"),
        ([{"prompt": "q", "responses": ["a"]}], "data line 1: `labels` is required"),
        ([GSM8K | {"6b": {"solution": "s"}}], "`6b.is_correct` must be true or false"),
        ([GSM8K | {"6b": "s"}], "`6b.solution` must be a string"),
        ([{"question": "q", "ground_truth": "g"}], "`question` has no solutions beside it"),
        (
            [{"prompt": "q", "response": "ab", "flags": [1]}],
            "`flags` must be a list of 2 flags, one per character",
        ),
        ([FLAGGED | {"flags": [0, 0, 1]}], "`flags` and `flagged` say the same thing"),
        ([FLAGGED | {"flagged": [[2, 2]]}], "`flagged[0]` is [2, 2]"),
        (
            [{"prompt": "q", "response": "ab", "spans": [[0, 1]], "flags": [1]}],
            "`spans` end at 1, but the response has 2",
        ),
        (
            [{"prompt": "q", "response": "ab", "spans": [[1, 2]], "flags": [1]}],
            "`spans[0]` is [1, 2], but must start at 0",
        ),
        ([{"prompt": "q", "response": "ab", "spans": [[0, 2]], "flags": []}], "one per span"),
        (
            [{"text": "q", "label": 1}],
            "data line 1: the fields (`text`, `label`) are of no known kind",
        ),
        ([PAIR, 7], "data line 2: must be an object, got 7"),
        ([], "data: holds no rows"),
    ],
)
def test_what_is_wrong_is_said_with_line_and_field(
    tmp_path: Path, rows: list[Any], message: str
) -> None:
    with pytest.raises(EvalError) as caught:
        load([write(tmp_path / "data", rows)])
    assert message in str(caught.value)
    assert str(tmp_path / "data") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": 1}\n{oops\n', "data line 2: not valid JSON"),
        (b'{"prompt": 1}\n\n\xff\n', "data line 3: not UTF-8"),
        (b'[{"prompt": 1},\n {]', "data: not valid JSON: Expecting property name"),
        (b"[1]", "data row 1: must be an object, got 1"),
        (b"[]", "data: holds no rows"),
        (b"", "data: holds no rows"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_broken_file_is_said_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(EvalError, match="data") as caught:
        load([tmp_path / "data"])
    assert message in str(caught.value)


def test_kind_that_is_said_is_believed(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="line 1: `response` is required"):
        load([write(tmp_path / "data", [PAIR])], kind="tokens")


def test_files_of_two_kinds_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / "a", [PAIR]), write(tmp_path / "b", [GROUP])]
    with pytest.raises(EvalError, match=r"a is preference, .*b is best-of-n"):
        load(files)


def test_limit_is_per_file(tmp_path: Path) -> None:
    files = [write(tmp_path / name, [PAIR] * 5) for name in ("a", "b")]
    assert load(files, limit=2).num_cases == 4


def test_byte_order_mark_blank_lines_and_line_separators_inside_strings(tmp_path: Path) -> None:
    line = json.dumps(PAIR | {"chosen": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "data").write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\n  \n{line}\n".encode())
    rows = read_rows(tmp_path / "data")
    assert [row.where.split("/")[-1] for row in rows] == ["data line 1", "data line 4"]
    assert rows[1].fields["chosen"] == "a\u2028b"
