"""Chooses how a checkpoint's model is loaded, by the deployment's task and the kind of model.

It knows the kinds, and no architecture by name. Another kind of model gets its branch here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from tokenreward.checkpoints.adapter import Adapter
from tokenreward.checkpoints.classifier import load_classifier
from tokenreward.checkpoints.gguf import load_gguf
from tokenreward.checkpoints.load_failure import refuse_unknown_quantisation
from tokenreward.checkpoints.pretrained import encoder_kind, load_language_model, read_config
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.checkpoints.reward_model import load_reward_model
from tokenreward.settings import DeploymentSettings


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
    kind = encoder_kind(read_config(source, arguments))
    if kind is not None:
        try:
            return load_classifier(source, settings, arguments), tokenizer, None
        except CheckpointRefused as error:
            raise CheckpointRefused(f"it is an {kind}: {error}") from None
    try:
        model, head_format = load_reward_model(
            source, settings, arguments, adapter=adapter, tokenizer=tokenizer
        )
    except CheckpointRefused:
        try:
            return load_classifier(source, settings, arguments), tokenizer, None
        except CheckpointRefused:
            pass  # the first cause is the one to tell
        raise
    return model, tokenizer, head_format
