"""Loading: what is refused, and what the refusal says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTJConfig, Llama4TextConfig

from fakes import tiny
from tokenreward.checkpoints.checkpoint import (
    CheckpointRefused,
    load_checkpoint,
    refuse_longer,
)
from tokenreward.checkpoints.heads.value_head import ValueHead
from tokenreward.checkpoints.weight_files import resolve
from tokenreward.settings import DeploymentSettings, SettingsError


def settings(folder: Path | str, task: str = "causal_lm", **more: object) -> DeploymentSettings:
    return DeploymentSettings(
        name="x",
        checkpoint=str(folder),
        task=task,
        scorers=[{"type": "constant"}],
        **more,  # type: ignore[arg-type]
    )


def test_a_saved_model_loads_in_eval_mode_with_its_tokenizer(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(settings(tiny.save(tmp_path)))
    assert not checkpoint.model.training
    assert checkpoint.vocab_size == tiny.VOCAB_SIZE
    assert checkpoint.max_positions == 512
    assert checkpoint.tokenizer.eos_token_id == tiny.END_ID


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("kernel", ["flash_attention_2", "someone/kernel"])
@pytest.mark.parametrize("task", ["causal_lm", "reward_model"])
def test_the_kernel_of_attention_that_a_model_was_trained_with_is_not_needed(
    tmp_path: Path, task: str, kernel: str, field: str
) -> None:
    path = tiny.save(tmp_path, task=task) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: kernel}))
    assert load_checkpoint(settings(tmp_path, task)).model is not None


@pytest.mark.parametrize(
    ("architecture", "size"), [("gpt2", 8), ("qwen3", 8), ("deepseek_v3", 12), ("gemma4", 16)]
)
def test_the_size_of_a_head_is_that_of_the_largest(architecture: str, size: int) -> None:
    assert tiny.checkpoint(tiny.model(architecture)).head_dim == size


@pytest.mark.parametrize(
    ("architecture", "limit"),
    [("gpt2", 512), ("opt", 512), ("llama", None), ("phi", None), ("bloom", None)],
)
def test_a_sequence_may_not_be_longer_than_a_table_of_positions(
    architecture: str, limit: int | None
) -> None:
    checkpoint = tiny.checkpoint(tiny.model(architecture))
    assert checkpoint.num_tabled_positions == limit
    refuse_longer(checkpoint, settings("x"))
    refuse_longer(checkpoint, settings("x", max_sequence_tokens=512))
    if limit is None:
        refuse_longer(checkpoint, settings("x", max_sequence_tokens=513))
        return
    for of in (checkpoint, replace(tiny.checkpoint(tiny.model("llama")), reference=checkpoint)):
        with pytest.raises(
            SettingsError, match=r"`x`: `max_sequence_tokens` is 513, the model has 512 positions"
        ):
            refuse_longer(of, settings("x", max_sequence_tokens=513))


def test_a_reference_of_fewer_positions_hides_no_table() -> None:
    short = tiny.checkpoint(tiny.model("llama_dynamic"))
    policy = replace(tiny.checkpoint(tiny.model("gpt2")), reference=short)
    assert (policy.max_positions, short.max_positions) == (32, 32)
    assert policy.num_tabled_positions == 512


def test_a_table_of_positions_may_be_computed() -> None:
    config = GPTJConfig(vocab_size=50, n_positions=40, n_embd=16, n_layer=1, n_head=2, rotary_dim=4)
    checkpoint = tiny.checkpoint(AutoModelForCausalLM.from_config(config))
    assert checkpoint.num_tabled_positions == 40


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_the_operators(tmp_path: Path, dtype: str) -> None:
    checkpoint = load_checkpoint(settings(tiny.save(tmp_path), dtype=dtype))
    assert checkpoint.model.dtype == getattr(torch, dtype)


def test_a_language_model_served_as_reward_model_is_refused_because_its_head_would_be_random(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        CheckpointRefused, match=r"holds no value head: .* random\. .* lm_head\.weight"
    ):
        load_checkpoint(settings(tiny.save(tmp_path), "reward_model"))


def test_a_reward_model_whose_head_is_missing_is_refused(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, task="reward_model")
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointRefused, match=r"holds no value head.*known heads are score"):
        load_checkpoint(settings(folder, "reward_model"))


def test_a_reward_model_with_three_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match=r"3 labels \(0 LABEL_0, .*`head: {label: ...}`"):
        load_checkpoint(
            settings(tiny.save(tmp_path, task="reward_model", num_labels=3), "reward_model")
        )


def test_an_encoder_is_a_classifier_and_one_with_tensors_that_nothing_would_read_is_refused(
    tmp_path: Path,
) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    assert load_checkpoint(settings(tmp_path, "reward_model")).is_classifier
    weights = load_file(tmp_path / "model.safetensors")
    weights["head.dense.bias"] = torch.ones(32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointRefused, match=r"head\.dense\.bias.* nothing would read"):
        load_checkpoint(settings(tmp_path, "reward_model"))


def test_a_value_head_is_built_once_when_the_checkpoint_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, build = [], ValueHead.of
    monkeypatch.setattr(ValueHead, "of", lambda model, _: built.append(model) or build(model))
    checkpoint = load_checkpoint(settings(tiny.save(tmp_path, task="reward_model"), "reward_model"))
    assert checkpoint.value_head is checkpoint.value_head
    assert built == [checkpoint.model]


def test_pickled_weights_are_loaded_only_if_the_operator_says_so(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointRefused, match="cannot be loaded"):
        load_checkpoint(settings(folder))
    assert load_checkpoint(settings(folder, allow_pickle=True)).vocab_size == tiny.VOCAB_SIZE


def test_a_folder_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="nowhere"):
        load_checkpoint(settings(tmp_path / "nowhere"))


def test_an_unknown_demo_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CheckpointRefused, match="no embedded model `none`; there are"):
        resolve("demo:none")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_cuda_without_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="`cuda`"):
        load_checkpoint(settings(tiny.save(tmp_path), device="cuda"))


def test_weights_that_are_no_safetensors_or_of_another_shape_are_refused_by_name(
    tmp_path: Path,
) -> None:
    folder = tiny.save(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointRefused, match=r"another shape model\.norm\.weight"):
        load_checkpoint(settings(folder))
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointRefused, match="cannot be loaded"):
        load_checkpoint(settings(folder))


def test_the_trunk_is_found_where_a_class_does_not_say_which_part_it_is() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8}
    experts = {"num_local_experts": 2, "intermediate_size_mlp": 48}
    config = Llama4TextConfig(vocab_size=50, num_attention_heads=4, **sizes, **experts)
    model = AutoModelForCausalLM.from_config(config)
    assert tiny.checkpoint(model).trunk is model.model
    assert tiny.checkpoint(model.model, "reward_model").trunk is model.model
