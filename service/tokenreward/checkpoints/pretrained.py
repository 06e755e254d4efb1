"""Loads models through transformers' Auto classes: a language model alone, or one in a wrapper that
also has towers for images or sound.

A wrapper is loaded whole, by transformers' own class, and its other towers are let go: texts never
reach them, and they are memory, attention settings and tables of positions that are not the
language model's. What is left of a wrapper reads text as the whole of it does. This module knows
no architecture by name.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PreTrainedModel,
)

from tokenreward.checkpoints.load_failure import quantisation
from tokenreward.checkpoints.refusal import CheckpointRefused, few, refuse_incomplete, refuse_scales

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer, an expert
_SCALES = ("weight_scale", "weight_scale_inv")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_WRAPPERS = (
    (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText),
    (MODEL_FOR_MULTIMODAL_LM_MAPPING, AutoModelForMultimodalLM),
)


def load_language_model(source: str, arguments: dict[str, Any]) -> Any:
    """A language model on the CPU: a causal one, else the wrapper that has one inside.

    Args:
        source: A folder or hub id.
        arguments: transformers' own `from_pretrained` arguments for this deployment.

    Raises:
        CheckpointRefused: Some of its weights would be random, or a part of its layers would not be
            read. Also raises what transformers and safetensors raise.
    """
    config = read_config(source, arguments)
    auto: Any = AutoModelForCausalLM
    # A model with code of its own is in no table, and has its class from there.
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        kind = encoder_kind(config)
        if kind is not None:
            raise CheckpointRefused(
                f"it is an {kind} ({type(config).__name__}), and no decoder that predicts each "
                "token from those before it"
            )
        auto = next((auto for table, auto in _WRAPPERS if type(config) in table), auto)
    model, info = load_pretrained(auto, source, arguments, config=config)
    refuse_incomplete(info)
    is_quantised = quantisation(source, arguments["revision"]) is not None
    _refuse_other_layers(model, is_quantised=is_quantised)
    return model


def _refuse_other_layers(model: Any, *, is_quantised: bool) -> None:
    """Refuses a checkpoint whose layers have more than the model's: a bias, a norm, or the scales
    of weights that are quantised. transformers would leave them out with no more than a warning.

    Only layers in lists are looked at. What a checkpoint has elsewhere is taken for other models
    beside this one: towers, value heads, layers that predict more tokens. In a layer, a tensor of a
    module without weights of its own may be a mask or a table that old versions of transformers
    stored, and is left out. So is what other layers have and this one does not: a layer may read
    the keys of another. Where config.json says that weights are quantised, transformers leaves out
    what it does not need, and only the scales of weights are looked for. Raises CheckpointRefused.
    """
    # A file may have the trunk's own names.
    modules = {**dict(model.base_model.named_modules()), **dict(model.named_modules())}
    lists = [module for module in modules.values() if isinstance(module, nn.ModuleList)]
    in_layers = {module for layers in lists for layer in layers for module in layer.modules()}
    patterns: set[str] = set()
    for owner, module in modules.items():
        own = (f"{owner}.{kind}" for kind, _ in module.named_parameters(recurse=False))
        patterns.update(_NUMBER.sub("N", name) for name in own)
    others = []
    for name in model.unread_tensors:
        owner, _, kind = name.rpartition(".")
        if owner in modules:
            is_part = next(modules[owner].parameters(recurse=False), None) is not None
        else:
            parents = [owner[:end] for end, letter in enumerate(owner) if letter == "."]
            is_in_layer = any(modules.get(parent) in in_layers for parent in parents)
            is_part = is_in_layer and kind in ("weight", "bias", *_SCALES)
        if is_part and _NUMBER.sub("N", name) not in patterns:
            others.append(name)
    if is_quantised:
        others = [name for name in others if name.rpartition(".")[2] in _SCALES]
    refuse_scales(others)
    if others:
        raise CheckpointRefused(
            f"its layers hold {few(sorted(others))}, and those of a {type(model).__name__} with "
            "its config.json do not: it would be another model without them. Check `model_type` "
            "and the other fields of config.json"
        )


def encoder_kind(config: Any) -> str | None:
    """ "encoder" or "encoder-decoder" for a configuration of one, None for a decoder's.

    What transformers trains by masking words is an encoder.
    """
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return "encoder"
    return None


def read_config(source: str, arguments: dict[str, Any]) -> Any:
    """The configuration of a checkpoint, as transformers reads it with these arguments.

    The kernel of attention that it may name is the one of its training, which need not be installed
    here: transformers chooses one.
    """
    config = AutoConfig.from_pretrained(
        source, revision=arguments["revision"], trust_remote_code=arguments["trust_remote_code"]
    )
    config._attn_implementation = None
    return config


def load_pretrained(
    auto: Any, source: str, arguments: dict[str, Any], **more: Any
) -> tuple[Any, dict[str, Any]]:
    """A model as one of transformers' Auto classes loads it, without towers that read no text.

    Args:
        auto: The Auto class.
        source: A folder or hub id.
        arguments: transformers' own `from_pretrained` arguments for this deployment.
        more: Further ones, for this class.

    Returns:
        The model on the CPU, and transformers' loading info. The names of tensors that were not
        read are on the model, too.
    """
    model, info = auto.from_pretrained(source, **more, **arguments)
    model.unread_tensors = frozenset(info.get("unexpected_keys") or ())
    if quantisation(source, arguments["revision"]) is not None:
        _unify_dtype(model, arguments["dtype"])
    text_config = model.config.get_text_config()
    if text_config is model.config:
        return model, info
    for owner in (model, model.base_model):
        for name, tower in list(owner.named_children()):
            if isinstance(tower, PreTrainedModel) and not _reads_text(tower, model, text_config):
                setattr(owner, name, None)
    return model, info


def _reads_text(tower: nn.Module, model: Any, text_config: Any) -> bool:
    """Whether a part of a wrapper is its language model, or holds it."""
    embedding = model.get_input_embeddings()
    return any(
        module is embedding or getattr(module, "config", None) is text_config
        for module in tower.modules()
    )


def _unify_dtype(model: Any, dtype: torch.dtype) -> None:
    """Casts what transformers left in the file's dtype: it casts the weights that it de-quantises,
    and none of the others.

    Weights that transformers keeps in float32 stay, and so does a model that is still quantised:
    its scales have dtypes of their own.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        return
    in_float32 = (
        *(model._keep_in_fp32_modules or ()),
        *(model._keep_in_fp32_modules_strict or ()),
    )
    for name, parameter in model.named_parameters():
        if parameter.dtype not in _FLOATS or any(part in name for part in in_float32):
            continue
        parameter.data = parameter.data.to(dtype)
