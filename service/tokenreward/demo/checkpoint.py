"""Writes and reads a demo checkpoint: a folder with weights, config, generation config and
tokenizer.

The weights are stored as float16 to be small, and the config says float32, so that a plain load
computes in float32. It does not know how the weights came about.
"""

import copy
import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a complete checkpoint."""
    stored = copy.deepcopy(model).to(torch.float16)
    stored.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"dtype": "float32", "use_cache": True}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_lm(folder: Path) -> PreTrainedModel:
    """A language model in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of any of the checkpoints; all have the same."""
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    return tokenizer
