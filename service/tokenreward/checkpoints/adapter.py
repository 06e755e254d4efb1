"""A LoRA adapter on a loaded model (Hu et al. 2021, 2106.09685): added in place, and switched off
around a pass.

    W x becomes W x + s B A x, and W x again while it is switched off

The base's weights stay where they are and the model keeps its class, so a policy and the reference
it was tuned from are one copy in memory, and the switched-off pass is the base's own, bit for bit.
What PEFT would drop or change unsaid (parts of the configuration, weights without a place) is
refused. It knows PEFT's files and no architecture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import cached_file

from tokenreward.checkpoints.refusal import CheckpointRefused, few

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

# What of a configuration says which function the adapter is.
_READ = frozenset(
    {
        "r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "lora_bias",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
    }
    | {
        "target_modules",
        "exclude_modules",
        "target_parameters",
        "layers_to_transform",
        "layers_pattern",
    }
)
# What has no part in it once the weights are trained.
_IDLE = frozenset(
    {
        "peft_type",
        "peft_version",
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    }
    | {
        "lora_dropout",
        "init_lora_weights",
        "eva_config",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
    }
)
# Initialisations that leave the base's weights as they are; the others (PiSSA, OLoRA, CorDA, ...)
# take a part of them out, and then the base without the adapter is not the base.
_INITS = (True, False, "gaussian", "eva", "orthogonal")
_PROMPTS = {
    "PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
}
_REMEDY = (
    "Merge it into its base (PEFT's `merge_and_unload`) and serve the result as `checkpoint`; the "
    "base can be its "
    "`reference_checkpoint`"
)


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A LoRA adapter as read from its files. `base`: what it says it was trained on, if it says
    so."""

    name: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    base: str | None

    @classmethod
    def read(cls, name: str, *, revision: str | None, allow_pickle: bool) -> Adapter:
        """From a folder or the hub. Raises CheckpointRefused, and safetensors' own errors."""
        path = find(name, CONFIG, revision=revision)
        if path is None:
            raise CheckpointRefused(f"`adapter` `{name}` has no {CONFIG}")
        config = json.loads(path.read_text(encoding="utf-8"))
        _refuse_other_kinds(name, config)
        candidates = _WEIGHTS if allow_pickle else _WEIGHTS[:1]
        files = (find(name, candidate, revision=revision) for candidate in candidates)
        weights = next((file for file in files if file is not None), None)
        if weights is None:
            raise CheckpointRefused(f"`adapter` `{name}` has no {' or '.join(candidates)}")
        is_safe = weights.suffix == ".safetensors"
        tensors = (
            load_file(weights)
            if is_safe
            else torch.load(weights, map_location="cpu", weights_only=True)
        )
        base = config.get("base_model_name_or_path")
        return cls(name, {key: config[key] for key in _READ & set(config)}, tensors, base or None)

    def add_to(self, model: Any) -> None:
        """Puts the adapter on the model, in the dtype of its weights; DoRA's magnitudes in float32,
        because they stand for those of the base's weights and rounded would lose what was learned.

        Raises CheckpointRefused if one of its weights has no place in the model, or a place gets no
        weight.
        """
        from peft import LoraConfig  # not needed where no deployment has an adapter
        from peft.functional import inject_adapter_in_model, set_peft_model_state_dict

        own = {key for key in self.tensors if ".lora_" in key}
        others = sorted(
            key for key in set(self.tensors) - own if not _is_copy(model, key, self.tensors[key])
        )
        if others:
            raise CheckpointRefused(
                f"`adapter` `{self.name}` holds {few(others)}, weights in place of the base's. "
                f"{_REMEDY}"
            )
        tensors = {key: self.tensors[key] for key in own}
        try:
            inject_adapter_in_model(
                LoraConfig(**self.config, inference_mode=True), model, low_cpu_mem_usage=True
            )
            found = set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=True)
            for name, parameter in model.named_parameters():
                if "lora_magnitude_vector" in name:
                    parameter.data = tensors[
                        f"base_model.model.{name.removesuffix('.default.weight')}"
                    ].float()
        except (
            Exception
        ) as error:  # PEFT and torch raise of all kinds for modules and shapes that do not fit
            raise CheckpointRefused(
                f"`adapter` `{self.name}` does not fit the model: {error}"
            ) from error
        if found.unexpected_keys:
            raise CheckpointRefused(
                f"`adapter` `{self.name}` holds {few(sorted(found.unexpected_keys))}, which the "
                "model has no place for"
            )
        empty = sorted(name for name, parameter in model.named_parameters() if parameter.is_meta)
        if empty:
            raise CheckpointRefused(
                f"`adapter` `{self.name}` does not hold {few(empty)}, which its configuration names"
            )


class Switch:
    """Takes a model's adapter off around a pass. It is on before and after, whatever happens
    within."""

    def __init__(self, model: Any) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers: list[Any] = [
            module for module in model.modules() if isinstance(module, BaseTunerLayer)
        ]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the model is its base. Raises RuntimeError if PEFT's layers do not say that
        they are off."""
        try:
            self._set(off=True)
            if not all(layer.disable_adapters for layer in self._layers):
                raise RuntimeError("this version of PEFT switches adapters off in another way")
            yield
        finally:
            self._set(off=False)

    def _set(self, *, off: bool) -> None:
        # `enable_adapters` would also walk all parameters for `requires_grad`, some 50 ms in a
        # model of 32 layers.
        for layer in self._layers:
            layer._disable_adapters = off


def find(source: str, file: str, *, revision: str | None) -> Path | None:
    """A file of a folder or hub repository; None if it has none of that name."""
    try:
        found = cached_file(source, file, revision=revision)
    except OSError:  # what transformers raises for a file that is not there
        return None
    return None if found is None else Path(found)


def _is_copy(model: Any, name: str, tensor: Tensor) -> bool:
    """Whether it is a weight of the base as the base has it: PEFT stores those under an adapted
    embedding or head."""
    try:
        weight = model.get_parameter(
            name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        )
    except AttributeError:
        return False
    return weight.shape == tensor.shape and torch.equal(weight, tensor.to(weight))


def _refuse_other_kinds(name: str, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind in _PROMPTS:
        raise CheckpointRefused(
            f"`adapter` `{name}` is of type {kind}, which reads positions of its own that a "
            "reference would not have; "
            "only LORA can be served"
        )
    if kind != "LORA":
        raise CheckpointRefused(
            f"`adapter` `{name}` is of type {kind}; only LORA can be served. {_REMEDY}"
        )
    init = config.get("init_lora_weights", True)
    if init not in _INITS:
        raise CheckpointRefused(
            f"`adapter` `{name}` has `init_lora_weights` {init!r}, which changes the weights of "
            "the base; convert it "
            "to plain LoRA (`path_initial_model_for_weight_conversion` of PEFT's `save_pretrained`)"
        )
    for key in sorted(set(config) - _READ - _IDLE):
        if config[key] and (key, config[key]) != ("bias", "none"):
            raise CheckpointRefused(
                f"`adapter` `{name}` sets `{key}`, more than LoRA weights on a base. {_REMEDY}"
            )
