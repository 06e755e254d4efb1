"""Loads a checkpoint from a folder or the hub, and refuses what cannot be served.

It knows transformers' Auto classes and no architecture by name; a reward model's head is for
`reward_model` to find, an adapter for `adapter`. Pickled weights and remote code are loaded only if
the operator's settings say so.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tokenreward.checkpoints.adapter import Adapter
from tokenreward.checkpoints.adapter_config import refuse_adapter_in_checkpoint
from tokenreward.checkpoints.default_dtype import loading
from tokenreward.checkpoints.gguf import find_gguf
from tokenreward.checkpoints.heads.value_head import ValueHead
from tokenreward.checkpoints.load_failure import refuse_failing, why_not_loaded
from tokenreward.checkpoints.mapped_files import own_memory
from tokenreward.checkpoints.model import load_model
from tokenreward.checkpoints.placement import ON_CPU, Placement, choose_devices
from tokenreward.checkpoints.placement.stages import place, refuse_split, trunk_of
from tokenreward.checkpoints.placement.streaming import streaming
from tokenreward.checkpoints.positions import has_table, padding_position
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.checkpoints.stored import Content, Stamp, contents_of, refuse_changed, stamps_of
from tokenreward.checkpoints.trunk import refuse_other_states
from tokenreward.checkpoints.weight_files import resolve, weights_in
from tokenreward.contract import Task
from tokenreward.settings import DeploymentSettings, HeadSettings, SettingsError

__all__ = ["Checkpoint", "CheckpointRefused", "load_checkpoint", "refuse_longer"]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded model in eval mode, with its tokenizer.

    Model and tokenizer are `Any`: transformers' Auto classes promise no types that hold for every
    architecture.

    Attributes:
        placement: The devices that its layers are on.
        head_format: How a reward model's head was stored (see `head_formats`).
        reference: The model that this one is compared with (see `reference`). It may be the same
            model, to be read without its adapter.
        head_settings: What the operator says of a reward model's head.
        adapter_base: The base that the adapter says it was trained on.
        adapter_config: What its configuration says of the function that the adapter is.
        is_classifier: Whether the model's own class scores a whole row, and tokens have no values
            (see `classifier`).
        stamps: Which place of which file each tensor was read from, where that can be told.
        files: The files of weights in its folders, as they were before they were read.
    """

    model: Any
    tokenizer: Any
    task: Task
    placement: Placement = ON_CPU
    head_format: str | None = None
    head_settings: HeadSettings | None = None
    reference: Checkpoint | None = None
    adapter_base: str | None = None
    adapter_config: dict[str, Any] | None = None
    is_classifier: bool = False
    stamps: dict[str, Stamp] = field(default_factory=dict)
    files: dict[Path, Content] = field(default_factory=dict)

    @property
    def trunk(self) -> Any:
        """The model without its head."""
        return trunk_of(self.model)

    @property
    def text_config(self) -> Any:
        """The language part of the configuration (multi-modal models nest it)."""
        return self.model.config.get_text_config()

    @cached_property
    def value_head(self) -> ValueHead:
        """A reward model's head. Raises CheckpointRefused."""
        return ValueHead.of(self.model, self.head_settings)

    @property
    def head_dim(self) -> int | None:
        """Size of the largest attention head, of its queries or its values; None if there is none.

        Heads of latent attention (MLA) have a part without positions and one with them. Layers of
        one model may differ (Gemma 4).
        """
        config = self.text_config
        configs = [config]
        if getattr(config, "is_heterogeneous", False):
            configs = list(config.per_layer_config)
        sizes = []
        for layer in configs:
            parts = [getattr(layer, f"qk_{part}_head_dim", None) or 0 for part in ("nope", "rope")]
            sizes += [sum(parts)]
            sizes += [getattr(layer, name, None) or 0 for name in ("head_dim", "v_head_dim")]
        if any(sizes):
            return int(max(sizes))
        hidden_size = getattr(config, "hidden_size", None)
        num_heads = getattr(config, "num_attention_heads", None)
        if not hidden_size or not num_heads:
            return None
        return int(hidden_size // num_heads)

    @property
    def vocab_size(self) -> int:
        """Ids from 0 to this, exclusive, have an embedding, also in the reference."""
        size = int(self.model.get_input_embeddings().weight.shape[0])
        if self.reference is not None:
            size = min(size, self.reference.vocab_size)
        return size

    @property
    def num_labels(self) -> int:
        """Ids from 0 to this, exclusive, can be predicted, also by the reference: a language head
        may have fewer rows than the embedding."""
        num_labels = self.vocab_size
        head = self.model.get_output_embeddings() if self.task == "causal_lm" else None
        if head is not None:
            num_labels = min(num_labels, int(head.weight.shape[0]))
        if self.reference is not None:
            num_labels = min(num_labels, self.reference.num_labels)
        return num_labels

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the positions allow, also the reference's; None if there is no
        limit."""
        limits = [self._own_max_positions]
        if self.reference is not None:
            limits.append(self.reference.max_positions)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def num_tabled_positions(self) -> int | None:
        """Longest sequence for which every table of positions has a row, also the reference's.

        Tables are learned or computed. None if there are none, as with rotary positions, which go
        on beyond `max_positions`.
        """
        num_positions = self._own_max_positions
        embedding = self.model.get_input_embeddings()
        if num_positions is not None and not has_table(self.trunk, embedding, num_positions):
            num_positions = None
        limits = [num_positions]
        if self.reference is not None:
            limits.append(self.reference.num_tabled_positions)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def _own_max_positions(self) -> int | None:
        num_positions = getattr(self.text_config, "max_position_embeddings", None) or 0
        if num_positions <= 0:  # some models write -1 for no limit
            return None
        first = 0 if self.padding_position is None else self.padding_position + 1
        return int(num_positions) - first

    @property
    def padding_position(self) -> int | None:
        """Behind which position the first token of a row stands; see `positions`."""
        return padding_position(self.model, self.text_config)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every EOS id that the generation config, the config or the tokenizer names."""
        eos_ids: set[int] = set()
        generation_config = getattr(self.model, "generation_config", None)
        for holder in (generation_config, self.model.config, self.tokenizer):
            ids = getattr(holder, "eos_token_id", None)
            if isinstance(ids, (list, tuple)):
                eos_ids.update(int(token_id) for token_id in ids)
            elif ids is not None:
                eos_ids.add(int(ids))
        return frozenset(eos_ids)


def load_checkpoint(
    settings: DeploymentSettings,
    devices: tuple[torch.device, ...] | None = None,
    *,
    stays_mapped: bool = False,
) -> Checkpoint:
    """The model and tokenizer that the settings name, without a reference (see `with_reference`).

    Args:
        settings: The deployment's.
        devices: The devices that its layers are spread over; None as the settings have it.
        stays_mapped: Leaves the model as its loader makes it, on the CPU, where its tensors may be
            the mapped pages of files. Such a model is for reading, and not for serving.

    Raises CheckpointRefused, also for a folder or a hub that could not be read.
    """
    source = resolve(settings.checkpoint)
    devices = devices or choose_devices(settings)
    gguf = None
    try:
        gguf = find_gguf(source, revision=settings.revision, allow_pickle=settings.allow_pickle)
        if gguf is not None:
            source = str(gguf.parent)
        refuse_adapter_in_checkpoint(source, settings, gguf)
        with loading():
            if stays_mapped:
                checkpoint, _ = _read(source, gguf, settings, ON_CPU.devices)
            else:
                checkpoint = _load(source, gguf, settings, devices)
    except CheckpointRefused as error:
        raise CheckpointRefused(
            f"`{settings.checkpoint}` cannot be served as {settings.task}: {error}"
        ) from None
    except Exception as error:
        # transformers and safetensors raise errors of all kinds for a file that is not right.
        raise CheckpointRefused(
            f"`{settings.checkpoint}` cannot be loaded as {settings.task}: "
            f"{why_not_loaded(error, source, settings, gguf=gguf)}"
        ) from error
    if settings.chat_template is not None:
        checkpoint.tokenizer.chat_template = settings.chat_template
    return checkpoint


def _load(
    source: str,
    gguf: Path | None,
    settings: DeploymentSettings,
    devices: tuple[torch.device, ...],
) -> Checkpoint:
    """Loads a model, puts it on its devices and runs it on a few tokens. Raises errors of all
    kinds."""
    checkpoint, starts = _read(source, gguf, settings, devices)
    model = checkpoint.model
    if checkpoint.is_classifier:
        refuse_split(model, devices)
    placement = place(model, devices, starts)
    own_memory(model)
    refuse_changed(checkpoint.files)
    checkpoint = replace(checkpoint, placement=placement)
    refuse_failing(checkpoint, settings)
    if settings.task == "reward_model" and not checkpoint.is_classifier:
        refuse_other_states(checkpoint.model, checkpoint.value_head, devices[0])
    return checkpoint


def _read(
    source: str,
    gguf: Path | None,
    settings: DeploymentSettings,
    devices: tuple[torch.device, ...],
) -> tuple[Checkpoint, list[tuple[int, ...]]]:
    """The checkpoint as its loader makes it: on the CPU, or spread over several devices.

    Returns:
        The checkpoint, not yet placed, and what `streaming` yields.

    Raises errors of all kinds.
    """
    paths = weights_in(source) if gguf is None else [gguf]
    files = contents_of([*paths, *weights_in(settings.adapter)])
    adapter = _adapter(settings)
    with streaming(devices) as starts:
        model, tokenizer, head_format = load_model(source, settings, adapter, gguf)
    model = model.eval().requires_grad_(False)
    checkpoint = Checkpoint(
        model=model,
        tokenizer=tokenizer,
        task=settings.task,
        head_format=head_format,
        head_settings=settings.head,
        adapter_base=None if adapter is None else adapter.base,
        adapter_config=None if adapter is None else adapter.config,
        is_classifier=settings.task == "reward_model" and head_format is None,
        stamps=stamps_of(model),
        files=files,
    )
    return checkpoint, starts


def _adapter(settings: DeploymentSettings) -> Adapter | None:
    """The deployment's adapter, as read from its files. Raises what `Adapter.read` raises."""
    if settings.adapter is None:
        return None
    return Adapter.read(
        settings.adapter, revision=settings.adapter_revision, allow_pickle=settings.allow_pickle
    )


def refuse_longer(checkpoint: Checkpoint, settings: DeploymentSettings) -> None:
    """Raises SettingsError for a `max_sequence_tokens` that runs out of the model's positions."""
    num_tokens, limit = settings.max_sequence_tokens, checkpoint.num_tabled_positions
    if num_tokens is not None and limit is not None and num_tokens > limit:
        raise SettingsError(
            f"deployment `{settings.name}`: `max_sequence_tokens` is {num_tokens}, the model has "
            f"{limit} positions"
        )
