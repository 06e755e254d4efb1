"""`tokenreward score` against a real HTTP server, and with a real engine in this process."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse

from fakes import tiny
from fakes.edge import b64
from tokenreward.cli import main
from tokenreward.cli.score import GROUP_SIZE


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def file(tmp_path: Path, item_lines: Any) -> Any:
    """`file(n, extra={position: line})` writes n items, or other lines in their place."""

    def write(num_items: int, extra: dict[int, str] | None = None) -> str:
        lines = item_lines(num_items)
        for position, line in (extra or {}).items():
            lines[position] = line
        path = tmp_path / "items.jsonl"
        path.write_text("".join(lines), encoding="utf-8")
        return str(path)

    return write


def entries(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_has_its_rewards_in_order(
    edge: Any, file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    edge.delay_s = 0.01
    assert main(["score", file(300), "--url", edge.url, "--concurrency", "3"]) == 0
    output = capsys.readouterr()
    expected = [
        {"index": i, "rewards": [float(i)] * 2, "score": float(i), "error": None}
        for i in range(300)
    ]
    assert entries(output.out) == expected
    assert 2 <= edge.most_in_flight <= 3
    assert "300 items" in output.err


def test_a_line_has_the_steps_of_a_scorer_that_finds_them(
    edge: Any, file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    edge.script.append(edge.changed(1, step_scores=[0.1, 0.5], step_ids=[0, 1]))
    assert main(["score", file(2), "--url", edge.url]) == 0
    without, entry = entries(capsys.readouterr().out)
    assert "step_scores" not in without
    assert (entry["step_scores"], entry["step_ids"]) == ([0.1, 0.5], [0, 1])


def test_a_line_has_the_tables_of_log_probs(
    edge: Any, file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = {
        "top_logprobs": [[-0.1, -3.0], [-0.2, -2.5]],
        "top_token_ids": [[5, 6], [7, 8]],
        "ranks": [1, 40],
    }
    edge.script.append(edge.changed(1, **tables))
    assert main(["score", file(2), "--url", edge.url]) == 0
    without, entry = entries(capsys.readouterr().out)
    assert "ranks" not in without
    assert {name: entry[name] for name in tables} == tables


def test_a_line_has_all_labels_of_a_reward_model_that_has_several(
    edge: Any, file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    edge.script.append(edge.changed(1, scores={"helpful": 0.5, "brief": -2.0}))
    assert main(["score", file(2), "--url", edge.url]) == 0
    without, entry = entries(capsys.readouterr().out)
    assert "scores" not in without
    assert entry["scores"] == {"helpful": 0.5, "brief": -2.0}


def test_bad_lines_and_failed_items_are_errors_and_the_others_are_not_lost(
    edge: Any, file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {
        "code": "sequence_too_long",
        "message": "too long",
        "param": "items[1].response",
    }
    edge.script.append(edge.changed(1, rewards=None, score=None, error=error))
    assert main(["score", file(4, {1: "{oops\n"}), "--url", edge.url]) == 1
    output = capsys.readouterr()
    results = entries(output.out)
    assert [entry["index"] for entry in results] == [0, 1, 2, 3]
    assert [entry["score"] for entry in results] == [0.0, None, None, 3.0]
    assert results[1]["error"]["message"].startswith("not valid JSON")
    assert results[1]["error"]["param"] == "line 2"
    assert results[2]["error"] == {
        "code": "sequence_too_long",
        "message": "too long",
        "param": "response",
        "retryable": False,
    }
    assert results[2]["rewards"] is None
    assert "error: 2 of 4 lines have no rewards; the first: line 2: malformed_json: " in output.err


def test_output_goes_to_a_file_and_float32_keeps_its_digits(
    edge: Any, file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edge.script.append(edge.changed(0, rewards=[0.1, 1 / 3]))
    out = tmp_path / "out.jsonl"
    assert main(["score", file(1), "--url", edge.url, "--output", str(out)]) == 0
    assert capsys.readouterr().out == ""
    assert '"rewards": [0.1, 0.33333334]' in out.read_text()


@pytest.mark.parametrize("alias", ["same", "link", "hard link", "stdin"])
def test_output_that_is_the_input_is_refused_and_nothing_is_lost(
    edge: Any, file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], alias: str
) -> None:
    items = file(2)
    before, out = Path(items).read_text(), tmp_path / "out.jsonl"
    if alias == "link":
        out.symlink_to(items)
    elif alias == "hard link":
        out.hardlink_to(items)
    else:
        out = Path(items)
    command = ["score", items, "--url", edge.url, "--output", str(out)]
    if alias == "stdin":
        command.remove(items)
        with Path(items).open("rb") as stdin:
            done = subprocess.run(
                [sys.executable, "-m", "tokenreward.cli", *command],
                stdin=stdin,
                capture_output=True,
                text=True,
            )
        code, output = done.returncode, done.stderr
    else:
        code, output = main(command), capsys.readouterr().err
    assert (code, output) == (2, f"error: --output {out} is the file that is read: name another\n")
    assert Path(items).read_text() == before
    assert edge.num_listed == 0


def test_output_is_kept_where_no_service_answers(file: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("yesterday's\n")
    assert main(["score", file(1), "--url", "http://127.0.0.1:9", "--output", str(out)]) == 1
    assert out.read_text() == "yesterday's\n"


def test_output_of_a_run_that_dies_has_the_lines_until_then(
    edge: Any, file: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("yesterday's\n")
    edge.script.extend([edge.ok, edge.says(422, "unknown_option", retryable=False)])
    assert (
        main(["score", file(128), "--url", edge.url, "--concurrency", "1", "--output", str(out)])
        == 1
    )
    assert [entry["index"] for entry in entries(out.read_text())] == list(range(64))


def test_output_of_no_lines_is_empty(edge: Any, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").touch()
    out = tmp_path / "out.jsonl"
    out.write_text("yesterday's\n")
    assert (
        main(["score", str(tmp_path / "none.jsonl"), "--url", edge.url, "--output", str(out)]) == 0
    )
    assert out.read_text() == ""


def test_options_credit_and_key_travel(edge: Any, file: Any, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-1\nsk-2\n", encoding="utf-8-sig")
    flags = ["--scorer", "attention_dense", "--options", '{"alpha": 0.5, "form": "soft_bellman"}']
    credit = ["--credit", '{"name": "attention", "beta": 0.25}']
    assert (
        main(["score", file(1), "--url", edge.url, *flags, *credit, "--api-key-file", str(key)])
        == 0
    )
    _, headers, body = edge.seen[0]
    assert headers["authorization"] == "Bearer sk-1"
    assert body["scorer"] == "attention_dense"
    assert body["options"] == {"alpha": 0.5, "form": "soft_bellman"}
    assert body["credit"] == {"name": "attention", "beta": 0.25}


@pytest.mark.parametrize("content", [b"\xff\xfek\x00", b"", b"two words\n", b"s\xc3\xa9same\n"])
def test_key_file_is_read_as_the_service_reads_its_own(
    edge: Any, file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    key = tmp_path / "key"
    key.write_bytes(content)
    assert main(["score", file(1), "--url", edge.url, "--api-key-file", str(key)]) == 1
    output = capsys.readouterr().err
    assert output.startswith("error: --api-key-file: ")
    assert output.count("\n") == 1
    assert edge.num_listed == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--options", "alpha=1"], "--options must be a JSON object, as {...}, got `alpha=1`"),
        (["--options", "[1]"], "--options must be a JSON object"),
        (["--credit", "last"], "--credit must be a JSON object"),
        (["--credit", '{"name": "best"}'], "`credit.name`"),
    ],
)
def test_wrong_arguments_are_said_before_anything_is_sent(
    edge: Any, file: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["score", file(1), "--url", edge.url, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert edge.seen == []


@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_requests_in_flight_that_cannot_be_are_a_usage_error(file: Any, value: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["score", file(1), "--concurrency", value])
    assert caught.value.code == 2


@pytest.mark.parametrize("flag", ["--option", "--credit-option", "--max-concurrency"])
def test_a_flag_has_one_spelling(file: Any, flag: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["score", file(1), flag, "1"])
    assert caught.value.code == 2


def test_service_that_is_not_there_is_said_at_once(
    file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", file(1), "--url", "localhost:8000"]) == 2
    output = capsys.readouterr().err
    assert (
        output
        == "error: --url must look like http://host:port, without a query, got `localhost:8000`\n"
    )
    assert main(["score", file(1), "--url", "http://127.0.0.1:9"]) == 1
    assert "is the service running?" in capsys.readouterr().err


def test_refusal_keeps_what_was_written_before(
    edge: Any, file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    edge.script.extend([edge.ok, edge.says(422, "unknown_option", retryable=False)])
    assert main(["score", file(128), "--url", edge.url, "--concurrency", "1"]) == 1
    output = capsys.readouterr()
    assert len(entries(output.out)) == 64
    assert "error: unknown_option: `items`: as scripted" in output.err


def test_deadline_that_passes_names_the_flags_that_help(
    edge: Any, file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    edge.script.append(edge.says(504, "deadline_exceeded", retryable=False))
    assert main(["score", file(1), "--url", edge.url]) == 1
    error = capsys.readouterr().err
    assert (
        "error: deadline_exceeded: `items`: as scripted: give more with --timeout-s, or " in error
    )


def test_refusal_of_the_service_cannot_steer_the_terminal(
    edge: Any, file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    unsafe = "\u202e\u2066\u200f\u061c\x1b\x9b"
    error = {"code": "unknown_option", "message": f"is {unsafe}", "retryable": False}
    edge.script.append(lambda body: JSONResponse({"error": error}, 422))
    assert main(["score", file(1), "--url", edge.url]) == 1
    (line,) = [line for line in capsys.readouterr().err.split("\n") if "error: " in line]
    assert "is " + "\N{REPLACEMENT CHARACTER}" * len(unsafe) in line


@pytest.mark.parametrize("no_color", [False, True])
def test_response_error_and_label_cannot_steer_the_terminal(
    edge: Any,
    file: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    no_color: bool,
) -> None:
    unsafe = "\u202e\u202a\u2066\u2069\u200f\u061c\x1b[2J\x9b"
    item = {"prompt": "p", "response": f"a{unsafe}", "spans": [[0, 1], [1, 1 + len(unsafe)]]}
    error = {"code": "non_finite", "message": f"is {unsafe}", "retryable": False}

    def answer(body: dict[str, Any]) -> Any:
        rewards = {"index": 0, "rewards": b64([1.0, -1.0]), "score": 1.0}
        return edge.reply([rewards, {"index": 1, "error": error}])

    edge.script.append(answer)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    path = file(2, {0: json.dumps(item) + "\n"})
    assert main(["score", path, "--url", edge.url, "--show"]) == 1
    own_colours = re.compile(r"\x1b\[(0|[34]8;2;\d+;\d+;\d+)m")
    for text in (own_colours.sub("", terminal.getvalue()), capsys.readouterr().err):
        assert not set(unsafe.replace("[2J", "")) & set(text)
        assert "[2J" in text


def test_show_colours_a_terminal_and_respects_no_color(
    edge: Any, file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {}
    for name, value in (("coloured", None), ("plain", "1")):
        monkeypatch.delenv("NO_COLOR", raising=False)
        if value is not None:
            monkeypatch.setenv("NO_COLOR", value)
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main(["score", file(2, {0: '{"prompt": 1}\n'}), "--url", edge.url, "--show"]) == 1
        shown[name] = terminal.getvalue()
    assert "\x1b[48;2;" in shown["coloured"]
    assert "score +1" in shown["coloured"]
    assert "\x1b" not in shown["plain"]
    assert "r[+1]1[+1]" in shown["plain"]
    assert "line 1: invalid_field: `prompt`: must be" in shown["plain"]
    assert edge.bodies[0]["return_tokens"] is True


def test_engine_in_this_process_gives_rewards_for_text_and_spans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.save(tmp_path / "model")
    config = tmp_path / "config.yaml"
    deployment = {
        "name": "lm",
        "checkpoint": str(folder),
        "task": "causal_lm",
        "scorers": [{"type": "endogenous"}],
    }
    config.write_text(json.dumps({"deployments": [deployment]}))
    lines = [
        {"prompt": "2 + 2 =", "response": " 4", "spans": [[0, 1], [1, 2]]},
        {"prompt": "2 + 2 =", "response": [1, 2, 3]},
        {"prompt": "2 + 2 =", "response": [10**6]},
    ]
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["score", str(items), "--config", str(config)]) == 1
    results = entries(capsys.readouterr().out)
    assert [len(entry["rewards"] or ()) for entry in results] == [2, 3, 0]
    assert results[0]["score"] == pytest.approx(sum(results[0]["rewards"]), abs=1e-4)
    assert results[2]["error"]["code"] == "token_out_of_vocabulary"


@pytest.mark.parametrize("scorer", ["endogenous", "reward_model"])
@pytest.mark.parametrize("show", [[], ["--show"]])
def test_whole_sequences_have_the_rewards_that_the_model_gives(
    tmp_path: Path,
    language_model: Path,
    reward_model: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    scorer: str,
    show: list[str],
) -> None:
    """A language model's rewards begin with the second token, a reward model's with the first."""
    folder, task = (language_model, "causal_lm")
    if scorer == "reward_model":
        folder, task = (reward_model, "reward_model")
    deployment = {
        "name": "one",
        "checkpoint": str(folder),
        "task": task,
        "scorers": [{"type": scorer}],
    }
    config, items = tmp_path / "config.yaml", tmp_path / "items.jsonl"
    config.write_text(json.dumps({"deployments": [deployment]}))
    ids = [{"prompt": prompt, "response": [5, 6, 7]} for prompt in ([], [1], [1, 2, 3])]
    text = {"prompt": "", "response": "2 + 2 = 4", "finished": False}
    lines = [json.dumps({**item, "whole": "sequence"}) + "\n" for item in (*ids, text)]
    items.write_text("".join(lines))
    flags = ["--config", str(config), "--scorer", scorer, *show]
    assert main(["score", str(items), *flags, "--output", str(tmp_path / "out.jsonl")]) == 0
    written = entries((tmp_path / "out.jsonl").read_text())
    first = int(scorer == "endogenous")
    assert [len(entry["rewards"]) for entry in written[:3]] == [3 - first, 4 - first, 6 - first]
    assert capsys.readouterr().out.count("  score ") == 4 * len(show)


def test_lines_that_are_more_than_the_queue_of_a_service_may_hold_are_scored_in_this_process(
    tmp_path: Path, language_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = {
        "name": "lm",
        "checkpoint": str(language_model),
        "task": "causal_lm",
        "max_queued_tokens": 100,  # a group of lines has more, and the groups in flight yet more
        "scorers": [{"type": "endogenous"}],
    }
    config, items = tmp_path / "config.yaml", tmp_path / "items.jsonl"
    config.write_text(json.dumps({"deployments": [deployment]}))
    items.write_text(2 * GROUP_SIZE * '{"prompt": [1, 2], "response": [3, 4, 5]}\n')
    assert main(["score", str(items), "--config", str(config)]) == 0
    results = entries(capsys.readouterr().out)
    assert [len(entry["rewards"]) for entry in results] == [3] * 2 * GROUP_SIZE


@pytest.mark.parametrize("others", [[], [1]])
def test_line_that_is_too_large_for_any_request_is_an_error_and_the_others_are_scored(
    edge: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    others: list[int],
) -> None:
    """Also where no line of a group fits, and where it is the only one."""
    plain = edge.ok

    def answer(body: dict[str, Any]) -> Any:
        if any(item["response"] == "r9" for item in body["items"]):
            return edge.says(413, "body_too_large", retryable=False)(body)
        return plain(body)

    monkeypatch.setattr(edge, "ok", answer)
    line = '{"prompt": "p", "response": "r%d", "spans": [[0, 2]]}\n'
    # Two groups: in one no line fits.
    numbers = [*others, *[9] * (GROUP_SIZE - len(others)), 7]
    items = tmp_path / "items.jsonl"
    items.write_text("".join(line % number for number in numbers))
    assert main(["score", str(items), "--url", edge.url]) == 1
    output = capsys.readouterr()
    results = entries(output.out)
    expected = [None if number == 9 else float(number) for number in numbers]
    assert [entry["score"] for entry in results] == expected
    codes = {entry["error"]["code"] for entry in results if entry["error"]}
    assert codes == {"body_too_large"}
    first = f"line {1 + len(others)}: body_too_large: "
    assert f"{numbers.count(9)} of {len(numbers)} lines have no rewards; the first: {first}" in (
        output.err
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--credit", '{"kl": {"coef": 0.1, "reference": "logprob"}}'], "credit.kl.reference"),
        (["--options", '{"score_from": "reward_model"}'], "options.score_from"),
    ],
)
def test_what_asks_a_second_scorer_takes_a_running_service_and_loads_no_engine(
    edge: Any, file: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert main(["score", file(1), "--demo", *arguments]) == 2
    output = capsys.readouterr().err
    assert f"`{named}`: asks a second scorer: that takes a running service" in output
    assert "loading" not in output


def test_scorer_that_the_config_does_not_serve_is_named(
    capsys: pytest.CaptureFixture[str], file: Any
) -> None:
    assert main(["score", file(1), "--demo", "--scorer", "nope"]) == 2
    assert "no deployment serves `nope`; served are endogenous" in capsys.readouterr().err


def test_service_that_is_still_loading_is_waited_for(
    edge: Any, file: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenreward.cli.backend._PROBE_TIMEOUT_S", 0.3)
    loading = {"code": "loading", "message": "m", "param": None, "retryable": True}
    monkeypatch.setattr(edge, "listing_status", 503)
    edge.listing = {"error": loading}
    edge.script.append(edge.says(503, "loading", retryable=True, Retry_After="0"))
    assert main(["score", file(1), "--url", edge.url]) == 0
    assert entries(capsys.readouterr().out)[0]["score"] == 0.0
