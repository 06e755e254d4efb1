"""Chooses how a checkpoint's model is loaded, by the deployment's task and the kind of model.

It knows the kinds, and no architecture by name. Another kind of model gets its branch here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from tokenreward.checkpoints.adapter import Adapter
from tokenreward.checkpoints.classifier import is_encoder, load_classifier
from tokenreward.checkpoints.gguf import load_gguf
from tokenreward.checkpoints.load_failure import refuse_unknown_quantisation
from tokenreward.checkpoints.pretrained import load_language_model
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.checkpoints.reward_model import load_reward_model
from tokenreward.settings import DeploymentSettings

_SERVED_ENCODERS = (
    "It is an encoder: served are those of transformers' own class for sequence classification, "
    "with one or two labels, and without `adapter`, `head` and `normalize_reward`"
)


def load_model(
    source: str, settings: DeploymentSettings, adapter: Adapter | None, gguf: Path | None
) -> tuple[Any, Any, str | None]:
    """The model with its adapter, the tokenizer, and the format of a reward model's head: None if
    the model's own class scores a whole row (see `classifier`).

    Raises CheckpointRefused, and what transformers and safetensors raise.
    """
    arguments = {
        "revision": settings.revision,
        "dtype": getattr(torch, settings.dtype),
        "trust_remote_code": settings.trust_remote_code,
        "use_safetensors": None if settings.allow_pickle else True,
        "ignore_mismatched_sizes": True,  # so that they are listed, and refused by name
        "output_loading_info": True,
    }
    if gguf is not None:
        model, tokenizer = load_gguf(gguf, settings, arguments)
    else:
        refuse_unknown_quantisation(source, settings.revision)
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
        if settings.task == "reward_model":
            return _load_scoring_model(source, settings, arguments, adapter, tokenizer)
        model = load_language_model(source, arguments)
    if adapter is not None:
        adapter.add_to(model)
    return model, tokenizer, None


def _load_scoring_model(
    source: str,
    settings: DeploymentSettings,
    arguments: dict[str, Any],
    adapter: Adapter | None,
    tokenizer: Any,
) -> tuple[Any, Any, str | None]:
    """A reward model: a head over tokens, or else a class that scores whole rows. An encoder is the
    second in any case, as its tokens see the tokens after them."""
    may_be_classifier = adapter is None and settings.head is None and not settings.normalize_reward
    if may_be_classifier and is_encoder(source, arguments):
        classifier = load_classifier(source, arguments)
        if classifier is not None:
            return classifier, tokenizer, None
    try:
        model, head_format = load_reward_model(source, settings, arguments, adapter=adapter)
    except CheckpointRefused as error:
        classifier = load_classifier(source, arguments) if may_be_classifier else None
        if classifier is None and is_encoder(source, arguments):
            raise CheckpointRefused(f"{error}. {_SERVED_ENCODERS}") from None
        if classifier is None:
            raise
        return classifier, tokenizer, None
    return model, tokenizer, head_format
