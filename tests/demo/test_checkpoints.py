"""The embedded checkpoints: complete, small, and loadable by the plain loaders."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from tokenreward.demo import CHECKPOINTS, WEIGHTS, checkpoint_path

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_folder_is_a_complete_checkpoint(name: str) -> None:
    assert {path.name for path in checkpoint_path(name).iterdir()} >= FILES


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_loads_with_no_weight_missing_or_left_over(name: str) -> None:
    loader = AutoModelForSequenceClassification if name == "rm" else AutoModelForCausalLM
    model, info = loader.from_pretrained(checkpoint_path(name), output_loading_info=True)
    assert not any(info.values())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.max_position_embeddings == 4096


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_generation_ends_at_end_of_turn(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path(name))
    assert (
        GenerationConfig.from_pretrained(checkpoint_path(name)).eos_token_id
        == tokenizer.eos_token_id
    )


def test_reward_model_has_one_label_and_knows_its_padding() -> None:
    config = json.loads((checkpoint_path("rm") / "config.json").read_text())
    assert len(config["id2label"]) == 1
    assert (
        config["pad_token_id"] == AutoTokenizer.from_pretrained(checkpoint_path("rm")).pad_token_id
    )


def test_all_checkpoints_have_the_same_tokenizer() -> None:
    assert (
        len({(checkpoint_path(name) / "tokenizer.json").read_bytes() for name in CHECKPOINTS}) == 1
    )


def test_everything_together_is_below_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 10_000_000


def test_unknown_checkpoint_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match="no embedded model `huge`; there are base, sft, dpo, rm, smol"
    ):
        checkpoint_path("huge")


def test_importing_the_demo_imports_no_torch_and_no_transformers() -> None:
    code = (
        "import sys, tokenreward.demo; print(sorted({'torch', 'transformers', 'numpy'} & "
        "set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
