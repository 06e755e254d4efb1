"""Layers over several devices: where the list is cut, what is refused, and how weights
get there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from fakes import tiny
from fakes.tagged import HOST, gpus, tagged
from tokenreward.checkpoints.checkpoint import CheckpointRefused, load_checkpoint
from tokenreward.checkpoints.placement import Placement, choose_devices
from tokenreward.checkpoints.placement.moves import to_other
from tokenreward.checkpoints.placement.split import HEAD_WEIGHT, cut
from tokenreward.checkpoints.placement.stages import find_layers
from tokenreward.settings import DeploymentSettings


@pytest.fixture(autouse=True)
def weights_are_read_by_this_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags are a thread's own."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")


def settings(folder: Path | str, task: str = "causal_lm", **more: Any) -> DeploymentSettings:
    return DeploymentSettings(
        name="x", checkpoint=str(folder), task=task, scorers=[{"type": "constant"}], **more
    )


def times(starts: tuple[int, ...], sizes: list[int], head: int) -> list[float]:
    stops = [*starts[1:], len(sizes)]
    parts = [float(sum(sizes[a:b])) for a, b in zip(starts, stops, strict=True)]
    return [*parts[:-1], parts[-1] + HEAD_WEIGHT * head]


def cuts(num_layers: int, num_devices: int) -> Iterator[tuple[int, ...]]:
    for inner in itertools.combinations(range(1, num_layers), num_devices - 1):
        yield (0, *inner)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cut_has_a_faster_slowest_part(seed: int) -> None:
    generator = np.random.default_rng(seed)
    num_layers, num_devices = int(generator.integers(4, 10)), int(generator.integers(1, 5))
    sizes, head = generator.integers(1, 9, size=num_layers).tolist(), int(generator.integers(9))
    room = float(generator.integers(sum(sizes) // num_devices, sum(sizes) + 9))
    fixed = [3, *([0] * (num_devices - 2)), head][:num_devices]
    starts = cut(sizes, sizes, head=head, fixed_bytes=fixed, rooms=[room] * num_devices)

    def fits(starts: tuple[int, ...]) -> bool:
        stops = [*starts[1:], num_layers]
        parts = zip(starts, stops, fixed, strict=True)
        return all(sum(sizes[a:b]) + more <= room for a, b, more in parts)

    fitting = [each for each in cuts(num_layers, num_devices) if fits(each)]
    if not fitting:
        assert starts is None
        return
    assert starts in fitting
    assert max(times(starts, sizes, head)) == min(max(times(e, sizes, head)) for e in fitting)


def test_a_large_head_counts_as_layers_of_the_last_device() -> None:
    """80 layers of a model of 70B, whose head counts as one and a half of them."""
    layer, head = 855_650_304, 128_256 * 8192
    starts = cut([layer] * 80, [layer] * 80, head=head, fixed_bytes=[0] * 4, rooms=[math.inf] * 4)
    assert starts is not None
    assert 80 - starts[-1] == 19
    assert max(times(starts, [layer] * 80, head)) == 21 * layer


def test_fewer_layers_than_devices_cannot_be_cut() -> None:
    assert cut([1], [1], fixed_bytes=[0, 0], rooms=[math.inf] * 2) is None


def test_a_placement_says_where_each_layer_is_and_how_far_it_runs_ahead() -> None:
    of_gpus = Placement(tuple(torch.device("cuda", index) for index in range(3)), (0, 2, 5))
    assert [of_gpus.devices.index(of_gpus.of(layer)) for layer in range(7)] == [0, 0, 1, 1, 1, 2, 2]
    assert (of_gpus.first, of_gpus.last) == (torch.device("cuda", 0), torch.device("cuda", 2))
    assert (of_gpus.is_split, of_gpus.num_ahead) == (True, 3)
    assert of_gpus.note == "layers from 0 on cuda:0, from 2 on cuda:1, from 5 on cuda:2"
    assert (Placement().is_split, Placement().num_ahead) == (False, 0)
    assert Placement((torch.device("cuda", 0),)).num_ahead == 1


@pytest.mark.parametrize(
    ("device", "num_gpus", "num_visible", "names"),
    [
        ("auto", 2, 3, ["cuda:0", "cuda:1"]),
        ("auto", 0.5, 2, ["cuda:0"]),
        ("cuda", 0, 1, ["cuda:0"]),
        ("auto", 0, 2, ["cpu"]),
        ("cpu", 2, 2, ["cpu"]),
        ("auto", 2, 0, ["cpu"]),
    ],
)
def test_a_deployment_takes_the_gpus_that_it_reserves(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    num_gpus: float,
    num_visible: int,
    names: list[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_visible > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_visible)
    chosen = choose_devices(settings("x", device=device, num_gpus=num_gpus))
    assert list(map(str, chosen)) == names


def test_fewer_gpus_than_reserved_are_refused_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(CheckpointRefused, match=r"wants 4 GPUs \(`num_gpus`\), and torch sees 1"):
        choose_devices(settings("x", num_gpus=4))


@pytest.mark.parametrize(
    ("architecture", "task", "num_devices", "cause"),
    [
        ("llama", "causal_lm", 4, "it has 3 layers for 4 GPUs: set `num_gpus: 3`"),
        ("bert", "reward_model", 2, "BertForSequenceClassification scores whole rows"),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(
    tmp_path: Path, architecture: str, task: str, num_devices: int, cause: str
) -> None:
    folder = tiny.save(tmp_path, architecture, task)
    with tagged(), pytest.raises(CheckpointRefused, match=cause):
        load_checkpoint(settings(folder, task), gpus(num_devices))


def test_a_model_without_one_list_of_layers_is_refused_by_name() -> None:
    model = tiny.model("llama")
    layers = list(model.model.layers)
    del model.model.layers
    model.model.lower, model.model.upper = torch.nn.ModuleList(layers), torch.nn.ModuleList(layers)
    with pytest.raises(CheckpointRefused, match="LlamaForCausalLM has no list of layers"):
        find_layers(model)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "opt"])
def test_layers_are_found_whatever_their_name(architecture: str) -> None:
    assert len(find_layers(tiny.model(architecture))) == 3


def test_the_layers_of_a_language_model_beside_a_tower_of_as_many_layers_are_found() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text = LlamaConfig(vocab_size=320, num_attention_heads=4, **sizes)
    vision = CLIPVisionConfig(num_attention_heads=4, image_size=28, patch_size=14, **sizes)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=3)
    model: Any = LlavaForConditionalGeneration(config)
    assert find_layers(model) is model.model.language_model.layers


def test_weights_that_do_not_fit_are_refused_with_both_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tokenreward.checkpoints.placement.stages.room_for_weights", lambda device: 2.0**10
    )
    with tagged(), pytest.raises(CheckpointRefused, match=r"take 0\.0 GiB, and 2 GPUs have room"):
        load_checkpoint(settings(tiny.save(tmp_path)), gpus(2))


def test_each_weight_goes_straight_to_its_device_and_no_device_has_all(tmp_path: Path) -> None:
    folder, (first, last) = tiny.save(tmp_path), gpus(2)
    own = vars(PreTrainedModel)["_load_pretrained_model"]
    with tagged() as copies:
        checkpoint = load_checkpoint(settings(folder, dtype="bfloat16"), gpus(2))
        devices = {name: each.device for name, each in checkpoint.model.named_parameters()}
    assert vars(PreTrainedModel)["_load_pretrained_model"] is own
    assert checkpoint.placement == Placement((first, last), (0, 2))
    on_last = {name for name, device in devices.items() if device == last}
    assert on_last == {
        name for name in devices if name.startswith(("model.layers.2.", "model.norm.", "lm_head."))
    }
    assert set(devices.values()) == {first, last}
    # Only the last norm was elsewhere before: what runs behind the last layer is observed.
    num_weights = len(on_last) - 1
    assert num_weights <= copies[HOST, last] <= num_weights + 1


def test_a_tied_head_gets_its_own_copy_of_the_embedding(tmp_path: Path) -> None:
    first, last = gpus(2)
    with tagged():
        model = load_checkpoint(settings("demo:sft"), gpus(2)).model
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        assert (embedding.device, head.device) == (first, last)
        assert head is not embedding
        assert torch.equal(embedding.cpu(), head.cpu())
    whole = load_checkpoint(settings("demo:sft")).model
    assert whole.get_input_embeddings().weight is whole.get_output_embeddings().weight


def test_a_copy_between_gpus_waits_for_its_tensor_alone_and_holds_up_no_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The calls of streams, in their order: there are no GPUs to run them on."""
    source, target = torch.device("cuda", 6), torch.device("cuda", 7)
    diary = Mock()
    currents = {source: diary.current_6, target: diary.current_7}
    sides = {source: diary.side_6, target: diary.side_7}
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: currents[device])
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: sides[device])

    @contextmanager
    def within(stream: Any) -> Iterator[None]:
        stream.enter()
        yield
        stream.leave()

    monkeypatch.setattr(torch.cuda, "stream", within)
    tensor, copy = Mock(spec=Tensor, device=source), Mock(spec=Tensor)
    diary.attach_mock(tensor, "tensor")
    diary.attach_mock(copy, "copy")
    tensor.to.return_value = copy
    assert to_other(tensor, target) is copy
    assert diary.mock_calls == [
        call.side_6.wait_stream(diary.current_6),
        call.side_6.enter(),
        call.side_7.enter(),
        call.tensor.to(target, non_blocking=True),
        call.side_7.leave(),
        call.side_6.leave(),
        call.current_7.wait_stream(diary.side_7),
        call.tensor.record_stream(diary.side_6),
        call.copy.record_stream(diary.current_7),
    ]


def test_a_model_on_one_device_has_no_hooks(tmp_path: Path) -> None:
    model = load_checkpoint(settings(tiny.save(tmp_path))).model
    for module in model.modules():
        state = vars(module)
        assert not state["_forward_pre_hooks"] and not state["_forward_hooks"]
