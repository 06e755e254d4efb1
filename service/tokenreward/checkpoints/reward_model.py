"""Loads a reward model: the trunk through transformers, the head as `head_formats` finds it among
the tensors of the checkpoint or of its adapter.

Where transformers has a class with that very head, the model is loaded as that class, so that its
own forward is there to compare with. Else the trunk is loaded and the head put on it. Nothing is
left at random, and no tensor that may be another head is silently dropped. It knows no architecture
by name.
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
)

from tokenreward.checkpoints.adapter import Adapter, merge_head
from tokenreward.checkpoints.head_formats import HeadFormat, find_head, has_head, head_names
from tokenreward.checkpoints.pretrained import load_pretrained
from tokenreward.checkpoints.refusal import CheckpointRefused, few, refuse_incomplete
from tokenreward.checkpoints.value_head import ATTRIBUTE, ValueHead, head_module
from tokenreward.checkpoints.weight_files import find_tensors, read_tensor
from tokenreward.settings import DeploymentSettings

_LANGUAGE_HEADS = frozenset({"lm_head", "embed_out"})
_NUM_CAUSAL_TOKENS = 6


def load_reward_model(
    source: str,
    settings: DeploymentSettings,
    arguments: dict[str, Any],
    *,
    adapter: Adapter | None = None,
) -> tuple[Any, str]:
    """A reward model on the CPU, with its adapter on it.

    Args:
        source: A folder or hub id.
        settings: The deployment's.
        arguments: transformers' own `from_pretrained` arguments for this deployment.
        adapter: The deployment's. A value head among its weights, or beside them, is the head: then
            the checkpoint is the language model that it was trained on, or holds a head that the
            training replaced.

    Returns:
        The model with its head on it, and the name of the head's format.

    Raises:
        CheckpointRefused: The head is not there, not known, or not all that the checkpoint adds to
            its trunk. Also raises what transformers and safetensors raise, and OSError for a folder
            or hub that could not be read.
    """
    revision, trusted = settings.revision, settings.trust_remote_code
    file_of = find_tensors(source, revision=revision, allow_pickle=settings.allow_pickle)
    config: Any = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trusted)
    if settings.normalize_reward is not None:
        config.normalize_reward = settings.normalize_reward
    prefix = getattr(config, "value_head_prefix", None)
    tuned = {} if adapter is None else {**adapter.whole_weights, **adapter.value_head}
    is_tuned = has_head(tuned, prefix)
    head_format, names = find_head(tuned if is_tuned else file_of, prefix)
    tensors = {}
    for place, name in names.items():
        tensors[place] = tuned[name] if is_tuned else read_tensor(file_of[name], name)
    model, info = _load_as_class(config, source, head_format, tensors, arguments)
    if model is None:
        keys = head_format.renames(file_of) or None
        model, info = load_pretrained(AutoModel, source, arguments, config=config, key_mapping=keys)
        model.add_module(ATTRIBUTE, head_module(tensors))
    refuse_incomplete(info)
    heads = set(names.values()) | (head_names(file_of, prefix) if is_tuned else set())
    _refuse_leftovers(heads, model, info)
    if adapter is not None:
        adapter.add_to(model, except_for=names.values() if is_tuned else ())
        merge_head(model, head_format.prefix)
    return model, head_format.name


def _load_as_class(
    config: Any,
    source: str,
    head_format: HeadFormat,
    tensors: dict[str, Tensor],
    arguments: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """The model as transformers' class with just this head, and its loading info; (None, {}) if
    there is no such class."""
    has_bias = "bias" in tensors
    auto, mapping = AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if has_bias or head_format.prefix == "classifier":
        auto, mapping = AutoModelForTokenClassification, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
    remote_classes = getattr(config, "auto_map", None) or {}
    is_remote = arguments["trust_remote_code"] and auto.__name__ in remote_classes
    has_class = is_remote or type(config) in mapping
    if head_format.name not in ("score", "classifier") or not has_class:
        return None, {}
    # The number of labels is that of the tensor. Trainers leave another one in config.json, and
    # where the file says nothing a loaded configuration has two.
    config.num_labels = int(tensors["weight"].shape[0])
    model, info = load_pretrained(auto, source, arguments, config=config)
    module = getattr(model, head_format.prefix, None)
    if not isinstance(module, nn.Linear) or (module.bias is not None) != has_bias:
        return None, {}
    # The tensors may be an adapter's, and then the checkpoint may have none or others.
    module.load_state_dict(tensors)
    places = {f"{head_format.prefix}.{place}" for place in tensors}
    info["missing_keys"] = set(info["missing_keys"]) - places
    info["mismatched_keys"] = [key for key in info["mismatched_keys"] if key[0] not in places]
    return model, info


def _refuse_leftovers(head: set[str], model: Any, info: dict[str, Any]) -> None:
    """Refuses tensors that nothing would read: they may be a part of the score. The head of a
    language model, which trainers often leave in the file, is none.

    Args:
        head: The checkpoint's names of the value head's tensors.
        model: The loaded model.
        info: transformers' loading info.
    """
    lm_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    tied = getattr(lm_class, "_tied_weights_keys", None) or ()
    language_heads = _LANGUAGE_HEADS | {name.rsplit(".", 1)[0] for name in tied}
    leftovers = [
        name
        for name in sorted(info.get("unexpected_keys") or ())
        if name not in head and name.rsplit(".", 1)[0] not in language_heads
    ]
    if leftovers:
        raise CheckpointRefused(
            f"beside the trunk and its head {', '.join(sorted(head))} it holds {few(leftovers)}, "
            "which nothing would read: a head that is more than that cannot be served"
        )


def refuse_unreadable(model: Any, head: ValueHead, device: torch.device) -> None:
    """Refuses a trunk whose states are not the head's input, or where a token sees the tokens after
    it: then the value at a token is no judgement of the prefix that ends there.

    Two rows that differ in their last token must have equal states before it, up to rounding.
    """
    ids = torch.arange(1, _NUM_CAUSAL_TOKENS + 1, device=device)[None]
    other = ids.clone()
    other[0, -1] = 0
    with torch.inference_mode():
        states = model.base_model(input_ids=ids).last_hidden_state[0].float()
        other_states = model.base_model(input_ids=other).last_hidden_state[0].float()
    if states.shape[-1] != head.layers[0].in_features:
        raise CheckpointRefused(
            f"the value head reads {head.layers[0].in_features} numbers a token, the trunk gives "
            f"{states.shape[-1]}"
        )
    rounding = max(1e-4, 8 * float(torch.finfo(model.dtype).eps))
    bound = rounding * max(1.0, float(states.abs().max()))
    difference = float((states - other_states)[:-1].abs().max())
    if not difference <= bound:  # NaN is refused, too
        raise CheckpointRefused(
            f"{type(model).__name__} is no decoder: its tokens see the ones after them (states "
            f"differ by {difference:.1e}); encoders that pool their first token cannot be served"
        )
