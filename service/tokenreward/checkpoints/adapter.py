"""A LoRA adapter on a loaded model (Hu et al. 2021, 2106.09685): added in place, and switched off
around a pass.

    W x becomes W x + s B A x, and W x again while it is switched off

The base's weights stay where they are and the model keeps its class. So a policy and the reference
it was tuned from are one copy in memory, and the switched-off pass is the base's own, bit for bit.
What PEFT would silently drop or change (parts of the configuration, weights without a place) is
refused. It knows PEFT's files and no architecture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tokenreward.checkpoints.refusal import CheckpointRefused, few
from tokenreward.checkpoints.weight_files import find

CONFIG = "adapter_config.json"
_SAFE, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."  # PEFT's, before the model's own names

# The fields of a configuration that say which function the adapter is.
_READ = frozenset({
    "r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "rank_pattern",
    "alpha_pattern", "target_modules", "exclude_modules", "target_parameters",
    "layers_to_transform", "layers_pattern",
})  # fmt: skip
# The fields that have no part in it once the weights are trained. Any other field must be off.
_IDLE = frozenset({
    "peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision",
    "inference_mode", "lora_dropout", "init_lora_weights", "eva_config", "megatron_core",
    "qalora_group_size", "runtime_config",
})  # fmt: skip
# Initialisations that leave the base's weights as they are; the others (PiSSA, OLoRA, CorDA, ...)
# take a part of them out, and then the base without the adapter is not the base.
_INITS = (True, False, "gaussian", "eva", "orthogonal")
_PROMPT_TYPES = frozenset({
    "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT",
    "CPT",
})  # fmt: skip
_REMEDY = (
    "Merge it into its base (PEFT's `merge_and_unload`) and serve the result as `checkpoint`; the "
    "base can be its `reference_checkpoint`"
)


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A LoRA adapter as read from its files.

    Attributes:
        name: The folder or hub repository.
        config: The fields of its configuration that say which function it is.
        tensors: Its weights, by PEFT's names.
        base: The base that it says it was trained on, if it says so.
    """

    name: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    base: str | None

    @classmethod
    def read(cls, name: str, *, revision: str | None, allow_pickle: bool) -> Adapter:
        """From a folder or the hub.

        Raises:
            CheckpointRefused: It is no adapter, or one that cannot be served.
            OSError: The folder or the hub could not be read. A damaged file raises the error of
                safetensors or torch.
        """
        path = find(name, CONFIG, revision=revision)
        if path is None:
            raise CheckpointRefused(f"`adapter` `{name}` has no {CONFIG}")
        config = json.loads(path.read_text(encoding="utf-8"))
        _refuse_config(name, config)
        candidates = [_SAFE, _PICKLED] if allow_pickle else [_SAFE]
        weights = find(name, *candidates, revision=revision)
        if weights is None:
            raise CheckpointRefused(f"`adapter` `{name}` has no {' or '.join(candidates)}")
        if weights.suffix == ".safetensors":
            tensors = load_file(weights)
        else:
            tensors = torch.load(weights, map_location="cpu", weights_only=True)
        base = config.get("base_model_name_or_path") or None
        return cls(name, {key: config[key] for key in _READ & set(config)}, tensors, base)

    def add_to(self, model: Any) -> None:
        """Puts the adapter on the model, in the dtype of the model's weights.

        DoRA's magnitudes stay in float32: they stand for the norms of the base's weights, and
        rounded would lose what was learned.

        Raises:
            CheckpointRefused: One of its weights has no place in the model, or a place gets no
                weight.
        """
        from peft import LoraConfig  # not needed where no deployment has an adapter
        from peft.functional import inject_adapter_in_model, set_peft_model_state_dict

        tensors = self._lora_tensors(model)
        try:
            config = LoraConfig(**self.config, inference_mode=True)
            inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
            result = set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=True)
            for name, parameter in model.named_parameters():
                if "lora_magnitude_vector" in name:
                    key = _PREFIX + name.removesuffix(".default.weight")
                    parameter.data = tensors[key].float()
        except Exception as error:
            # PEFT and torch raise errors of all kinds for modules and shapes that do not fit.
            raise CheckpointRefused(
                f"`adapter` `{self.name}` does not fit the model: {error}"
            ) from error
        if result.unexpected_keys:
            raise CheckpointRefused(
                f"`adapter` `{self.name}` holds {few(sorted(result.unexpected_keys))}, which the "
                "model has no place for"
            )
        empty = sorted(name for name, parameter in model.named_parameters() if parameter.is_meta)
        if empty:
            raise CheckpointRefused(
                f"`adapter` `{self.name}` does not hold {few(empty)}, which its configuration names"
            )

    def _lora_tensors(self, model: Any) -> dict[str, Tensor]:
        """The tensors of LoRA's matrices. Refuses weights that replace those of the base, but for
        plain copies: PEFT stores the weight under an adapted embedding or head, too."""
        lora, others = {}, []
        for key, tensor in self.tensors.items():
            if ".lora_" in key:
                lora[key] = tensor
            elif not _is_copy(model, key, tensor):
                others.append(key)
        if others:
            raise CheckpointRefused(
                f"`adapter` `{self.name}` holds {few(sorted(others))}, weights in place of the "
                f"base's. {_REMEDY}"
            )
        return lora


def lora_layers(model: Any) -> list[Any]:
    """PEFT's layers of a model, which hold the parts of its adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def without_adapter(layers: Sequence[Any]) -> Iterator[None]:
    """Within it, the model that these layers belong to is its base. Its adapter is on before and
    after, whatever happens within.

    Args:
        layers: All of the model's `lora_layers`.

    Raises:
        RuntimeError: The layers do not say that they are off.
    """
    # PEFT's `enable_adapters` would also walk all parameters for `requires_grad`, some 50 ms in a
    # model of 32 layers.
    try:
        for layer in layers:
            layer._disable_adapters = True
        if not all(layer.disable_adapters for layer in layers):
            raise RuntimeError("this version of PEFT switches adapters off in another way")
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def _is_copy(model: Any, name: str, tensor: Tensor) -> bool:
    """Whether the tensor equals the weight of the base that it would stand for."""
    try:
        weight = model.get_parameter(name.removeprefix(_PREFIX).replace(".base_layer.", "."))
    except AttributeError:
        return False
    return weight.shape == tensor.shape and torch.equal(weight, tensor.to(weight))


def _refuse_config(name: str, config: dict[str, Any]) -> None:
    """Refuses an adapter that is more, or other, than LoRA weights on a base."""
    kind = config.get("peft_type")
    if kind in _PROMPT_TYPES:
        raise CheckpointRefused(
            f"`adapter` `{name}` is of type {kind}, which reads positions of its own that a "
            "reference would not have; only LORA can be served"
        )
    if kind != "LORA":
        raise CheckpointRefused(
            f"`adapter` `{name}` is of type {kind}; only LORA can be served. {_REMEDY}"
        )
    init = config.get("init_lora_weights", True)
    if init not in _INITS:
        raise CheckpointRefused(
            f"`adapter` `{name}` has `init_lora_weights` {init!r}, which changes the weights of "
            "the base; convert it to plain LoRA (`path_initial_model_for_weight_conversion` of "
            "PEFT's `save_pretrained`)"
        )
    # Fields that are unknown here are refused as well: a later PEFT may compute something else.
    for key in sorted(set(config) - _READ - _IDLE):
        if config[key] and (key, config[key]) != ("bias", "none"):
            raise CheckpointRefused(
                f"`adapter` `{name}` sets `{key}`, more than LoRA weights on a base. {_REMEDY}"
            )
