"""Loads a reward model: the trunk through transformers, the head as `head_formats` finds it among
the tensors of the checkpoint or of its adapter.

Where transformers has a class with that very head, the model is loaded as that class, so that its
own forward is there to compare with. Else the trunk is loaded and the head put on it. Nothing is
left at random, and no tensor that may be another head is silently dropped. It knows no architecture
by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from tokenreward.checkpoints.adapter import Adapter, merge_head
from tokenreward.checkpoints.heads.affine import AFFINE, take_stored_affine
from tokenreward.checkpoints.heads.gate import gate_names, put_gate
from tokenreward.checkpoints.heads.head_formats import FORMATS, find_head, find_heads
from tokenreward.checkpoints.heads.value_head import ATTRIBUTE, names_value
from tokenreward.checkpoints.layers import head_module
from tokenreward.checkpoints.mapped_files import own_memory
from tokenreward.checkpoints.pretrained import load_pretrained, read_config
from tokenreward.checkpoints.refusal import CheckpointRefused, few, refuse_incomplete
from tokenreward.checkpoints.trunk import find_trunk
from tokenreward.checkpoints.weight_files import find_tensors, read_tensor
from tokenreward.settings import DeploymentSettings, HeadSettings

_CLASS_HEADS = ("score", "classifier")  # the names that transformers' classes have
_LANGUAGE_HEADS = frozenset({"lm_head", "embed_out"})


def load_reward_model(
    source: str,
    settings: DeploymentSettings,
    arguments: dict[str, Any],
    *,
    adapter: Adapter | None = None,
    tokenizer: Any = None,
) -> tuple[Any, str]:
    """A reward model on the CPU, with its adapter on it.

    Args:
        source: A folder or hub id.
        settings: The deployment's.
        arguments: transformers' own `from_pretrained` arguments for this deployment.
        adapter: The deployment's. A value head among its weights, or beside them, is the head.
        tokenizer: transformers', for a head that reads the prompt's end (see `gate`).

    Returns:
        The model with its head on it, and the name that the head was stored under.

    Raises:
        CheckpointRefused: The head is not there, not known, or not all that the checkpoint adds.
            Also raises what transformers and safetensors raise, and OSError.
    """
    file_of = find_tensors(source, revision=settings.revision, allow_pickle=settings.allow_pickle)
    config = read_config(source, arguments)
    affine = _take_affine(config, settings, file_of)
    module, tensors, other_heads = _find_head(config, settings.head, file_of, adapter)
    config.pools_last_token = not _is_of_class(config, module, tensors, adapter)
    renames, other_trunks = find_trunk(config, settings, file_of)
    model, info = None, dict[str, Any]()
    if module in _CLASS_HEADS and "weight" in tensors:
        model, info = _load_as_class(config, source, (module, tensors), renames, arguments)
    if model is None:
        more = {"config": config, "key_mapping": renames}
        model, info = load_pretrained(AutoModel, source, arguments, **more)
        activation = (settings.head or HeadSettings()).activation
        model.add_module(ATTRIBUTE, head_module(tensors, activation))
    head = {f"{module}.{place}" for place in tensors}
    info["unexpected_keys"] = {*info["unexpected_keys"]} - {*head, *affine, *other_heads}
    refuse_incomplete(info)
    if not names_value(settings.head):
        put_gate(model, file_of, tokenizer)
    _refuse_leftovers(head, other_trunks, model, info)
    if adapter is not None:
        # A value head reads no logits: a language head that was trained along with it is idle.
        idle = [key for key in adapter.tensors if key.split(".")[0] in _LANGUAGE_HEADS]
        adapter.add_to(model, except_for=[*head, *idle])
        merge_head(model, module)
    return model, module if "weight" in tensors else f"{module}.mlp"


def _take_affine(
    config: Any, settings: DeploymentSettings, file_of: Mapping[str, Path]
) -> list[str]:
    """Puts the operator's word on normalised rewards into the configuration, and what the
    checkpoint stores of them. Returns the names of the tensors that were read."""
    if settings.normalize_reward is not None:
        config.normalize_reward = settings.normalize_reward
    names = [name for name in file_of if AFFINE.fullmatch(name)]
    take_stored_affine(config, {name: read_tensor(file_of[name], name) for name in names})
    return names


def _find_head(
    config: Any,
    settings: HeadSettings | None,
    file_of: Mapping[str, Path],
    adapter: Adapter | None,
) -> tuple[str, dict[str, Tensor], set[str]]:
    """The head of the adapter, or else of the checkpoint.

    Returns:
        The name of the module that it is; its tensors, by their names in the module; and the names
        of the checkpoint's other heads and of a gate, which are not read.

    Raises:
        CheckpointRefused: There is none, or it cannot be told which.
    """
    head_names = list(FORMATS)
    own_name = getattr(config, "value_head_prefix", None)
    if own_name is not None and own_name not in head_names:
        head_names.append(own_name)
    heads = find_heads(file_of, head_names)
    others = {f"{module}.{place}" for module, places in heads for place in places}
    others |= gate_names(file_of)
    tensor = None if settings is None else settings.tensor
    if tensor is not None:
        head_names = [re.sub(r"(\.\d+)?\.(weight|bias)$", "", tensor)]
    is_numbered = tensor is None
    tuned = {} if adapter is None else {**adapter.whole_weights, **adapter.value_head}
    if find_heads(tuned, head_names, is_numbered=is_numbered):
        module, places = find_head(tuned, head_names, is_numbered=is_numbered)
        return module, {place: tuned[f"{module}.{place}"] for place in places}, others
    module, places = find_head(file_of, head_names, is_numbered=is_numbered)
    names = {place: f"{module}.{place}" for place in places}
    tensors = {place: read_tensor(file_of[name], name) for place, name in names.items()}
    return module, tensors, others


def _is_of_class(
    config: Any, module: str, tensors: Mapping[str, Tensor], adapter: Adapter | None
) -> bool:
    """Whether a head was trained by a class of transformers, which passes over padding before it
    pools, and writes the number of its labels into config.json.

    OpenRLHF puts a head of its own beside the trunk, and config.json is that of the language model:
    it has two labels, transformers' default. It pools the last token of the attention mask, and
    newer releases also write `value_head_prefix`. An adapter was trained on such a class, and its
    base's config.json says nothing of it.
    """
    if getattr(config, "value_head_prefix", None) is not None or "weight" not in tensors:
        return False
    if adapter is not None and adapter.holds(module):
        return True
    return bool(config.num_labels == tensors["weight"].shape[0])


def _load_as_class(
    config: Any,
    source: str,
    head: tuple[str, dict[str, Tensor]],
    renames: dict[str, str] | None,
    arguments: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """The model as transformers' class with just this head, a Linear, and its loading info; (None,
    {}) if there is no such class, or if its Linear has other shapes.

    Args:
        config: The checkpoint's configuration, whose number of labels becomes the head's.
        source: A folder or hub id.
        head: The name of the head, and its tensors.
        renames: As of `find_trunk`.
        arguments: transformers' own.
    """
    name, tensors = head
    has_bias = "bias" in tensors
    auto, mapping = AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if has_bias or name == "classifier":
        auto, mapping = AutoModelForTokenClassification, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
    remote_classes = getattr(config, "auto_map", None) or {}
    is_remote = arguments["trust_remote_code"] and auto.__name__ in remote_classes
    if not is_remote and type(config) not in mapping:
        return None, {}
    # The number of labels is that of the tensor. Trainers leave another one in config.json, and
    # where the file says nothing a loaded configuration has two.
    config.num_labels = int(tensors["weight"].shape[0])
    model, info = load_pretrained(auto, source, arguments, config=config, key_mapping=renames)
    module = getattr(model, name, None)
    if not isinstance(module, nn.Linear) or _shapes(module.state_dict()) != _shapes(tensors):
        return None, {}
    # The tensors may be an adapter's, and then the checkpoint may have none or others. They are not
    # written into the mapped pages of its file.
    own_memory(module)
    module.load_state_dict(tensors)
    places = {f"{name}.{place}" for place in tensors}
    info["missing_keys"] = set(info["missing_keys"]) - places
    info["mismatched_keys"] = [key for key in info["mismatched_keys"] if key[0] not in places]
    return model, info


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _refuse_leftovers(head: set[str], idle: set[str], model: Any, info: dict[str, Any]) -> None:
    """Refuses tensors that nothing would read: they may be a part of the score. The head of a
    language model, which trainers often leave in the file, is none.

    Args:
        head: The checkpoint's names of the value head's tensors.
        idle: Names of tensors that are known not to be read, or were read already.
        model: The loaded model.
        info: transformers' loading info.
    """
    lm_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    tied = getattr(lm_class, "_tied_weights_keys", None) or ()
    language_heads = _LANGUAGE_HEADS | {name.rsplit(".", 1)[0] for name in tied}
    leftovers = [
        name
        for name in sorted(info.get("unexpected_keys") or ())
        if name not in head | idle and name.split(".")[-2:-1] != ["lm_head"]
        if name.rsplit(".", 1)[0] not in language_heads
    ]
    if leftovers:
        raise CheckpointRefused(
            f"beside the trunk and its head {', '.join(sorted(head))} it holds {few(leftovers)}, "
            "which nothing would read: a head that is more than that cannot be served"
        )
