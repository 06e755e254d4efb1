"""Wrappers of language models, and quantised weights: their numbers are those of the model's own
forward, on text alone and on the weights that the file stands for."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor

from fakes import tiny
from tokenreward.checkpoints.checkpoint import CheckpointRefused, load_checkpoint
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.engine import Engine
from tokenreward.forward.plain import PlainLayout
from tokenreward.settings import DeploymentSettings

TEXT = {
    "vocab_size": tiny.VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": tiny.BOS_ID,
    "eos_token_id": tiny.END_ID,
    "pad_token_id": tiny.PAD_ID,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
PATCHES = {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
QWEN_VISION = {**VISION, "depth": 1, "num_heads": 4, "out_hidden_size": 32}


def qwen2_5_vl() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    return tf.Qwen2_5_VLForConditionalGeneration(
        tf.Qwen2_5_VLConfig(
            text_config={**TEXT, "rope_parameters": rope},
            vision_config=QWEN_VISION,
            image_token_id=3,
            video_token_id=4,
        )
    )


def llava() -> Any:
    text, vision = tf.LlamaConfig(**TEXT), tf.CLIPVisionConfig(**VISION, **PATCHES)
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=3)
    )


def gemma4() -> Any:
    sizes = {"head_dim": 8, "global_head_dim": 16, "sliding_window": 16}
    per_layer = {"vocab_size_per_layer_input": tiny.VOCAB_SIZE, "hidden_size_per_layer_input": 8}
    audio = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    return tf.Gemma4ForConditionalGeneration(
        tf.Gemma4Config(
            text_config={**TEXT, **sizes, **per_layer, "num_kv_shared_layers": 0},
            vision_config={**VISION, "num_hidden_layers": 1, "head_dim": 8},
            audio_config={**audio, "output_proj_dims": 32},
            image_token_id=300,
            audio_token_id=301,
            video_token_id=302,
        )
    )


WRAPPERS: dict[str, Callable[[], Any]] = {
    "qwen2_5_vl": qwen2_5_vl,
    "llava": llava,
    "gemma4": gemma4,
}


def loud(model: Any) -> Any:
    """The model with weights that are large enough for every part to matter."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval().requires_grad_(False)


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    copy.deepcopy(tiny.tokenizer()).save_pretrained(folder)
    return folder


def settings(folder: Path, task: str, scorer: str, **fields: Any) -> DeploymentSettings:
    return DeploymentSettings(
        name="x", checkpoint=str(folder), task=task, scorers=[{"type": scorer}], **fields
    )


def log_probs(model: Any, ids: np.ndarray) -> np.ndarray:
    """log pi of every token but the first, in float64, by the model's own eager forward."""
    exact = copy.deepcopy(model).double()
    if exact.config.model_type == "gpt_oss":
        exact.set_experts_implementation("eager")  # the fast ones know no float64
    logits = exact(input_ids=torch.from_numpy(ids)[None]).logits[0]
    each = logits.log_softmax(-1)[:-1].gather(1, torch.from_numpy(ids)[1:, None])
    return np.asarray(each[:, 0].numpy())


def served_log_probs(layout: Any, ids: np.ndarray) -> np.ndarray:
    request = RowRequest(Row(ids, 1, len(ids)), Needs(frozenset({1.0})))
    (outputs,) = layout.run([request])
    return np.asarray(outputs.chosen - outputs.lse[1.0][: len(ids) - 1])


def random_ids() -> np.ndarray:
    return np.random.default_rng(1).integers(8, 290, size=33)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_reads_text_as_its_own_forward_does_and_holds_no_other_towers(
    tmp_path: Path, wrapper: str
) -> None:
    model, ids = loud(WRAPPERS[wrapper]()), random_ids()
    engine = Engine.load(settings(save(model, tmp_path), "causal_lm", "endogenous"))
    ours, truth = served_log_probs(engine.runner.layout, ids), log_probs(model, ids)
    assert np.abs(ours - truth).max() <= 1e-5 * max(1.0, np.abs(truth).max())
    towers = {"visual", "vision_tower", "audio_tower"}
    names = [name for name, _ in engine.checkpoint.model.named_parameters()]
    assert not any(towers.intersection(name.split(".")) for name in names)
    assert any("vision" in name or "visual" in name for name, _ in model.named_parameters())


def test_a_value_head_beside_a_wrapper_reads_its_last_states(tmp_path: Path) -> None:
    model, ids = loud(qwen2_5_vl()), random_ids()
    head = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.ones(1)}
    save_file(head, save(model, tmp_path) / "value_head.safetensors")
    checkpoint = load_checkpoint(settings(tmp_path, "reward_model", "reward_model"))
    (outputs,) = PlainLayout(checkpoint).run([RowRequest(Row(ids, 1, 33), Needs(values=True))])
    states = model.double().model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0]
    weight, bias = head["v_head.summary.weight"].double(), head["v_head.summary.bias"].double()
    truth = (states @ weight.T + bias)[:, 0].numpy()
    assert outputs.values is not None
    assert np.abs(outputs.values - truth).max() <= 1e-5 * max(1.0, np.abs(truth).max())


