"""`tokenreward eval` from end to end: real HTTP, real engines where numbers matter, interruption,
exit codes."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.eval_data import write
from fakes.eval_service import Known, known, replica
from tokenreward.cli import main
from tokenreward_client import Client

SFT = [
    {"type": "endogenous"},
    {"type": "endogenous", "name": "logprob", "options": {"form": "logprob"}},
]


@pytest.fixture
def service() -> Iterator[Known]:
    with known() as service:
        yield service


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is written where the command runs."""
    monkeypatch.chdir(tmp_path)


def pairs(num: int) -> Path:
    """Chosen responses have one digit more than rejected ones, but for every tenth, which is
    tied."""
    rows = [
        {
            "prompt": f"q{n}",
            "chosen": f"c{'1' * (n + 2)}",
            "rejected": f"r{'2' * (n + 1 + (n % 10 == 9))}",
        }
        for n in range(num)
    ]
    return write(Path("pairs.jsonl"), rows)


def outcome() -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = json.loads(Path("out.json").read_text())["scorers"]
    return kept


def test_demo_figures_over_http_are_those_of_the_plain_evaluation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The model card's own code, one sequence at a time, against batches over HTTP."""
    from tokenreward.demo import pairs as pairs_file
    from tokenreward.demo.evaluate import load_models, measure
    from tokenreward.demo.world import EVALUATION_SEED, sample_pairs

    pairs_file.main(["--pairs", "60"])
    Path("pairs.jsonl").write_text(capsys.readouterr().out)
    with replica("demo:sft", "causal_lm", SFT) as url:
        labelled = [
            "--scorer",
            "logprob",
            "--scorer",
            "mean=endogenous",
            "--options",
            'mean={"aggregation": "mean"}',
        ]
        assert (
            main(
                [
                    "eval",
                    "pairs.jsonl",
                    "--url",
                    url,
                    *labelled,
                    "--json",
                    "out.json",
                    "--html",
                    "out.html",
                ]
            )
            == 0
        )
    plain = measure(*load_models(), sample_pairs(60, EVALUATION_SEED, "held_out"))
    for row, name in zip(outcome(), ("logprob", "soft_bellman"), strict=True):
        mean, *_ = plain[f"pair: {name} mean"]
        assert row["figures"]["accuracy"]["value"] == mean
        figure = row["figures"]["token_auc"]
        assert (figure["value"], figure["low"], figure["high"]) == pytest.approx(
            plain[f"token (differing): {name}"][:3], abs=2e-4
        )
        assert figure["num"] == 60
    said = capsys.readouterr().out
    assert "60 pairs (preference)" in said
    assert re.search(r"^mean +1\.000 \[0\.940, 1\.000\]", said, flags=re.MULTILINE)
    page = Path("out.html").read_text()
    assert page.count("<u>") >= 20
    assert "&lt;|end|&gt;" in page


def test_scores_of_groups_are_the_services_own(language_model: Path) -> None:
    rows = [
        {
            "prompt": "2 + 2 =",
            "responses": [f"{n}{'?' * (k + 1)}" for k in range(3)],
            "labels": [k == n % 3 for k in range(3)],
        }
        for n in range(12)
    ]
    write(Path("groups.jsonl"), rows)
    with replica(str(language_model), "causal_lm", SFT) as url:
        assert (
            main(
                ["eval", "groups.jsonl", "--url", url, "--scorer", "logprob", "--json", "out.json"]
            )
            == 0
        )
        with Client(url) as client:
            items = [
                {"prompt": [{"role": "user", "content": r["prompt"]}], "response": t}
                for r in rows
                for t in r["responses"]
            ]  # type: ignore[attr-defined]
            scores = np.array([answer.score for answer in client.score(items, "logprob")]).reshape(
                12, 3
            )
    right = [
        bool(row["labels"][int(best)])
        for row, best in zip(rows, scores.argmax(axis=1), strict=True)
    ]  # type: ignore[index]
    (row,) = outcome()
    assert row["figures"]["top_ranked"]["value"] == pytest.approx(np.mean(right))
    assert row["figures"]["random"]["value"] == pytest.approx(1 / 3)
    assert row["latency"]["num_items"] == 36


def test_item_errors_are_counted_listed_and_exit_1(
    language_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": "p", "chosen": "fine", "rejected": "also fine"},
        {"prompt": "p", "chosen": "x", "rejected": "y" * 900},
    ]
    write(Path("pairs.jsonl"), rows)
    with replica(str(language_model), "causal_lm", SFT, max_sequence_tokens=256) as url:
        assert (
            main(["eval", "pairs.jsonl", "--url", url, "--scorer", "logprob", "--json", "out.json"])
            == 1
        )
    said = capsys.readouterr()
    assert "pairs.jsonl line 2, `rejected`: sequence_too_long: " in said.out
    assert "error: 1 of 4 items have no answer; the first: pairs.jsonl line 2" in said.err
    (row,) = outcome()
    assert row["counts"] == {
        "pairs": 2,
        "judged": 1,
        "failed": 1,
        "wrong": row["counts"]["wrong"],
        "ties": 0,
    }
    assert row["figures"]["accuracy"]["num"] == 1
    assert [error["code"] for error in row["errors"]] == ["sequence_too_long"]


