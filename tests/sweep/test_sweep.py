"""The sweep says what it sees: numbers that are wrong, a refusal, an error that nobody expects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweep import judge
from sweep.configs import tiny_config
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.forward.plain import PlainLayout


def spoiled(checkpoint: Any, needs: Any, *, say: Any) -> PlainLayout:
    """A layout of a model whose logits are off by a thousandth."""
    checkpoint.model.lm_head.weight.data *= 1.001
    return PlainLayout(checkpoint)


def refusing(checkpoint: Any, needs: Any, *, say: Any) -> PlainLayout:
    raise CheckpointRefused("it cannot be read")


def failing(checkpoint: Any, needs: Any, *, say: Any) -> PlainLayout:
    raise KeyError("key")


@pytest.mark.parametrize(
    ("choose", "outcome"),
    [(None, "packed"), (spoiled, "WRONG"), (refusing, "refused"), (failing, "CRASH")],
)
def test_the_sweep_says_what_it_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choose: Any, outcome: str
) -> None:
    if choose is not None:
        monkeypatch.setattr(judge, "choose_layout", choose)
    verdict = judge.judge("llama", "causal_lm", tmp_path)
    assert verdict.outcome == outcome
    assert str(verdict).split()[:2] == ["llama", outcome]


def test_what_transformers_does_not_build_is_no_fault(tmp_path: Path) -> None:
    assert judge.judge("nothing", "causal_lm", tmp_path).outcome == "not built"


def test_configurations_are_small_in_every_part() -> None:
    config = tiny_config("llava")
    assert config.text_config.hidden_size == config.vision_config.hidden_size == 32
    assert config.text_config.num_hidden_layers == 4