def rewrite(folder: Path, tensors: dict[str, Tensor], **config: Any) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight in float8 with one scale, and the scale [1, 1]."""
    scale = (weight.abs().amax() / 448).reshape(1, 1).bfloat16()
    return (weight / scale.float()).to(torch.float8_e4m3fn), scale


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


@pytest.fixture(scope="module")
def in_fp8(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint with float8 weights, whose other weights are bfloat16 as published ones' are;
    and the model of the weights that it stands for."""
    folder = tiny.save(tmp_path_factory.mktemp("fp8"), "qwen3")
    quantised, exact = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            quantised[name] = weight.bfloat16()
            exact[name] = quantised[name].float()
            continue
        quantised[name], scale = to_fp8(weight)
        quantised[name.removesuffix("weight") + "weight_scale_inv"] = scale
        exact[name] = quantised[name].float() * scale.float()
    rewrite(folder, quantised, quantization_config={**FP8, "modules_to_not_convert": ["lm_head"]})
    model = tiny.model("qwen3")
    model.load_state_dict(exact, strict=False)
    return folder, model


def test_float8_weights_are_exact_in_float32(in_fp8: tuple[Path, Any]) -> None:
    (folder, model), ids = in_fp8, random_ids()
    engine = Engine.load(settings(folder, "causal_lm", "endogenous"))
    ours, truth = served_log_probs(engine.runner.layout, ids), log_probs(model, ids)
    assert np.abs(ours - truth).max() <= 1e-5 * max(1.0, np.abs(truth).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_weights_beside_float8_ones_have_the_operators_dtype(
    in_fp8: tuple[Path, Any], dtype: str
) -> None:
    checkpoint = load_checkpoint(settings(in_fp8[0], "causal_lm", "constant", dtype=dtype))
    dtypes = {parameter.dtype for parameter in checkpoint.model.parameters()}
    assert dtypes == {getattr(torch, dtype)}


def test_float8_weights_in_bfloat16_are_the_rounded_ones_and_no_farther_off_than_their_own_forward(
    in_fp8: tuple[Path, Any],
) -> None:
    (folder, model), ids = in_fp8, random_ids()
    truth = log_probs(copy.deepcopy(model).double(), ids)
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    engine = Engine.load(settings(folder, "causal_lm", "endogenous", dtype="bfloat16"))
    weights = engine.checkpoint.model.state_dict()
    for name, weight in rounded.state_dict().items():
        assert torch.equal(weights[name], weight), name
    with torch.no_grad():
        logits = rounded(input_ids=torch.from_numpy(ids)[None]).logits[0].double()
    own = logits.log_softmax(-1)[:-1].gather(1, torch.from_numpy(ids)[1:, None])[:, 0].numpy()
    ours = served_log_probs(engine.runner.layout, ids)
    assert np.abs(ours - truth).max() <= 2 * np.abs(own - truth).max()


def test_float8_weights_whose_scales_transformers_does_not_read_are_refused(
    in_fp8: tuple[Path, Any], tmp_path: Path
) -> None:
    """Other programs write the same `quant_method`, and scales under another name."""
    folder = shutil.copytree(in_fp8[0], tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("_scale_inv", "_scale"): tensor for name, tensor in tensors.items()}
    method = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
    rewrite(folder, renamed, quantization_config=method)
    with pytest.raises(CheckpointRefused, match=r"quantised \(.*weight_scale.*transformers reads"):
        load_checkpoint(settings(folder, "causal_lm", "constant"))


def test_scales_of_activations_are_not_needed_where_weights_are_read_as_numbers(
    in_fp8: tuple[Path, Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(in_fp8[0], tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.input_scale"
    rewrite(folder, {**tensors, name: torch.ones(())})
    weights = load_checkpoint(settings(in_fp8[0], "causal_lm", "constant")).model.state_dict()
    model = load_checkpoint(settings(folder, "causal_lm", "constant")).model
    assert name in model.unread_tensors
    for parameter, weight in model.state_dict().items():
        assert torch.equal(weight, weights[parameter]), parameter


def test_mxfp4_experts_are_exact_in_float32(tmp_path: Path) -> None:
    """Blocks of 32 numbers: 4-bit indices into a table, and a power of two for each block."""
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_local_experts": 4, "head_dim": 16}
    model = loud(tf.GptOssForCausalLM(tf.GptOssConfig(**{**TEXT, **sizes}, sliding_window=8)))
    save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
        num_experts, num_inputs, num_outputs = tensors.pop(name).shape
        shape = (num_experts, num_outputs, num_inputs // 32, 16)
        blocks = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        scales = torch.randint(120, 126, shape[:-1], generator=generator, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        pairs = torch.stack([table[(blocks & 15).long()], table[(blocks >> 4).long()]], dim=-1)
        numbers = pairs.flatten(-2) * torch.exp2(scales.float() - 127)[..., None]
        model.get_parameter(name).data = numbers.flatten(-2).transpose(1, 2).contiguous()
    rewrite(tmp_path, tensors, quantization_config={"quant_method": "mxfp4"})
    checkpoint = load_checkpoint(settings(tmp_path, "causal_lm", "constant"))
    ours = served_log_probs(PlainLayout(checkpoint), random_ids())
    truth = log_probs(model, random_ids())
    assert np.abs(ours - truth).max() <= 1e-5 * max(1.0, np.abs(truth).max())


PLAIN = "model.layers.1.self_attn.q_proj.weight"
SCALE, BIAS = PLAIN.replace("weight", "weight_scale"), PLAIN.replace("weight", "bias")


def in_float8_with_a_scale(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    weight, scale = to_fp8(tensors[PLAIN])
    return {**tensors, PLAIN: weight, SCALE: scale}


def of_the_trunk_alone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    trunk = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    return {**trunk, "h.0.attn.q_norm.weight": torch.ones(8)}


MORE: dict[str, tuple[str, Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "scale": ("llama", in_float8_with_a_scale, f"quantised ({SCALE}), and config.json does not"),
    "another matrix": (
        "phi",
        lambda tensors: {**tensors, "model.layers.1.mlp.fc3.weight": torch.ones(8)},
        "model.layers.1.mlp.fc3.weight",
    ),
    "bias": ("llama", lambda tensors: {**tensors, BIAS: torch.ones(32)}, BIAS),
    "bias of the head": (
        "llama",
        lambda tensors: {**tensors, "lm_head.bias": torch.ones(320)},
        "lm_head.bias, and those of a LlamaForCausalLM with its config.json do not",
    ),
    "norm": (
        "llama",
        lambda tensors: {**tensors, "model.layers.1.self_attn.q_norm.weight": torch.ones(8)},
        "model.layers.1.self_attn.q_norm.weight",
    ),
    "norm below the trunk's own name": ("gpt2", of_the_trunk_alone, "h.0.attn.q_norm.weight"),
}


@pytest.mark.parametrize("case", MORE)
def test_a_language_model_whose_layers_would_not_be_read_whole_is_refused(
    tmp_path: Path, case: str
) -> None:
    architecture, change, message = MORE[case]
    tensors = load_file(tiny.save(tmp_path, architecture) / "model.safetensors")
    rewrite(tmp_path, change(tensors))
    with pytest.raises(CheckpointRefused, match=re.escape(message)):
        load_checkpoint(settings(tmp_path, "causal_lm", "constant"))


def test_scales_of_experts_of_which_config_json_says_nothing_are_refused(tmp_path: Path) -> None:
    """transformers stacks the experts, so that none of them is a module with a name."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    save(tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**TEXT, **experts, head_dim=8)), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    weight, scale = to_fp8(tensors[name])
    rewrite(tmp_path, {**tensors, name: weight, f"{name}_scale": scale})
    with pytest.raises(CheckpointRefused, match=re.escape(f"quantised ({name}_scale)")):
        load_checkpoint(settings(tmp_path, "causal_lm", "constant"))


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("llama", "v_head.summary.weight"),
        ("llama", "visual.blocks.0.attn.qkv.bias"),
        (
            "llama",
            "model.layers.3.eh_proj.weight",
        ),  # a layer that predicts the token after the next
        ("llama", "model.layers.3.self_attn.q_proj.weight"),
        ("gptj", "transformer.h.0.attn.bias"),  # a causal mask
        ("gptj", "transformer.h.0.attn.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"),
    ],
)
def test_what_is_no_part_of_a_language_model_may_stand_beside_it(
    tmp_path: Path, architecture: str, name: str
) -> None:
    tensors = load_file(tiny.save(tmp_path, architecture) / "model.safetensors")
    rewrite(tmp_path, {**tensors, name: torch.ones(8)})
    checkpoint = load_checkpoint(settings(tmp_path, "causal_lm", "constant"))
    weights = tiny.model(architecture).state_dict()
    for parameter, weight in checkpoint.model.state_dict().items():
        assert torch.equal(weight, weights[parameter]), parameter


def test_keys_of_a_layer_that_reads_those_of_another_one_may_stand_beside_it(
    tmp_path: Path,
) -> None:
    sizes = {**TEXT, "num_hidden_layers": 4, "head_dim": 8, "vocab_size_per_layer_input": 320}
    kinds = ["sliding_attention", "full_attention"] * 2
    config = tf.Gemma3nTextConfig(
        **sizes,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=2,
        layer_types=kinds,
        activation_sparsity_pattern=[0.0] * 4,
    )
    save(tf.Gemma3nForCausalLM(config), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    own, shared = (f"model.layers.{layer}.self_attn.k_proj.weight" for layer in (1, 3))
    assert shared not in tensors
    rewrite(tmp_path, {**tensors, shared: tensors[own].clone()})
    assert load_checkpoint(settings(tmp_path, "causal_lm", "constant")).model is not None