def test_all_scorers_are_judged_by_default_and_ties_are_no_wins(
    service: Known, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(pairs(100)), "--url", service.url, "--json", "out.json"]) == 0
    for row, name in zip(outcome(), ("known", "second"), strict=True):
        assert (row["label"], row["version"]) == (name, 3)
        assert row["figures"]["accuracy"]["value"] == 0.9
        assert row["counts"] == {"pairs": 100, "judged": 100, "failed": 0, "wrong": 0, "ties": 10}
    assert "known: 200 items to score\n" in capsys.readouterr().err


def test_many_items_travel_in_few_requests(service: Known) -> None:
    assert (
        main(
            [
                "eval",
                str(pairs(320)),
                "--url",
                service.url,
                "--scorer",
                "known",
                "--concurrency",
                "3",
            ]
        )
        == 0
    )
    # The first few are small: how fast the service is must be measured.
    assert len(service.bodies) <= 1 + 640 // 64 + 20
    assert max(len(body["items"]) for body in service.bodies) == 64
    assert service.most_in_flight <= 3


def test_second_run_asks_for_nothing_but_one_item_and_says_the_same(
    service: Known, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["eval", str(pairs(50)), "--url", service.url, "--scorer", "known"]
    assert main(asked) == 0
    first = capsys.readouterr().out
    service.seen.clear()
    assert main(asked) == 0
    said = capsys.readouterr()
    assert said.out == first
    assert "known: 0 items to score, 100 are in the cache" in said.err
    assert len(service.responses) == 1
    assert main([*asked, "--no-cache"]) == 0
    assert len(service.responses) == 1 + 1 + 100
    assert main([*asked, "--cache", "other.jsonl", "--credit", 'known={"name": "last"}']) == 0
    assert service.bodies[-1]["credit"] == {"name": "last"}
    assert Path("other.jsonl").exists()


def test_options_and_credit_of_the_only_scorer_need_no_label(service: Known) -> None:
    asked = ["eval", str(pairs(1)), "--url", service.url, "--scorer", "known"]
    assert main([*asked, "--options", '{"a": "x=y"}', "--credit", '{"name": "last"}']) == 0
    assert (service.bodies[-1]["options"], service.bodies[-1]["credit"]) == (
        {"a": "x=y"},
        {"name": "last"},
    )


def test_other_version_is_asked_again(service: Known) -> None:
    asked = [
        "eval",
        str(pairs(20)),
        "--url",
        service.url,
        "--scorer",
        "known",
        "--json",
        "out.json",
    ]
    assert main(asked) == 0
    service.seen.clear()
    assert service.listing is not None
    service.listing["scorers"][0]["version"] = 4
    four = service.reply
    service.reply = lambda items, **fields: four(items, **fields | {"version": 4})  # type: ignore[method-assign]
    try:
        assert main(asked) == 0
    finally:
        del service.reply  # type: ignore[method-assign]
    assert len(service.responses) == 41
    assert outcome()[0]["version"] == 4


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--scorer", "nope"], 1, "the service has no scorer `nope`; it has known, second"),
        (
            ["--scorer", "known", "--options", '{"a": 1}', "--options", '{"b": 1}'],
            2,
            "--options of `known` is there twice",
        ),
        (["--scorer", "known", "--options", '{"a":' * 9999], 2, "--options must be a JSON object"),
        (["--options", "known"], 2, "--options must look like [LABEL=]{...}, got `known`"),
        (["--options", "known=[1]"], 2, "--options must be a JSON object, as {...}, got `[1]`"),
        (
            ["--options", "{}"],
            2,
            "--options must say whose, as LABEL={...}; judged are known, second",
        ),
        (["--credit", "other={}"], 2, "--credit names `other`; judged are known, second"),
        (["--scorer", "known", "--scorer", "known"], 2, "two scorers are labelled `known`"),
        (["--credit", 'known={"name": "best"}'], 2, "`credit.name`"),
        (["--html", "nowhere/out.html"], 2, "nowhere is not a directory"),
        (["--api-key-file", "nowhere"], 1, "nowhere: No such file"),
        (["--kind", "tokens"], 1, "pairs.jsonl line 1: `response` is required"),
        (
            ["--prompt-as", "raw", "--kind", "rm-bench"],
            1,
            "line 1: `chosen` must be a list of 3 strings, got a string",
        ),
    ],
)
def test_wrong_arguments_are_one_line_and_nothing_is_scored(
    service: Known,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    exit_code: int,
    message: str,
) -> None:
    assert main(["eval", str(pairs(2)), "--url", service.url, *arguments]) == exit_code
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert len(service.responses) == 0
    assert said.out == ""


