"""Loads a reward model whose own class pools and scores a whole row: encoders (BERT, DeBERTa,
ModernBERT) and encoder-decoders (T5, BART), and decoders whose head is more than one over tokens.

There is no value at a token, as tokens see the tokens after them or the class reads more than one:
the class's own call gives one score for a row, and that is all. This module knows no architecture
by name.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
)

from tokenreward.checkpoints.heads.value_head import label_names, label_weights
from tokenreward.checkpoints.pretrained import load_pretrained, read_config
from tokenreward.checkpoints.refusal import CheckpointRefused, few, refuse_incomplete
from tokenreward.checkpoints.weight_files import find_value_head
from tokenreward.settings import DeploymentSettings

_LABEL_FIELDS = frozenset({"label", "label_weights"})
_UNREAD_FIELDS = ("adapter", "normalize_reward")


def load_classifier(source: str, settings: DeploymentSettings, arguments: dict[str, Any]) -> Any:
    """A model of transformers' class for sequence classification, on the CPU.

    Args:
        source: A folder or hub id.
        settings: The deployment's.
        arguments: transformers' own `from_pretrained` arguments for this deployment.

    Raises:
        CheckpointRefused: There is no such class, the checkpoint's weights are not exactly those of
            it, several labels are there and none is named, or a setting has no use. Also raises
            what transformers and safetensors raise.
    """
    config = read_config(source, arguments)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise CheckpointRefused(
            f"transformers has no class for sequence classification with a {type(config).__name__}"
        )
    own = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)].__name__
    head = set() if settings.head is None else settings.head.model_fields_set
    unread = [f"`head: {{{field}: ...}}`" for field in sorted(head - _LABEL_FIELDS)]
    unread += [f"`{field}`" for field in _UNREAD_FIELDS if getattr(settings, field)]
    if unread:
        raise CheckpointRefused(f"{own} scores whole rows, and has no use for {few(unread)}")
    model, info = load_pretrained(
        AutoModelForSequenceClassification, source, arguments, config=config
    )
    allow_pickle = settings.allow_pickle
    in_own_file = find_value_head(source, revision=settings.revision, allow_pickle=allow_pickle)
    unexpected = sorted({*in_own_file, *(info.get("unexpected_keys") or ())})
    written = getattr(config, "architectures", None) or [own]
    if own not in written and (unexpected or info.get("missing_keys")):
        raise CheckpointRefused(
            f"config.json says that it is a {written[0]}; a score of whole rows needs a {own}"
        )
    refuse_incomplete(info)
    if unexpected:
        raise CheckpointRefused(
            f"{own} has no place for {few(unexpected)}, which nothing would read"
        )
    label_weights(label_names(config, config.num_labels), settings.head)
    return model
