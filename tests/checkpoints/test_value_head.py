"""The head's arithmetic against numpy in float64, its affine, and the modules and configurations
that are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tokenreward.checkpoints.checkpoint import CheckpointRefused
from tokenreward.checkpoints.heads.value_head import ValueHead
from tokenreward.checkpoints.layers import head_module

HIDDEN = 32


def model(module: nn.Module | None, name: str = "score", **config: Any) -> Any:
    return SimpleNamespace(config=SimpleNamespace(**config), **{name: module})


def linear(num_labels: int, *, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(HIDDEN, num_labels, bias=bias)


def mlp(num_labels: int) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(HIDDEN, 48), nn.ReLU(), nn.Linear(48, num_labels))


def truth(module: nn.Module, hidden: torch.Tensor) -> np.ndarray:
    """The value in float64, with numpy, from the weights as they are."""
    x = hidden.double().numpy()
    layers = [module] if isinstance(module, nn.Linear) else [module[0], module[2]]
    for index, layer in enumerate(layers):
        x = np.maximum(x, 0) if index else x
        x = x @ layer.weight.detach().double().numpy().T
        x = x if layer.bias is None else x + layer.bias.detach().double().numpy()
    return x[:, 0] if x.shape[1] == 1 else x[:, 1] - x[:, 0]


@pytest.mark.parametrize("num_labels", [1, 2])
@pytest.mark.parametrize(
    "make", [linear, lambda n: linear(n, bias=False), mlp], ids=["linear", "no-bias", "mlp"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_computed_in_float32_from_weights_and_states_of_any_dtype(
    make: Any, num_labels: int, dtype: torch.dtype
) -> None:
    module = make(num_labels).to(dtype)
    hidden = (3 * torch.randn(2500, HIDDEN, generator=torch.Generator().manual_seed(0))).to(dtype)
    values = ValueHead.of(model(module)).values(hidden)
    assert values.dtype == torch.float32
    expected = truth(module, hidden)
    assert np.abs(values.detach().numpy() - expected).max() <= 1e-5 * max(
        1.0, np.abs(expected).max()
    )


def test_no_states_give_no_values() -> None:
    assert ValueHead.of(model(linear(1))).values(torch.empty(0, HIDDEN)).shape == (0,)


def test_a_classifier_is_a_head_too() -> None:
    assert ValueHead.of(model(linear(2), "classifier")).note == "Linear(32, 2), logit[1] - logit[0]"


def test_a_head_made_of_tensors_is_float32_and_the_one_that_they_were_of() -> None:
    for module in (linear(1), linear(2, bias=False), mlp(2)):
        state = module.state_dict()
        copy = head_module({name: tensor.bfloat16() for name, tensor in state.items()})
        dtypes = {name: tensor.dtype for name, tensor in copy.state_dict().items()}
        assert dtypes == dict.fromkeys(state, torch.float32)
        hidden = torch.randn(5, HIDDEN)
        expected = truth(module.bfloat16(), hidden)
        np.testing.assert_allclose(ValueHead.of(model(copy)).values(hidden), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("weight", "bias"),
    [(torch.ones(HIDDEN), None), (torch.ones(1, HIDDEN), torch.ones(2))],
    ids=["vector", "bias"],
)
def test_tensors_that_are_no_weight_and_bias_are_refused(
    weight: torch.Tensor, bias: torch.Tensor | None
) -> None:
    tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
    with pytest.raises(CheckpointRefused, match="no weight and bias of a Linear"):
        head_module(tensors)


@pytest.mark.parametrize(
    "module",
    [
        None,
        nn.Sequential(nn.Linear(4, 4), nn.Softplus(), nn.Linear(4, 1)),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4)),
        nn.LayerNorm(4),
    ],
    ids=["none", "softplus", "two activations", "norm", "other"],
)
def test_a_module_that_is_computed_otherwise_is_refused(module: nn.Module | None) -> None:
    with pytest.raises(CheckpointRefused, match="no head over every token that is a Linear"):
        ValueHead.of(model(module))


def test_a_head_of_three_labels_is_refused() -> None:
    with pytest.raises(CheckpointRefused, match=r"3 labels .*: `head: {label: ...}` says"):
        ValueHead.of(model(linear(3)))


@pytest.mark.parametrize("num_labels", [1, 2])
def test_the_affine_of_the_configuration_is_applied_if_it_says_so(num_labels: int) -> None:
    module, hidden = linear(num_labels), torch.randn(7, HIDDEN)
    head = ValueHead.of(model(module, mean=-1.5, std=0.25, normalize_reward=True))
    np.testing.assert_allclose(
        head.values(hidden).detach(), (truth(module, hidden) + 1.5) / 0.25, rtol=1e-5
    )
    assert head.note.endswith("then (value - -1.5) / 0.25 as `normalize_reward` says")


@pytest.mark.parametrize("config", [{}, {"normalize_reward": False}, {"normalize_reward": None}])
def test_mean_and_std_alone_change_nothing_and_that_is_said(config: dict[str, Any]) -> None:
    module, hidden = linear(1), torch.randn(7, HIDDEN)
    head = ValueHead.of(model(module, mean=-1.5, std=0.25, **config))
    np.testing.assert_allclose(head.values(hidden).detach(), truth(module, hidden), atol=1e-5)
    assert "mean -1.5 and std 0.25 of the checkpoint are not applied" in head.note


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "no `mean` and `std`"),
        ({"mean": 1.0}, "only `mean`"),
        ({"std": 1.0}, "only `std`"),
        ({"mean": 0.0, "std": 0.0}, r"mean 0\.0 and std 0\.0"),
        ({"mean": 0.0, "std": -2.0}, r"std -2\.0"),
        ({"mean": float("nan"), "std": 1.0}, "mean nan"),
        ({"mean": 0.0, "std": float("inf")}, "std inf"),
        ({"mean": "much", "std": 1.0}, "mean 'much'"),
        ({"mean": [0.5], "std": [0.5]}, r"mean \[0\.5\]"),
    ],
    ids=str,
)
def test_an_affine_that_cannot_be_applied_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointRefused, match=message):
        ValueHead.of(model(linear(1), normalize_reward=True, **config))


def test_values_of_a_row_do_not_depend_on_how_many_rows_there_are() -> None:
    head, hidden = ValueHead.of(model(mlp(2))), torch.randn(1030, HIDDEN)
    together = head.values(hidden).detach()
    for at in (0, 1023, 1024, 1029):
        assert abs(head.values(hidden[at : at + 1]).detach()[0] - together[at]) <= 1e-5
