"""A model over several devices gives the numbers of the model on one, to the bit: every layout, the
probe, heads, pairs and adapters. What is left on another device raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fakes import lora, tiny
from fakes.tagged import Mixed, gpus, tagged
from tokenreward.checkpoints.checkpoint import Checkpoint, CheckpointRefused, load_checkpoint
from tokenreward.checkpoints.placement import Placement
from tokenreward.checkpoints.placement.moves import Arrivals
from tokenreward.checkpoints.reference import with_reference
from tokenreward.checkpoints.update import prepare_update
from tokenreward.contract import Model, Needs, Outputs, RowRequest
from tokenreward.forward.flash import Flash, Ragged
from tokenreward.forward.kernels import VarlenKernel
from tokenreward.forward.layout import Layout, differences
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.pair import choose_layouts
from tokenreward.settings import DeploymentSettings

LOGITS = Needs(
    temperatures=frozenset({1.0, 0.7}),
    entropies=frozenset({1.0}),
    labels=frozenset({5, 9}),
    top_k=4,
    attention=frozenset({"last", "mean_step"}),
)
WITHOUT_MAP = replace(LOGITS, attention=frozenset())
VALUES = Needs(values=True, pooled=True, attention=frozenset({"last", "last_step"}))


@pytest.fixture(autouse=True)
def one_thread_and_no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags are a thread's own, and both models must take the same operators."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    monkeypatch.setattr("tokenreward.forward.probe.onednn_gain", lambda model: None)


def load(
    devices: tuple[torch.device, ...] | None, folder: Path | str, task: str, **more: Any
) -> Checkpoint:
    settings = DeploymentSettings(
        name="x", checkpoint=str(folder), task=task, scorers=[{"type": "constant"}], **more
    )
    checkpoint = load_checkpoint(settings, devices)
    if settings.reference is None:
        return checkpoint
    return with_reference(checkpoint, settings, tiny.tokenizer_of(checkpoint))


def requests(needs: Mapping[Model, Needs]) -> list[RowRequest]:
    return [
        RowRequest(replace(row, model=model), of_row)
        for model, wanted in needs.items()
        for row, of_row in tiny.work(wanted)
    ]


def run(checkpoint: Checkpoint, needs: Mapping[Model, Needs]) -> tuple[Layout, list[Outputs]]:
    layout = choose_layouts(checkpoint, needs, say=lambda line: None)
    return layout, layout.run(requests(needs))


def assert_equal(
    num_devices: int, needs: Mapping[Model, Needs], name: str, *arguments: Any, **more: Any
) -> None:
    """Whether the split model has the same layout, numbers and probe figure."""
    whole, expected = run(load(None, *arguments, **more), needs)
    with tagged():
        checkpoint = load(gpus(num_devices), *arguments, **more)
        split, outputs = run(checkpoint, needs)
    assert len(checkpoint.placement.devices) == num_devices
    assert (split.name, whole.name) == (name, name)
    assert set(differences(outputs, expected).values()) == {0.0}
    assert split.gap == whole.gap


@pytest.mark.parametrize("num_devices", [2, 4])
def test_a_language_model_with_a_tied_head(num_devices: int) -> None:
    assert_equal(num_devices, {"policy": LOGITS}, "packed", "demo:sft", "causal_lm")


def test_a_reward_model() -> None:
    assert_equal(2, {"policy": VALUES}, "packed", "demo:rm", "reward_model")


@pytest.mark.parametrize(
    ("architecture", "name", "needs"),
    [
        ("gpt2", "packed", LOGITS),  # its layers are called `h`
        ("gemma4", "packed", LOGITS),  # numbers of each token for each layer, from the embedding
        ("bert", "packed", WITHOUT_MAP),  # a layer between trunk and head
        ("bloom", "padded", LOGITS),
        ("qwen3_next", "padded", WITHOUT_MAP),
        ("mamba", "padded", WITHOUT_MAP),
        ("llama_dynamic", "plain", LOGITS),
    ],
)
def test_other_architectures_and_layouts(
    tmp_path: Path, architecture: str, name: str, needs: Needs
) -> None:
    folder = tiny.save(tmp_path, architecture)
    assert_equal(2, {"policy": needs}, name, folder, "causal_lm")


def test_a_model_in_bfloat16_is_probed_as_a_float32_copy(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path)
    assert_equal(3, {"policy": LOGITS}, "packed", folder, "causal_lm", dtype="bfloat16")


def test_a_pair_of_two_models() -> None:
    needs: dict[Model, Needs] = {"policy": WITHOUT_MAP, "reference": WITHOUT_MAP}
    arguments = "demo:dpo", "causal_lm"
    assert_equal(2, needs, "packed", *arguments, reference_checkpoint="demo:sft")


def test_an_adapter_and_its_base(tmp_path: Path) -> None:
    base, adapter = tiny.save(tmp_path / "base"), lora.save(tmp_path / "adapter")
    needs: dict[Model, Needs] = {"policy": LOGITS, "reference": LOGITS}
    assert_equal(2, needs, "packed", base, "causal_lm", adapter=str(adapter))
    with tagged():
        checkpoint = load(gpus(2), base, "causal_lm", adapter=str(adapter))
        for index, layer in enumerate(checkpoint.trunk.layers):
            devices = {parameter.device for parameter in layer.parameters()}
            assert devices == {checkpoint.placement.of(index)}


def test_weights_that_are_copied_in_place_reach_both_copies_of_a_tied_weight() -> None:
    with tagged():
        served = load(gpus(2), "demo:sft", "causal_lm")
        layout = PackedLayout(served)
        settings = DeploymentSettings(
            name="x", checkpoint="demo:dpo", task="causal_lm", scorers=[{"type": "constant"}]
        )
        update = prepare_update(served, settings)
        update.copy()
        update.close()
        outputs = layout.run(tiny.work(LOGITS))
    expected = PackedLayout(load(None, "demo:dpo", "causal_lm")).run(tiny.work(LOGITS))
    assert set(differences(outputs, expected).values()) == {0.0}


def test_each_tensor_that_all_layers_read_is_copied_once_a_pass(tmp_path: Path) -> None:
    first, last = gpus(2)
    with tagged() as copies:
        checkpoint = load(gpus(2), "demo:sft", "causal_lm")
        layout = PackedLayout(checkpoint)
        layout.run(tiny.work(WITHOUT_MAP))
        copies.clear()
        layout.run(tiny.work(WITHOUT_MAP))
    # The hidden states, cos, sin and the positions, for two layers on the last device.
    assert copies[first, last] == 4


bring = Arrivals.__call__


def nothing(self: Arrivals, module: Any, args: Any, kwargs: Any) -> Any:
    return args, kwargs


def hidden_states(self: Arrivals, module: Any, args: Any, kwargs: Any) -> Any:
    return bring(self, module, args, {})[0], kwargs


def all_else(self: Arrivals, module: Any, args: Any, kwargs: Any) -> Any:
    return args, bring(self, module, (), kwargs)[1]


@pytest.mark.parametrize("brought", [nothing, hidden_states, all_else])
def test_a_tensor_that_a_layer_is_not_brought_raises(
    monkeypatch: pytest.MonkeyPatch, brought: Callable[..., Any]
) -> None:
    monkeypatch.setattr(Arrivals, "__call__", brought)
    with tagged(), pytest.raises(CheckpointRefused, match="cannot be split over 2 GPUs: Mixed"):
        load(gpus(2), "demo:sft", "causal_lm")


@pytest.mark.parametrize(
    ("folder", "task", "needs"),
    [("demo:sft", "causal_lm", WITHOUT_MAP), ("demo:rm", "reward_model", VALUES)],
)
def test_places_on_the_first_device_raise(folder: str, task: str, needs: Needs) -> None:
    with tagged():
        checkpoint = load(gpus(2), folder, task)
        layout = PackedLayout(replace(checkpoint, placement=Placement(gpus(1))))
        layout.prune_last_layer(True)
        with pytest.raises(Mixed):
            layout.run(tiny.work(needs))


def test_a_head_that_stays_with_the_embedding_raises() -> None:
    with tagged():
        checkpoint = load(gpus(2), "demo:sft", "causal_lm")
        head = checkpoint.model.get_output_embeddings()
        head.weight = checkpoint.model.get_input_embeddings().weight
        with pytest.raises(Mixed):
            PackedLayout(checkpoint).run(tiny.work(WITHOUT_MAP))


class Inspected(Flash):
    """A kernel that computes nothing and notes where its arguments are."""

    def __init__(self, varlen: Callable[..., Any]) -> None:
        self.devices: set[torch.device] = set()

    def __call__(
        self, qkv: Sequence[Tensor], queries: Ragged, keys: Ragged, **more: Any
    ) -> tuple[Tensor, Tensor]:
        places = [part.tokens for part in (queries, keys) if isinstance(part.tokens, Tensor)]
        self.devices |= {each.device for each in (*qkv, queries.bounds, keys.bounds, *places)}
        return torch.zeros_like(qkv[0]), torch.zeros_like(qkv[0][..., 0], dtype=torch.float32)


@pytest.mark.parametrize("window", [None, 8])
def test_the_varlen_kernel_makes_what_a_call_needs_on_each_device(window: int | None) -> None:
    flash = Inspected(lambda: None)
    kernel = VarlenKernel(flash, windows=True)
    groups = (((0, 9),), ((9, 30), (30, 31), (31, 44)))
    with tagged():
        for device in (*gpus(2), *gpus(2)):
            q, k, v = (torch.zeros(1, 2, 44, 8).to(device) for _ in range(3))
            out = torch.zeros(44, 2, 8).to(device)
            kernel((q, k, v), groups, 0.3, out, window=window)
            assert flash.devices == {device}
            flash.devices.clear()
