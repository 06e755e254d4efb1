"""transformers reads some numbers of a GGUF file, and the rest are the defaults of its class.
A file that says other ones is refused by them, and one that says the same is served.

The truth is a random model whose weights are written by the rules of llama.cpp's converter.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from fakes import tiny
from fakes.gguf_files import write
from tokenreward.checkpoints.checkpoint import Checkpoint, load_checkpoint
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.settings import DeploymentSettings

SIZES = {
    "vocab_size": tiny.VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": tiny.BOS_ID,
    "eos_token_id": tiny.END_ID,
    "pad_token_id": tiny.PAD_ID,
}
CONFIGS: dict[str, type[Any]] = {
    "starcoder2": tf.Starcoder2Config,
    "stablelm": tf.StableLmConfig,
    "gemma2": tf.Gemma2Config,
    "gemma3": tf.Gemma3TextConfig,
}
# What llama.cpp writes of each, beside the sizes.
NUMBERS: dict[str, dict[str, int | float]] = {
    "starcoder2": {
        "rope.freq_base": 10000.0,
        "rope.dimension_count": 8,
        "attention.layer_norm_epsilon": 1e-5,
    },
    "stablelm": {
        "rope.freq_base": 10000.0,
        "rope.dimension_count": 2,
        "attention.layer_norm_epsilon": 1e-5,
    },
    "gemma2": {
        "attention.key_length": 256,
        "attention.sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3": {
        "attention.key_length": 256,
        "attention.sliding_window": 4096,
        "rope.freq_base": 1000000.0,
    },
}


def truth(architecture: str, **options: Any) -> Any:
    """A loud random model: one whose every number changes the logits."""
    torch.manual_seed(0)
    config = CONFIGS[architecture](**SIZES, **options)
    model = tf.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(12.0)
        else:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def serve(file: Path) -> Checkpoint:
    entry = {"name": "x", "task": "causal_lm", "scorers": [{"type": "constant"}]}
    return load_checkpoint(DeploymentSettings.model_validate({**entry, "checkpoint": str(file)}))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_file_whose_numbers_are_those_of_the_class_has_the_logits_of_its_model(
    tmp_path: Path, architecture: str
) -> None:
    model = truth(architecture)
    ids = torch.arange(1, 60)[None]
    served = serve(write(tmp_path / "x.gguf", model, numbers=NUMBERS[architecture]))
    with torch.no_grad():
        expected, logits = model.double()(ids).logits, served.model(ids).logits
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("architecture", "name", "number", "built"),
    [
        ("starcoder2", "rope.freq_base", 1e6, "10000.0"),
        ("stablelm", "rope.dimension_count", 4, "2"),
        ("gemma2", "attn_logit_softcapping", 5.0, "50.0"),
        ("gemma2", "final_logit_softcapping", 3.0, "30.0"),
    ],
)
def test_a_file_with_another_number_is_refused_by_it(
    tmp_path: Path, architecture: str, name: str, number: float, built: str
) -> None:
    numbers = {**NUMBERS[architecture], name: number}
    file = write(tmp_path / "x.gguf", truth(architecture), numbers=numbers)
    message = f"its {architecture}.{name} is {number:g}, and transformers builds the model with "
    with pytest.raises(CheckpointRefused, match=re.escape(f"{message}{built}: serve the")):
        serve(file)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_attention_whose_scale_no_file_says_is_refused(tmp_path: Path, architecture: str) -> None:
    """Those of 27B have heads of 128, and scale by the hidden size over the number of heads."""
    model = truth(architecture, head_dim=16, query_pre_attn_scalar=8)
    numbers = {**NUMBERS[architecture], "attention.key_length": 16}
    file = write(tmp_path / "x.gguf", model, numbers=numbers)
    with pytest.raises(CheckpointRefused, match="for heads of 16 transformers takes 256: serve"):
        serve(file)
