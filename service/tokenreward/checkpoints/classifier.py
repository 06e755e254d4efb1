"""Loads a reward model whose own class pools and scores a whole row: encoders (BERT, DeBERTa,
ModernBERT) and encoder-decoders (T5, BART), and decoders whose head is more than one over tokens.

There is no value at a token, as tokens see the tokens after them or the class reads more than one:
the class's own call gives one score for a row, and that is all. This module knows no architecture
by name; what transformers trains by masking words is an encoder.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
)

from tokenreward.checkpoints.pretrained import load_pretrained, read_config


def is_encoder(source: str, arguments: dict[str, Any]) -> bool:
    """Whether a checkpoint is an encoder or encoder-decoder, by its configuration.

    Args:
        source: A folder or hub id.
        arguments: transformers' own `from_pretrained` arguments for this deployment.
    """
    config = read_config(source, arguments)
    if getattr(config, "is_encoder_decoder", False):
        return True
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)


def load_classifier(source: str, arguments: dict[str, Any]) -> Any | None:
    """A model of transformers' class for sequence classification, with one or two labels, on the
    CPU.

    Args:
        source: A folder or hub id.
        arguments: transformers' own `from_pretrained` arguments for this deployment.

    Returns:
        The model; None if the checkpoint's weights are not exactly those of such a class. Also
        raises what transformers and safetensors raise.
    """
    config = read_config(source, arguments)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return None
    model, info = load_pretrained(
        AutoModelForSequenceClassification, source, arguments, config=config
    )
    is_complete = not any(
        info.get(kind) for kind in ("missing_keys", "mismatched_keys", "unexpected_keys")
    )
    return model if is_complete and config.num_labels in (1, 2) else None
