"""Other weights for a model that serves: checked against it, then copied into its own tensors.

`prepare_update` loads the new checkpoint just as a start would, on the CPU, and compares it with
the served one: class, configuration, tokenizer, adapter, and the name, shape and dtype of every
tensor, both ways. So whatever a start would refuse is refused, names are mapped as a start maps
them, and a model that has been updated is the model that a start would give. It changes nothing
that is served.

What it holds until then: tensors that keep the dtype of their file stay in it, and the file is held
open (see `stored`). The others, cast, de-quantised or merged, are in the host's memory. So a model
in the dtype of its files takes no memory beside one piece of a tensor, and a bfloat16 model of
float32 files takes a copy of the model in bfloat16.

`Update.copy` is the short part. Everything that computes with the model refers to these tensors, so
they are copied into and never replaced. This module knows no requests and no devices' threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenreward.alignment import fingerprint
from tokenreward.checkpoints.adapter import follow_low_rank
from tokenreward.checkpoints.checkpoint import Checkpoint, load_checkpoint
from tokenreward.checkpoints.mapped_files import Place
from tokenreward.checkpoints.refusal import CheckpointRefused, few
from tokenreward.checkpoints.stored import (
    FileStamp,
    HeldFile,
    StoredTensor,
    named_tensors,
    places_of,
    refuse_changed,
    stamps_of,
)
from tokenreward.settings import DeploymentSettings

_REDEPLOY = "deploy it anew instead"
# Fields of config.json that say nothing of what the model computes.
_IDLE_FIELDS = frozenset({
    "_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype",
    "torch_dtype", "use_cache", "mean", "std", "problem_type", "initializer_range",
    "attention_dropout", "bos_token_id", "return_dict", "output_attentions",
    "output_hidden_states",
})  # fmt: skip


class Update:
    """Checked weights for one served model.

    Attributes:
        num_bytes: What `copy` copies.
    """

    def __init__(self, served: Checkpoint, new: Checkpoint) -> None:
        self._served = served
        self._files: dict[FileStamp, HeldFile] = {}
        self._copies: list[tuple[Tensor, StoredTensor]] = []
        self._stamps = stamps_of(new.model)
        self._affine: tuple[float, float] | None = None
        if served.task == "reward_model" and not served.is_classifier:
            self._affine = new.value_head.mean, new.value_head.std
        try:
            self._collect(new)
            refuse_changed(new.files)  # also those whose numbers are in memory by now
        except BaseException:
            self.close()
            raise
        self.num_bytes = sum(own.numel() * own.element_size() for own, _ in self._copies)

    def refuse_changed(self) -> None:
        """Raises OSError if a file has been written to since it was checked."""
        for file in self._files.values():
            file.refuse_changed()

    @torch.no_grad()
    def copy(self) -> None:
        """Copies the weights into the served model, tensor by tensor.

        Raises:
            OSError: A file could not be read, or was written to meanwhile. The model then has
                weights of both versions, and must not serve.
        """
        for own, stored in self._copies:
            stored.copy_to(own)
        self.refuse_changed()
        if self._affine is not None:
            self._served.value_head.mean, self._served.value_head.std = self._affine
        follow_low_rank(self._served.model)
        self._served.stamps.clear()
        self._served.stamps.update(self._stamps)

    def close(self) -> None:
        """Lets the files go."""
        for file in self._files.values():
            file.close()

    def _collect(self, new: Checkpoint) -> None:
        """Notes what is to be copied, and from where, and looks at every number of it.

        Tensors that are served from the same place of the same unchanged file are left out: of a
        LoRA adapter on a base that stays, only the adapter is copied.
        """
        sources = dict(named_tensors(new.model))
        places = places_of(new.model)
        seen: dict[int, str] = {}
        for name, own in named_tensors(self._served.model):
            if id(own) in seen and sources[name] is not sources[seen[id(own)]]:
                raise CheckpointRefused(
                    f"{name} and {seen[id(own)]} are one tensor in the served model and two in the "
                    f"new one: {_REDEPLOY}"
                )
            if id(own) in seen:
                continue
            seen[id(own)] = name
            stored = self._stored(name, sources[name], places.get(name))
            if name in self._stamps and self._served.stamps.get(name) == self._stamps[name]:
                continue
            if not stored.is_finite():
                raise CheckpointRefused(
                    f"{name}{_in_file(places.get(name))} holds numbers that are not finite in "
                    f"{str(stored.dtype).removeprefix('torch.')}"
                )
            self._copies.append((own, stored))

    def _stored(self, name: str, source: Tensor, place: Place | None) -> StoredTensor:
        """Where the numbers of a tensor are from now on: in its file, if that has them."""
        if name not in self._stamps:
            # A tensor that is the mapped page of a file would be what the file becomes.
            memory = source if place is None else source.clone()
            return StoredTensor(source.dtype, source.shape, memory=memory)
        stamp, offset = self._stamps[name]
        if stamp not in self._files:
            self._files[stamp] = HeldFile(stamp)
        file = self._files[stamp]
        return StoredTensor(source.dtype, source.shape, file=file, offset=offset)


def prepare_update(served: Checkpoint, settings: DeploymentSettings) -> Update:
    """Loads and checks other weights for one served model. It blocks.

    Args:
        served: What serves. It is left as it is.
        settings: The settings that the model was loaded by, with the new weights.

    Raises:
        CheckpointRefused: They cannot take the place of the served weights. The message names the
            tensor and the file where it is one of them, with the shapes.
        OSError: A file changed while it was read, or could not be read.
    """
    new = load_checkpoint(settings, stays_mapped=True)
    try:
        _refuse_other_kind(served, new, settings)
        _refuse_other_tensors(served.model, new.model)
        return Update(served, new)
    except CheckpointRefused as error:
        raise CheckpointRefused(
            f"`{settings.checkpoint}` cannot take the place of the served weights: {error}"
        ) from None


def _refuse_other_kind(served: Checkpoint, new: Checkpoint, settings: DeploymentSettings) -> None:
    """Refuses a checkpoint that is another function of its tensors than the served one is."""
    if getattr(served.model, "hf_quantizer", None) or getattr(new.model, "hf_quantizer", None):
        raise CheckpointRefused(f"quantised weights cannot be changed in place: {_REDEPLOY}")
    facts = {
        "the class of the model": (type(served.model).__name__, type(new.model).__name__),
        "the configuration of the adapter": (
            _unordered(served.adapter_config),
            _unordered(new.adapter_config),
        ),
        "the end-of-text tokens": (sorted(served.eos_ids), sorted(new.eos_ids)),
        "the vocabulary of the tokenizer": (
            fingerprint(served.tokenizer.get_vocab()),
            fingerprint(new.tokenizer.get_vocab()),
        ),
    }
    if settings.chat_template is None:
        templates = served.tokenizer.chat_template, new.tokenizer.chat_template
        facts["the chat template"] = templates
    gates = [getattr(of.model, "gate_reads", None) for of in (served, new)]
    facts["what the gate of the labels reads"] = gates[0], gates[1]
    for what, (ours, theirs) in facts.items():
        if ours != theirs:
            raise CheckpointRefused(f"{what} is another one: {_REDEPLOY}")
    idle = set(_IDLE_FIELDS)
    if not served.is_classifier:
        idle.add("pad_token_id")  # trainers set it; only a classifier reads it
    configs = served.model.config.to_dict(), new.model.config.to_dict()
    for field in sorted(set(configs[0]) | set(configs[1]) - idle):
        ours, theirs = (_without(config.get(field), idle) for config in configs)
        if field not in idle and ours != theirs:
            raise CheckpointRefused(
                f"config.json says `{field}` {theirs!r}, and the served model has {ours!r}: "
                f"{_REDEPLOY}"
            )


def _unordered(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """The configuration of an adapter. PEFT writes sets as lists, in any order."""
    if config is None:
        return None
    return {
        field: sorted(value) if isinstance(value, list) else value
        for field, value in config.items()
    }


def _without(value: Any, idle: set[str]) -> Any:
    """A field of a configuration, which may be a configuration itself, without idle fields."""
    if not isinstance(value, Mapping):
        return value
    return {key: _without(part, idle) for key, part in value.items() if key not in idle}


def _refuse_other_tensors(served: Any, new: Any) -> None:
    """Refuses a model whose tensors are not those of the served one."""
    ours, theirs, places = dict(named_tensors(served)), dict(named_tensors(new)), places_of(new)
    absent, extra = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    if absent or extra:
        raise CheckpointRefused(
            f"it lacks {few(absent) or 'no tensor'} of the served model and adds "
            f"{few(extra) or 'none'}: {_REDEPLOY}"
        )
    for name, own in ours.items():
        tensor = theirs[name]
        if (own.shape, own.dtype) != (tensor.shape, tensor.dtype):
            raise CheckpointRefused(
                f"{name}{_in_file(places.get(name))} is {_form(tensor)}, and the served model has "
                f"{_form(own)}: {_REDEPLOY}"
            )
    unread = sorted(
        getattr(new, "unread_tensors", set()) - getattr(served, "unread_tensors", set())
    )
    if unread:
        raise CheckpointRefused(
            f"it holds {few(unread)}, which the served model has no place for: {_REDEPLOY}"
        )


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _in_file(place: Place | None) -> str:
    return "" if place is None else f" in {Path(place.file).name}"
