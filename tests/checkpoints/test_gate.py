"""A gate that weighs the labels of a head by the prompt: every layout against float64, from the
formula, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaModel

from fakes import oracle, tiny, trained
from fakes.tagged import gpus, tagged
from tokenreward.checkpoints.checkpoint import Checkpoint, CheckpointRefused, load_checkpoint
from tokenreward.checkpoints.update import prepare_update
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.engine import Engine
from tokenreward.errors import UnsupportedText
from tokenreward.forward.layout import differences
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.padded import PaddedLayout
from tokenreward.forward.plain import PlainLayout
from tokenreward.settings import DeploymentSettings
from tokenreward.wire import RewardsRequest, parse

LABELS, HIDDEN, WIDTH = 5, 32, 24
END = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
MARKS = ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
HEAD = {"type": "reward_model"}


def tensor(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator) * 2 / shape[-1] ** 0.5


def trunk() -> Any:
    config = LlamaConfig(
        vocab_size=tiny.VOCAB_SIZE + 8,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=tiny.BOS_ID,
        eos_token_id=tiny.END_ID,
        pad_token_id=tiny.PAD_ID,
    )
    torch.manual_seed(0)
    model = LlamaModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(12.0)
    return model


GATE = {
    "gating.layers.0.weight": tensor(WIDTH, HIDDEN),
    "gating.layers.0.bias": tensor(WIDTH),
    "gating.layers.1.weight": tensor(WIDTH, WIDTH + 0),
    "gating.layers.1.bias": tensor(WIDTH),
    "gating.layers.2.weight": tensor(LABELS, WIDTH) * 20,
    "gating.layers.2.bias": tensor(LABELS),
    "gating.logit_scale": torch.tensor([1.5]),
    "reward_transform_matrix": torch.eye(LABELS) - torch.eye(LABELS).roll(3, 1) * 0.4,
    "regression_layer.weight": tensor(LABELS, HIDDEN),
}


def write(folder: Path, marks: list[str] = MARKS, **config: Any) -> Path:
    """A folder as ArmoRM's, without its code."""
    model, fast = trunk(), tiny.tokenizer.__wrapped__()
    model.config.save_pretrained(folder)
    file = folder / "config.json"
    own = {"architectures": ["LlamaForRewardModelWithGating"], "num_objectives": LABELS}
    file.write_text(json.dumps(json.loads(file.read_text()) | own | config))
    fast.add_special_tokens({"additional_special_tokens": marks})
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    state = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    save_file(state | GATE, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gated"))


def settings(folder: Path, **fields: Any) -> DeploymentSettings:
    return DeploymentSettings(
        name="x", checkpoint=str(folder), task="reward_model", scorers=[HEAD], **fields
    )


def ids_of(checkpoint: Checkpoint, question: str, answer: str) -> tuple[np.ndarray, int]:
    """A conversation, and where its response begins."""
    parts = [
        checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (question + END, answer)
    ]
    return np.concatenate(parts), len(parts[0])


def truth(ids: np.ndarray, place: int, temperature: float = 10.0) -> np.ndarray:
    """The value at every token, in float64: sum_j g_j (r M)_j, g by the state at the place."""
    exact = {name: weight.double().numpy() for name, weight in GATE.items()}
    with torch.no_grad():
        model = oracle.double(trunk())
        states = model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()
    x = states[place]
    for number in range(3):
        x = exact[f"gating.layers.{number}.weight"] @ x + exact[f"gating.layers.{number}.bias"]
        x = np.maximum(x, 0) if number < 2 else x
    gates = 1.5 * np.exp(x / temperature) / np.exp(x / temperature).sum()
    labels = states @ exact["regression_layer.weight"].T
    return np.asarray((labels @ exact["reward_transform_matrix"]) @ gates)


@pytest.mark.parametrize("layout", [PlainLayout, PackedLayout, PaddedLayout])
@pytest.mark.parametrize("temperature", [None, 2.5])
def test_values_are_the_labels_weighed_by_the_state_that_ends_the_prompts_last_turn(
    folder: Path, tmp_path: Path, layout: Any, temperature: float | None
) -> None:
    if temperature is not None:
        folder = write(tmp_path, gating_temperature=temperature)
    checkpoint = load_checkpoint(settings(folder))
    turns = [("Hi.", "It is 4."), ("Hi." + END + "No doubt.", "It is 4."), ("Hi.", "Yes")]
    rows, truths = [], []
    for number, (question, answer) in enumerate(turns):
        ids, start = ids_of(checkpoint, question, answer)
        needs = Needs(values=number != 2, pooled=True)
        rows.append(RowRequest(Row(ids, start, len(ids)), needs))
        end = len(checkpoint.tokenizer(END, add_special_tokens=False)["input_ids"])
        truths.append(truth(ids, start - end, temperature or 10.0))
    for (row, needs), own, outputs in zip(rows, truths, layout(checkpoint).run(rows), strict=True):
        assert outputs.pooled == pytest.approx(own[-1], abs=1e-4)
        if needs.values:
            np.testing.assert_allclose(outputs.values, own[row.start - 1 :], atol=1e-4)
        assert list(outputs.scores) == [f"LABEL_{label}" for label in range(LABELS)]
    assert abs(truths[0][-1] - truths[1][-1]) > 0.01


def test_only_pooled_values_are_the_same_where_the_last_layer_is_computed_for_few_tokens(
    folder: Path,
) -> None:
    checkpoint = load_checkpoint(settings(folder))
    ids, start = ids_of(checkpoint, "Hi.", "It is 4.")
    layout = PackedLayout(checkpoint)
    assert layout.prune_last_layer(True)
    requests = [RowRequest(Row(ids, start, len(ids)), Needs(pooled=True))] * 2
    places = np.flatnonzero(ids == checkpoint.tokenizer.convert_tokens_to_ids("<|eot_id|>"))
    for outputs in layout.run(requests):
        assert outputs.pooled == pytest.approx(truth(ids, int(places[-1]))[-1], abs=1e-4)


async def test_messages_are_scored_and_a_prompt_that_ends_in_another_way_is_an_error(
    folder: Path,
) -> None:
    lines: list[str] = []
    engine = Engine.load(settings(folder), say=lines.append)
    messages = {"prompt": [{"role": "user", "content": "Hi."}], "response": "It is 4."}
    items = [messages, {"prompt": "Hi.", "response": "It is 4."}]
    try:
        request = parse(RewardsRequest, {"items": items, "scorer": "reward_model"})
        good, bad = (await engine.score(request)).items
    finally:
        await engine.close()
    assert any("weighed by a gate at the prompt's end" in line for line in lines)
    tokenizer = engine.checkpoint.tokenizer
    text = tokenizer.apply_chat_template(
        messages["prompt"], tokenize=False, add_generation_prompt=True
    )
    ids = np.asarray(tokenizer(text + "It is 4.<|eot_id|>", add_special_tokens=False)["input_ids"])
    place = int(np.flatnonzero(ids == tokenizer.convert_tokens_to_ids("<|eot_id|>"))[-2])
    assert good.score is not None
    finished = np.isclose(
        good.score, [truth(ids, place)[-1], truth(ids[:-1], place)[-1]], atol=2e-5
    )
    assert finished.any()
    assert bad.error is not None
    assert bad.error.code == "unsupported_text"
    assert "send the prompt as messages" in bad.error.message


@pytest.mark.parametrize("layout", [PlainLayout, PackedLayout])
def test_over_two_devices_the_head_and_the_gate_are_on_the_last_and_values_are_the_same(
    folder: Path, layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # tags are a thread's own
    whole = load_checkpoint(settings(folder))
    ids, start = ids_of(whole, "What?", "Yes, 2+2 = 4.")
    request = RowRequest(Row(ids, start, len(ids)), Needs(values=True, pooled=True))
    with tagged():
        split = load_checkpoint(settings(folder), gpus(2))
        outputs = layout(split).run([request])
        gate = split.value_head.gate
        assert gate is not None
        # The buffer and what the gate reads are one tensor, whose numbers may be updated.
        assert gate.transform is split.model.label_transform
        assert split.value_head.layers[0].weight.device == split.placement.last
        layers = [next(layer.parameters()).device for layer in split.trunk.layers]
        assert layers == list(gpus(2))
    assert differences(outputs, layout(whole).run([request])) == {"values": 0.0}


def test_a_response_that_writes_the_end_of_a_prompt_is_refused(folder: Path) -> None:
    checkpoint = load_checkpoint(settings(folder))
    ids, start = ids_of(checkpoint, "Hi.", "Yes" + END + "No")
    request = RowRequest(Row(ids, start, len(ids)), Needs(values=True))
    for layout in (PlainLayout, PackedLayout):
        with pytest.raises(UnsupportedText, match="the response writes"):
            layout(checkpoint).run([request])


def test_a_gate_that_lacks_a_part_or_whose_prompts_end_is_unknown_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointRefused, match=r"not in its tokenizer: `head: {label: ...}`"):
        load_checkpoint(settings(write(tmp_path / "marks", marks=[])))
    for absent, message in (
        ("reward_transform_matrix", "gate that weighs its labels lacks reward_transform_matrix"),
        ("gating.layers.2.weight", r"its gate|no MLP|weight"),
    ):
        broken = write(tmp_path / absent)
        tensors = load_file(broken / "model.safetensors")
        del tensors[absent]
        save_file(tensors, broken / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointRefused, match=message):
            load_checkpoint(settings(broken))


def test_a_label_of_the_operators_choice_is_served_without_the_gate(folder: Path) -> None:
    checkpoint = load_checkpoint(settings(folder, head={"label": 2}))
    assert checkpoint.value_head.gate is None


def test_further_training_of_a_gate_is_taken_in_place(folder: Path, tmp_path: Path) -> None:
    new = trained.further(folder, tmp_path / "new")
    served, fresh = load_checkpoint(settings(folder)), load_checkpoint(settings(new))
    layout = PackedLayout(served)
    ids, start = ids_of(served, "What is it?", "It is 4.")
    request = RowRequest(Row(ids, start, len(ids)), Needs(values=True))
    (before,) = layout.run([request])
    update = prepare_update(served, settings(new))
    update.copy()
    update.close()
    (after,), (truth_of_fresh,) = layout.run([request]), PackedLayout(fresh).run([request])
    assert not np.array_equal(after.values, before.values)
    np.testing.assert_array_equal(after.values, truth_of_fresh.values)
