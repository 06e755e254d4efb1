"""Tokenizers that write one text, and two as a pair, as those of encoders do."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing

from fakes import tiny

PAIRS = {
    "t5": ("$A <|end|>", "$A <|end|> $B <|end|>"),
    "roberta": ("<|bos|> $A <|end|>", "<|bos|> $A <|end|> <|end|> $B <|end|>"),
    "mbart": ("$A <|end|> <|user|>", "$A $B <|end|> <|user|>"),
    "other": ("<|bos|> $A <|end|>", "<|bos|> $A <|end|> $B:1 <|end|>:1"),
}


def pairing_tokenizer(name: str) -> Any:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    single, pair = PAIRS.get(name, PAIRS["other"])
    special = [("<|bos|>", tiny.BOS_ID), ("<|end|>", tiny.END_ID), ("<|user|>", 4)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, pair=pair, special_tokens=special
    )
    tokenizer.chat_template = None
    return tokenizer


def name_inputs(folder: Path) -> None:
    """Has a saved tokenizer give segments, as BERT's does."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    path.write_text(json.dumps(config))
