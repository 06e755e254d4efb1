"""A real language model, from the file to the rewards: SmolLM2-135M-Instruct knows capitals."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tokenreward import demo
from tokenreward.cli import main

pytestmark = [
    pytest.mark.smol,
    pytest.mark.skipif(
        find_spec(demo.SMOL_PACKAGE) is None, reason=f"without its wheel: {demo.INSTALL_SMOL}"
    ),
]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_a_wrong_capital_has_the_lowest_reward_of_its_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capitals, file, output = ("Paris", "Berlin"), tmp_path / "items.jsonl", tmp_path / "out.jsonl"
    items = [
        {"prompt": QUESTION, "response": f"The capital of France is {name}."} for name in capitals
    ]
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    arguments = ["--config", "smol", "--scorer", "logprob", "--output", str(output)]
    assert main(["score", str(file), *arguments]) == 0, capsys.readouterr().err
    right, wrong = (json.loads(line) for line in output.read_text().splitlines())
    # The, capital, of, France, is, the name, the full stop and the end of the turn.
    assert len(right["rewards"]) == len(wrong["rewards"]) == 8
    assert right["rewards"][5] > -0.5
    assert wrong["rewards"][5] == min(wrong["rewards"]) < -5
    assert right["rewards"][:5] == pytest.approx(wrong["rewards"][:5], abs=0.1)
    assert right["score"] > wrong["score"]