@pytest.mark.parametrize("value", ["0", "-1", "x"])
@pytest.mark.parametrize("flag", ["--limit", "--concurrency"])
def test_numbers_that_cannot_be_are_usage_errors(flag: str, value: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["eval", "pairs.jsonl", flag, value])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"prompt": "q", "chosen": "a", "rejected": "b"}\n{oops',
            "error: bad.jsonl line 2: not valid JSON",
        ),
        (
            '{"prompt": "q", "chosen": "a"}',
            "error: bad.jsonl line 1: the fields (`prompt`, `chosen`) are of no known",
        ),
        (
            '{"prompt": "q", "chosen": "a", "rejected": 1}',
            "error: bad.jsonl line 1: `rejected` must be a string or messages, got 1",
        ),
        (
            '[{"\\u001b[2J": 1}]',
            "error: bad.jsonl row 1: the fields (`\ufffd[2J`) are of no known kind",
        ),
    ],
)
def test_bad_file_names_line_and_field(
    service: Known, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    Path("bad.jsonl").write_text(content)
    assert main(["eval", "bad.jsonl", "--url", service.url]) == 1
    assert capsys.readouterr().err.startswith(message)
    assert service.num_listed == 0


def test_missing_file_and_missing_service_are_said_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["eval", "nowhere.jsonl"]) == 1
    assert "nowhere.jsonl: No such file or directory" in capsys.readouterr().err
    assert main(["eval", str(pairs(1)), "--url", "http://127.0.0.1:9"]) == 1
    assert "is the service running?" in capsys.readouterr().err


def test_refusal_is_said_before_the_long_run(
    service: Known, capsys: pytest.CaptureFixture[str]
) -> None:
    service.script.extend([service.ok, service.says(422, "unknown_option", retryable=False)])
    assert main(["eval", str(pairs(100)), "--url", service.url]) == 1
    assert "error: scorer `second`: unknown_option: `items`: as scripted" in capsys.readouterr().err
    assert len(service.responses) == 2


@pytest.mark.parametrize("flag", ["--json", "--html", "--cache"])
def test_output_that_is_a_data_file_or_a_folder_is_refused_and_nothing_is_lost(
    service: Known, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    data = pairs(2)
    before = data.read_text()
    Path("link").symlink_to(data)
    for output, reason in (("link", "is a file that is read: name another"), (".", "directory")):
        assert main(["eval", str(data), "--url", service.url, flag, output]) == 2
        assert reason in capsys.readouterr().err
    assert data.read_text() == before
    assert service.responses == []


def test_scorer_whose_deployment_still_loads_is_waited_for(service: Known) -> None:
    full = service.listing
    assert full is not None
    service.listing = {"scorers": [], "unavailable": ["lm"]}
    service.listing_delay_s = 0.2
    later = threading.Timer(1.0, lambda: setattr(service, "listing", full))
    later.start()
    assert main(["eval", str(pairs(2)), "--url", service.url, "--scorer", "a=known"]) == 0
    assert service.num_listed > 2


def test_listing_without_any_scorer_is_said(
    service: Known, capsys: pytest.CaptureFixture[str]
) -> None:
    service.listing = {"scorers": [], "unavailable": ["lm"]}
    for more in ([], ["--options", "{}"]):
        assert main(["eval", str(pairs(2)), "--url", service.url, *more]) == 1
        assert capsys.readouterr().err == (
            "error: the service lists no scorer: its deployments may still load\n"
        )


def test_key_travels(service: Known) -> None:
    Path("key").write_text("sk-1\n")
    assert (
        main(
            [
                "eval",
                str(pairs(1)),
                "--url",
                service.url,
                "--api-key-file",
                "key",
                "--scorer",
                "known",
            ]
        )
        == 0
    )
    assert service.seen[0][1]["authorization"] == "Bearer sk-1"


def test_rm_bench_files_of_two_domains(service: Known, capsys: pytest.CaptureFixture[str]) -> None:
    """Chosen have 1, 2, 3 digits, rejected 0, 2, 3: the matrix is [1 0 0; 1 0 0; 1 1 0] in both
    domains."""
    row = {
        "id": "a",
        "prompt": "q",
        "chosen": ["c1", "c11", "c111"],
        "rejected": ["r", "r22", "r333"],
    }
    for name in ("chat_filtered.json", "safety-refuse_filtered.json"):
        write(Path(name), [row], as_array=True)
    files = ["chat_filtered.json", "safety-refuse_filtered.json"]
    asked = ["--url", service.url, "--scorer", "known", "--json", "out.json", "--html", "out.html"]
    assert main(["eval", *files, *asked]) == 0
    (kept,) = outcome()
    assert kept["matrices"] == {
        name: [[1, 0, 0], [1, 0, 0], [1, 1, 0]] for name in ("chat", "safety")
    }
    assert kept["figures"]["macro"]["title"] == "macro over chat, safety"
    assert kept["figures"]["macro"]["value"] == pytest.approx(4 / 9)
    assert "note: math, code missing: this is not the RM-Bench average" in capsys.readouterr().out
    assert "RM-Bench average (macro)" not in Path("out.html").read_text()
