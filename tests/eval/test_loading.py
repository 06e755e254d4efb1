"""Files: every format is recognised, and what is wrong is said with file, line and field."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes.eval_data import write
from tokenreward.eval import KINDS, EvalError, load
from tokenreward.eval.files import read_rows

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
BENCH = {
    "id": 1,
    "prompt": "q",
    "chosen": ["a", "b", "c"],
    "rejected": ["d", "e", "f"],
    "domain": "chat",
}
GROUP = {"prompt": "q", "responses": ["a", "b"], "labels": [0, 1]}
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "abc"}]
BENCH_2 = {name: value for name, value in BENCH.items() if name != "domain"}
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
        ({"messages": CHAT, "flagged": [[0, 1]]}, "tokens"),
        ({"prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"]}, "reward-bench-2"),
        (BENCH_2 | {"num_correct": 3}, "reward-bench-2"),
        ({"chosen": CHAT, "rejected": CHAT}, "preference"),
        # Alpaca's `input`, in which a Russian word holds the tag of Math-Shepherd.
        (PAIR | {"input": "русские книги"}, "preference"),
        ({"problem": "q", "steps": ["a", "b"], "label": 1}, "steps"),
        ({"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}, "steps"),
    ],
)
@pytest.mark.parametrize("as_array", [False, True])
def test_kind_is_seen_in_the_fields(
    tmp_path: Path, row: dict[str, Any], kind: str, as_array: bool
) -> None:
    file = write(tmp_path / "data", [row], as_array=as_array)
    dataset = load([file])
    assert dataset.kind == kind == load([file], kind=kind).kind
    assert dataset.reason.startswith(
        ("its rows have `", "its rows have ", "`chosen` and `rejected`")
    )


def test_every_kind_is_known_by_its_name() -> None:
    assert list(KINDS) == [
        "rm-bench",
        "reward-bench-2",
        "preference",
        "best-of-n",
        "tokens",
        "unpaired",
        "steps",
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([PAIR, {"prompt": "q", "chosen": "a"}], "data line 2: `rejected` is required"),
        ([PAIR | {"chosen": 5}], "data line 1: `chosen` must be a string or messages, got 5"),
        (
            [PAIR | {"prompt": []}],
            "`prompt` must be a string or a list of messages, got a list of length 0",
        ),
        ([PAIR | {"prompt": [{"content": "x"}]}], "data line 1: `prompt[0].role`: it is required"),
        ([PAIR | {"prompt": [{"role": "user", "content": 3}]}], "line 1: `prompt[0].content`"),
        (
            [PAIR | {"rejected": "\ud800"}],
            "data line 1: `rejected`: the item cannot be written as json",
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
            "the rows may be of several kinds: name one, --kind rm-bench (if they are three styles",
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
        (
            [BENCH_2 | {"num_correct": 3}, BENCH_2 | {"chosen": 7}],
            "data line 2: `chosen` must be a list of one string",
        ),
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


def test_rm_bench_without_a_domain_is_refused(tmp_path: Path) -> None:
    row = {name: value for name, value in BENCH.items() if name != "domain"}
    with pytest.raises(EvalError, match="`domain` is not there, and the file's name begins with"):
        load([write(tmp_path / "data", [row])], kind="rm-bench")


def test_lists_of_another_length_in_a_later_row_are_of_reward_bench_2(tmp_path: Path) -> None:
    row = {name: value for name, value in BENCH.items() if name != "domain"}
    rows = [row, row | {"rejected": ["d", "e", "f", "g"]}]
    assert load([write(tmp_path / "data", rows)]).kind == "reward-bench-2"


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


ROWS = [PAIR, PAIR | {"chosen": "é日"}]


def test_gzip_is_read_as_what_it_holds(tmp_path: Path) -> None:
    plain = write(tmp_path / "data.jsonl", ROWS)
    packed = tmp_path / "data.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [row.fields for row in read_rows(packed)] == ROWS
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(EvalError, match=r"data\.jsonl\.gz: not readable as gzip"):
        read_rows(packed)


def test_what_the_dataset_viewer_exports_is_read(tmp_path: Path) -> None:
    export = {"features": [], "rows": [{"row_idx": n, "row": row} for n, row in enumerate(ROWS)]}
    (tmp_path / "data.json").write_text(json.dumps(export, indent=1))
    rows = read_rows(tmp_path / "data.json")
    assert [row.fields for row in rows] == ROWS
    assert rows[1].where.endswith("data.json row 2")


def test_parquet_is_read_and_columns_without_a_value_are_no_keys(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    user = {"role": "user", "content": "q"}
    messages = [user, {"role": "assistant", "content": "yes", "name": "a"}]
    row = {"chosen": messages, "rejected": [user, {"role": "assistant", "content": "no"}]}
    parquet.write_table(pyarrow.Table.from_pylist([row, row]), tmp_path / "data.parquet")
    dataset = load([tmp_path / "data.parquet"])
    assert dataset.kind == "preference"
    first = {"prompt": [user], "response": "yes"}
    assert [c.item for c in dataset.candidates] == [first, first | {"response": "no"}] * 2
    assert dataset.candidates[3].where.endswith("data.parquet row 2, `rejected`")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "data.parquet").read_bytes()[:50])
    with pytest.raises(EvalError, match=r"cut\.parquet: not readable as parquet"):
        load([tmp_path / "cut.parquet"])


def test_parquet_without_pyarrow_is_one_sentence_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(EvalError, match=r"needs pyarrow: pip install 'tokenreward\[parquet\]'"):
        load([tmp_path / "data.parquet"])


def test_chat_template_kwargs_go_to_messages_and_a_rows_own_come_first(tmp_path: Path) -> None:
    own = {"chat_template_kwargs": {"thinking": True}, "tools": [{"name": "t"}]}
    file = write(tmp_path / "data", [PAIR, PAIR | own])
    kwargs = {"thinking": False, "date": "x"}
    items = [c.item for c in load([file], chat_template_kwargs=kwargs).candidates]
    assert items[0]["chat_template_kwargs"] == kwargs
    assert items[3]["chat_template_kwargs"] == {"thinking": True, "date": "x"}
    assert ("tools" in items[0], items[3]["tools"]) == (False, [{"name": "t"}])
    with pytest.raises(EvalError, match="--chat-template-kwargs goes with messages"):
        load([write(tmp_path / "raw", [PAIR])], prompt_as="raw", chat_template_kwargs=kwargs)
