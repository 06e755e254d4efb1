"""The file of held-out pairs: the pairs that the model card is about, with their wrong
characters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tokenreward.demo import pairs
from tokenreward.demo.corpus import user_turn
from tokenreward.demo.world import EVALUATION_SEED, sample_pairs
from tokenreward.eval import load


def written(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    pairs.main(list(arguments))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_lines_are_the_held_out_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    lines = written(capsys, "--pairs", "50")
    expected = sample_pairs(50, EVALUATION_SEED, "held_out")
    assert [(line["prompt"], line["chosen"], line["rejected"]) for line in lines] == [
        (user_turn(pair), pair.faithful, pair.corrupted) for pair in expected
    ]
    assert [line["rejected_flagged"] for line in lines] == [
        list(map(list, pair.differing)) for pair in expected
    ]
    assert {line["subset"] for line in lines} >= {"two facts", "salary"}


def test_whole_values_may_be_flagged_instead(capsys: pytest.CaptureFixture[str]) -> None:
    lines = written(capsys, "--pairs", "9", "--seed", "5", "--flag", "value")
    expected = sample_pairs(9, 5, "held_out")
    assert [line["rejected_flagged"] for line in lines] == [
        list(map(list, pair.whole_values)) for pair in expected
    ]


def test_eval_reads_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs.main(["--pairs", "5"])
    (tmp_path / "pairs.jsonl").write_text(capsys.readouterr().out)
    dataset = load([tmp_path / "pairs.jsonl"])
    assert (dataset.kind, dataset.num_cases) == ("preference", 5)
    assert [candidate.needs_units for candidate in dataset.candidates] == [False, True] * 5


def test_command_loads_no_torch() -> None:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; from tokenreward.demo import pairs; "
        "pairs.main(['--pairs', '1'])\n"
    )
    code += "print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "False False"


def test_a_reader_that_has_enough_ends_it_quietly() -> None:
    command = [sys.executable, "-m", "tokenreward.demo.pairs", "--pairs", "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b'{"prompt"')
        process.stdout.close()
        assert process.stderr.read() == b""
