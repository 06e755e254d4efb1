"""What the configuration of a PEFT adapter says, and what of it cannot be served.

What PEFT would silently drop or change is refused by the name of its field. It reads no weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.checkpoints.weight_files import PICKLED, SAFE, find, list_files
from tokenreward.settings import DeploymentSettings

CONFIG = "adapter_config.json"
_TEMPLATE = "chat_template.jinja"
# The fields of a configuration that say which function the adapter is.
READ = frozenset({
    "r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "rank_pattern",
    "alpha_pattern", "target_modules", "exclude_modules", "target_parameters",
    "layers_to_transform", "layers_pattern", "modules_to_save",
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
REMEDY = (
    "Merge it into its base (PEFT's `merge_and_unload`) and serve the result as `checkpoint`; of a "
    "policy, the base can be the `reference_checkpoint`"
)


def refuse_adapter_in_checkpoint(
    source: str, settings: DeploymentSettings, gguf: Path | None
) -> None:
    """Refuses a checkpoint whose folder holds an adapter: transformers would put it on the model
    that the adapter names, or on the model beside it, without a word.

    Args:
        source: The checkpoint's folder or hub id.
        settings: The deployment's.
        gguf: The GGUF file in it that is the checkpoint.

    Raises:
        CheckpointRefused: The message names what to write.
        OSError: The folder or the hub could not be asked.
    """
    path = find(source, CONFIG, revision=settings.revision)
    if path is None:
        return
    if gguf is not None:
        raise CheckpointRefused(
            f"{CONFIG} lies beside {gguf.name}, and transformers would load that adapter's base in "
            f"its place: move {gguf.name} to a folder of its own"
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    refuse_config(source, config)
    base = config.get("base_model_name_or_path") or "ITS BASE"
    remedy = f"write `checkpoint: {base}` and `adapter: {settings.checkpoint}`"
    if list_files(source, settings.revision).intersection(SAFE + PICKLED):
        remedy += f", or take {CONFIG} away if the weights beside it are the whole model"
    raise CheckpointRefused(f"it holds an adapter ({CONFIG}): {remedy}")


def refuse_config(name: str, config: dict[str, Any]) -> None:
    """Refuses an adapter that is more, or other, than LoRA weights on a base."""
    kind = config.get("peft_type")
    if kind in _PROMPT_TYPES:
        raise CheckpointRefused(
            f"`adapter` `{name}` is of type {kind}, which reads positions of its own that a "
            "reference would not have; only LORA can be served"
        )
    if kind != "LORA":
        raise CheckpointRefused(
            f"`adapter` `{name}` is of type {kind}; only LORA can be served. {REMEDY}"
        )
    init = config.get("init_lora_weights", True)
    if init not in _INITS:
        raise CheckpointRefused(
            f"`adapter` `{name}` has `init_lora_weights` {init!r}, which changes the weights of "
            "the base; convert it to plain LoRA (`path_initial_model_for_weight_conversion` of "
            "PEFT's `save_pretrained`)"
        )
    # Fields that are unknown here are refused as well: a later PEFT may compute something else.
    for key in sorted(set(config) - READ - _IDLE):
        if config[key] and (key, config[key]) != ("bias", "none"):
            raise CheckpointRefused(
                f"`adapter` `{name}` sets `{key}`, more than LoRA weights on a base. {REMEDY}"
            )


def adapter_template(settings: DeploymentSettings) -> str | None:
    """The chat template in an adapter's folder: trainers save the one that they trained with.

    It is not read. None if there is none, or if the settings have a template.

    Raises:
        OSError: The folder or the hub could not be read.
    """
    if settings.adapter is None or settings.chat_template is not None:
        return None
    path = find(settings.adapter, _TEMPLATE, revision=settings.adapter_revision)
    return None if path is None else path.read_text(encoding="utf-8")
