"""Loads a reward model: the trunk through transformers, the head as `head_formats` finds it among
the tensors.

Where transformers has a class with that very head, it is loaded as that class, whose own forward is
then there to compare with; else the trunk is loaded and the head put on it. Nothing is left at
random, and no tensor that may be another head is dropped unsaid. It knows no architecture by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
)

from tokenreward.checkpoints.head_formats import FoundHead, find_head
from tokenreward.checkpoints.refusal import CheckpointRefused, few, refuse_incomplete
from tokenreward.checkpoints.value_head import ATTRIBUTE, ValueHead, head_module
from tokenreward.checkpoints.weight_files import WeightFiles
from tokenreward.settings import DeploymentSettings

_CLASSES = (
    (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
    (AutoModelForTokenClassification, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING),
)
_LANGUAGE_HEADS = frozenset({"lm_head", "embed_out"})
_NUM_CAUSAL_TOKENS = 6


def load_reward_model(
    source: str, settings: DeploymentSettings, arguments: dict[str, Any]
) -> tuple[Any, str]:
    """The model, with its head on it, and the head's format. `arguments`: transformers' own for
    this deployment.

    Raises CheckpointRefused for a head that is not there or not known, and what transformers and
    safetensors raise.
    """
    revision, trusted = settings.revision, settings.trust_remote_code
    files = WeightFiles.of(source, revision=revision, allow_pickle=settings.allow_pickle)
    config: Any = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trusted)
    if settings.normalize_reward is not None:
        config.normalize_reward = settings.normalize_reward
    head = find_head(files.file_of, getattr(config, "value_head_prefix", None))
    tensors = {place: files.read(name) for place, name in head.tensors.items()}
    model, info = _as_class(source, config, head, tensors, arguments) or (None, {})
    if model is None:
        model, info = AutoModel.from_pretrained(
            source, config=config, key_mapping=head.renames or None, **arguments
        )
        model.add_module(ATTRIBUTE, head_module(tensors))
    refuse_incomplete(info)
    _refuse_leftovers(head, model, info)
    return model, head.format.name


def _as_class(
    source: str, config: Any, head: FoundHead, tensors: dict[str, Tensor], arguments: dict[str, Any]
) -> tuple[Any, dict[str, Any]] | None:
    """The model as transformers' class with just this head, or None if there is none."""
    has_bias = "bias" in tensors
    auto, mapping = _CLASSES[1] if has_bias or head.format.prefix == "classifier" else _CLASSES[0]
    theirs = arguments["trust_remote_code"] and auto.__name__ in (
        getattr(config, "auto_map", None) or {}
    )
    if head.format.name not in ("score", "classifier") or not (theirs or type(config) in mapping):
        return None
    _set_num_labels(source, config, tensors, arguments["revision"])
    model, info = auto.from_pretrained(source, config=config, **arguments)
    own = getattr(model, head.format.prefix, None)
    is_that = isinstance(own, nn.Linear) and (own.bias is not None) == has_bias
    return (model, info) if is_that else None


def _set_num_labels(
    source: str, config: Any, tensors: dict[str, Tensor], revision: str | None
) -> None:
    """The tensor says how many labels there are; a config.json that says otherwise is refused."""
    num_rows = int(tensors["weight"].shape[0])
    said, _ = PretrainedConfig.get_config_dict(source, revision=revision)
    if ("num_labels" in said or "id2label" in said) and config.num_labels != num_rows:
        raise CheckpointRefused(
            f"config.json says {config.num_labels} labels, the head's weight has {num_rows}: its "
            "rows would be random"
        )
    config.num_labels = num_rows


def _refuse_leftovers(head: FoundHead, model: Any, info: dict[str, Any]) -> None:
    """Tensors that the trunk does not read and that are no head of a language model may be a part
    of the score."""
    read = set(head.tensors.values())
    tied = (
        getattr(
            MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None), "_tied_weights_keys", None
        )
        or ()
    )
    language = _LANGUAGE_HEADS | {name.rsplit(".", 1)[0] for name in tied}
    left = [
        name
        for name in sorted(info.get("unexpected_keys") or ())
        if name not in read and name.rsplit(".", 1)[0] not in language
    ]
    if left:
        raise CheckpointRefused(
            f"beside the trunk and its head {', '.join(sorted(read))} it holds {few(left)}, which "
            "nothing would read: "
            "a head that is more than that cannot be served"
        )


def refuse_unreadable(model: Any, head: ValueHead, device: torch.device) -> None:
    """Refuses a trunk whose states are not the head's input, or where a token sees the tokens after
    it: then the value at a token is no judgement of the prefix that ends there."""
    ids = torch.arange(1, _NUM_CAUSAL_TOKENS + 1, device=device)[None]
    other = ids.clone()
    other[0, -1] = 0
    with torch.inference_mode():
        first, second = (
            model.base_model(input_ids=row).last_hidden_state[0].float() for row in (ids, other)
        )
    if first.shape[-1] != head.layers[0].in_features:
        raise CheckpointRefused(
            f"the value head reads {head.layers[0].in_features} numbers a token, the trunk gives "
            f"{first.shape[-1]}"
        )
    bound = max(1e-4, 8 * float(torch.finfo(model.dtype).eps)) * max(1.0, float(first.abs().max()))
    seen = float((first - second)[:-1].abs().max())
    if not seen <= bound:
        raise CheckpointRefused(
            f"{type(model).__name__} is no decoder: its tokens see the ones after them (states "
            f"differ by {seen:.1e}); "
            "encoders that pool their first token cannot be served"
        )
