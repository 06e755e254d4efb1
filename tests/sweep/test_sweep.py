"""The sweep says what it sees: numbers that are wrong, a refusal, an error that nobody expects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fakes import tiny
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
    drafter = judge.judge("gemma4_assistant", "causal_lm", tmp_path)
    assert drafter.outcome == "not built"
    assert drafter.reason.startswith("it drafts for another model")


def test_configurations_are_small_in_every_part() -> None:
    config = tiny_config("llava")
    assert config.text_config.hidden_size == config.vision_config.hidden_size == 32
    assert config.text_config.num_hidden_layers == 4
    encoder = tiny_config("t5gemma").encoder
    assert (encoder.vocab_size, encoder.num_hidden_layers) == (tiny.VOCAB_SIZE, 4)


def test_a_model_that_is_nan_in_eager_float64_is_compared_with_its_default_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = judge.build("llama", "causal_lm")
    numbers = judge.own_numbers

    def without_eager(of: Any, row: Any, task: Any) -> np.ndarray:
        is_nan = of.config._attn_implementation == "eager" and of.dtype == torch.float64
        return numbers(of, row, task) * (np.nan if is_nan else 1.0)

    monkeypatch.setattr(judge, "own_numbers", without_eager)
    rows = judge.random_rows(model)[:1]
    own = numbers(model, rows[0], "causal_lm")
    (exact,) = judge.exact_numbers(model, rows, "causal_lm")
    assert model.dtype == torch.float64
    assert np.isfinite(exact).all()
    assert 0 < np.abs(exact - own).max() < 1e-5
