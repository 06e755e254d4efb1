"""Compiled decoder layers, on the CPU: the same numbers, compiled once whatever is asked, and only by the operator's
word."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import oracle
import tiny
from tokenreward.contract import Needs, Row
from tokenreward.models import probe
from tokenreward.models.checkpoint import Checkpoint, CheckpointRefused, load_checkpoint
from tokenreward.models.packed import PackedLayout
from tokenreward.models.probe import choose_layout
from tokenreward.settings import DeploymentSettings

NEEDS = Needs(frozenset({1.0}), attention=frozenset({"last"}))
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def checkpoint(model: Any, **more: Any) -> Checkpoint:
    return Checkpoint(model, None, "causal_lm", torch.device("cpu"), **more)


def work(*lengths: int) -> list[tuple[Row, Needs]]:
    generator = np.random.default_rng(len(lengths))
    ids = [generator.integers(3, tiny.VOCAB_SIZE, size=n) for n in lengths]
    return [(Row(of, max(1, len(of) // 3), len(of)), NEEDS) for of in ids]


def test_compiled_layers_give_the_same_numbers_and_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("qwen3")
    exact, said = oracle.double(model), []
    layout: Any = choose_layout(checkpoint(model, compile=True), NEEDS, say=said.append).layout
    assert "2 decoder layers are compiled" in said
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    for lengths in ((5, 40, 3), (2,), (30, 30, 9, 9), (200,)):  # windows, sharing and pruning are not compiled
        asked = work(*lengths)
        for prune in (True, False):
            layout.prune_last_layer(prune)
            for (row, _), found in zip(asked, layout.run(asked), strict=True):
                z = oracle.logits(exact, row.ids)[row.start - 1 :]
                assert np.abs(found.lse[1.0] - oracle.logsumexp(z)).max() <= 1e-5 * max(1.0, np.abs(z).max())


def test_layers_that_compile_to_something_else_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = nn.Module.compile

    def wrong(module: nn.Module, **how: Any) -> None:
        compiled(module, backend="eager")
        module._compiled_call_impl = lambda *arguments, **named: module._call_impl(*arguments, **named) * 1.01

    def fails(module: nn.Module, **how: Any) -> None:
        def call(*arguments: Any, **named: Any) -> None:
            raise RuntimeError("no compiler")

        module._compiled_call_impl = call  # type: ignore[assignment]

    for fault, word in ((wrong, "they differ in"), (fails, "that raises RuntimeError: no compiler")):
        model, said = tiny.model("qwen3"), []
        monkeypatch.setattr(nn.Module, "compile", fault)
        choose_layout(checkpoint(model, compile=True), NEEDS, say=said.append)
        assert any(line.startswith(f"no decoder layer is compiled: {word}") for line in said)
        assert not any(module._compiled_call_impl for module in model.modules())


def test_a_second_look_at_a_model_starts_from_its_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny.model("llama"), []
    own_numbers = probe._own_numbers

    def watched(*arguments: Any) -> Any:
        seen.append([layer._compiled_call_impl is not None for layer in model.base_model.layers])
        return own_numbers(*arguments)

    monkeypatch.setattr(probe, "_own_numbers", watched)
    monkeypatch.setattr(
        nn.Module, "compile", lambda module, **how: vars(module).update(_compiled_call_impl=module._call_impl)
    )
    for _ in range(2):
        choose_layout(checkpoint(model, compile=True), NEEDS, say=lambda line: None)
        assert [layer._compiled_call_impl is not None for layer in model.base_model.layers] == [True, True, False]
        model.set_attn_implementation("eager")  # as a pair leaves it for its other half
    assert seen == [[False] * 3] * 2


def test_a_model_without_a_list_of_layers_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    layout = PackedLayout(checkpoint(tiny.model("llama")))
    monkeypatch.setattr(layout, "_num_layers", 17)
    assert layout.compile_layers(True) == 0
    monkeypatch.setattr(PackedLayout, "compile_layers", lambda layout, yes: 0)
    choose_layout(checkpoint(tiny.model("llama"), compile=True), NEEDS, say=said.append)
    assert "no decoder layer is compiled: the model keeps no list of them" in said


def test_compile_on_a_cpu_is_refused(language_model: Path) -> None:
    settings = DeploymentSettings(
        name="x", checkpoint=str(language_model), task="causal_lm", scorers=[{"type": "endogenous"}], compile=True
    )
    with pytest.raises(CheckpointRefused, match=r"deployment `x`: `compile` is for a GPU, and it runs on `cpu`"):
        load_checkpoint(settings)
