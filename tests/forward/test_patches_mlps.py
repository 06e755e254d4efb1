"""MLPs in pieces of the tokens: the same numbers, never more at a time, and only where a piece is
like the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fakes import oracle, tiny
from tokenreward.contract import Needs
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.patches import MLP_PIECES
from tokenreward.forward.probe import choose_layout

NEEDS = Needs(frozenset({1.0}))


def sizes_seen(model: Any) -> list[int]:
    """Filled with how many tokens the first layer's MLP is given at a time."""
    seen: list[int] = []
    model.model.layers[0].mlp.gate_proj.register_forward_hook(
        lambda _m, inputs, _o: seen.append(inputs[0].shape[1])
    )
    return seen


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi"])
def test_a_model_with_its_mlps_in_pieces_is_as_exact_as_at_once(architecture: str) -> None:
    model = tiny.model(architecture)
    exact, layout = oracle.double(model), PackedLayout(tiny.checkpoint(model))
    own = layout.run(tiny.work(NEEDS))
    assert layout.split_mlps(7)
    for (row, _), found, naive in zip(
        tiny.work(NEEDS), layout.run(tiny.work(NEEDS)), own, strict=True
    ):
        rows = oracle.logits(exact, row.ids)[row.start - 1 :]
        truth = oracle.logsumexp(rows)
        bound = 1e-5 * max(1.0, float(np.abs(rows).max()))
        assert np.abs(found.lse[1.0] - truth).max() <= np.abs(naive.lse[1.0] - truth).max() + bound


def test_a_piece_is_never_larger_than_said_and_all_at_once_is_had_back() -> None:
    model = tiny.model("llama")
    layout, seen = PackedLayout(tiny.checkpoint(model)), sizes_seen(model)
    assert layout.split_mlps(20)
    layout.run(tiny.work(NEEDS))
    assert seen == [20, 20, 8]
    seen.clear()
    assert layout.split_mlps(48)
    layout.run(tiny.work(NEEDS))
    assert seen == [48]
    assert layout.split_mlps(None)
    assert "forward" not in vars(model.model.layers[0].mlp)


def test_a_model_without_such_layers_says_so() -> None:
    assert not PackedLayout(tiny.checkpoint(tiny.model("gpt2"))).split_mlps(7)


def test_the_probe_has_the_mlps_of_a_model_in_pieces() -> None:
    model = tiny.model("llama")
    lines: list[str] = []
    choose_layout(tiny.checkpoint(model), NEEDS, say=lines.append)
    assert all(layer.mlp.forward.args[1] == MLP_PIECES["cpu"] for layer in model.model.layers)
    assert not [line for line in lines if "MLPs" in line]


@pytest.mark.parametrize(
    ("fault", "message"), [("another result", "differs in"), ("an exception", "raises IndexError")]
)
def test_an_mlp_that_minds_how_many_tokens_it_is_given_gets_all_at_once(
    fault: str, message: str
) -> None:
    class Minds(nn.Module):
        def __init__(self, own: nn.Module) -> None:
            super().__init__()
            self.own = own

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[1] == 7 and fault == "an exception":
                raise IndexError("too few")
            return self.own(x) * (1.01 if x.shape[1] == 7 else 1.0)

    model = tiny.model("llama")
    model.model.layers[1].mlp = Minds(model.model.layers[1].mlp)
    assert_all_at_once(model, message)


def test_an_mlp_that_gives_more_than_hidden_states_gets_all_at_once() -> None:
    assert_all_at_once(tiny.model("gpt_oss"), "raises")  # its experts say which of them were chosen


def assert_all_at_once(model: Any, message: str) -> None:
    lines: list[str] = []
    layout = choose_layout(tiny.checkpoint(model), NEEDS, say=lines.append)
    assert layout.name == "packed"
    assert [
        line
        for line in lines
        if line.startswith("MLPs take all tokens at once") and message in line
    ]
    assert not any("forward" in vars(layer.mlp) for layer in model.model.layers)
