"""Loads a checkpoint from a folder or the hub, and refuses what cannot be served.

It knows transformers' Auto classes and no architecture by name. Pickled weights and remote code are loaded only if the
operator's settings say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tokenreward.contract import Task
from tokenreward.settings import DeploymentSettings

DEMO_PREFIX = "demo:"
_DEMO_WEIGHTS = Path(__file__).resolve().parents[1] / "demo" / "weights"
_AUTO = {"causal_lm": AutoModelForCausalLM, "reward_model": AutoModelForSequenceClassification}


class CheckpointRefused(ValueError):
    """A checkpoint that cannot be served; the message says what is missing and what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A loaded model in eval mode, with its tokenizer. `trunk` is the model without its head.

    Model and tokenizer are `Any`: transformers' Auto classes promise no types that hold for every architecture.
    """

    model: Any
    tokenizer: Any
    task: Task
    device: torch.device

    @property
    def trunk(self) -> Any:
        return self.model.base_model

    @property
    def text_config(self) -> Any:
        """The language part of the configuration (multi-modal models nest it)."""
        return self.model.config.get_text_config()

    @property
    def vocab_size(self) -> int:
        """Ids from 0 to this, exclusive, have an embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the positions allow; None if the model sets no limit."""
        limit = getattr(self.text_config, "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def value_head(self) -> tuple[Tensor, Tensor | None]:
        """Weight [labels, hidden] and bias of a reward model's head."""
        head = self.model.score
        return head.weight, head.bias


def load_checkpoint(settings: DeploymentSettings) -> Checkpoint:
    """The model and tokenizer that the settings name. Raises CheckpointRefused."""
    source = resolve(settings.checkpoint)
    device = choose_device(settings)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
        model, info = _AUTO[settings.task].from_pretrained(
            source,
            revision=settings.revision,
            dtype=getattr(torch, settings.dtype),
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=None if settings.allow_pickle else True,
            ignore_mismatched_sizes=True,  # so that they are listed, and refused below by name
            output_loading_info=True,
        )
    except Exception as error:  # transformers and safetensors raise of all kinds for a file that is not right
        raise CheckpointRefused(f"`{settings.checkpoint}` cannot be loaded as {settings.task}: {error}") from error
    refuse_incomplete(settings, info)
    if settings.chat_template is not None:
        tokenizer.chat_template = settings.chat_template
    model = model.eval().requires_grad_(False).to(device)
    checkpoint = Checkpoint(model=model, tokenizer=tokenizer, task=settings.task, device=device)
    if settings.task == "reward_model":
        _refuse_headless(settings, checkpoint)
    return checkpoint


def resolve(checkpoint: str) -> str:
    """A folder or hub id as transformers wants it. Raises CheckpointRefused for a demo model that does not exist."""
    if not checkpoint.startswith(DEMO_PREFIX):
        return checkpoint
    name = checkpoint.removeprefix(DEMO_PREFIX)
    known = sorted(folder.name for folder in _DEMO_WEIGHTS.glob("*") if folder.is_dir())
    if name not in known:
        raise CheckpointRefused(f"no embedded model `{name}`; there are {', '.join(known)}")
    return str(_DEMO_WEIGHTS / name)


def choose_device(settings: DeploymentSettings) -> torch.device:
    """`auto` is a GPU if one is visible and the deployment reserves one. Raises CheckpointRefused."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise CheckpointRefused(f"deployment `{settings.name}` wants device `cuda` and torch sees none")
    if settings.device == "cuda" or (settings.device == "auto" and settings.num_gpus and torch.cuda.is_available()):
        return torch.device("cuda", 0)
    return torch.device("cpu")


def refuse_incomplete(settings: DeploymentSettings, info: dict[str, object]) -> None:
    """Refuses weights that transformers would initialise at random with no more than a warning."""
    for kind, what in (("missing_keys", "does not hold"), ("mismatched_keys", "holds in another shape")):
        keys = sorted(key if isinstance(key, str) else key[0] for key in info.get(kind) or ())  # type: ignore[attr-defined]
        if keys:
            shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise CheckpointRefused(
                f"`{settings.checkpoint}` {what} {shown}: as a {settings.task} these weights would be random. "
                "Check `task` and the files of the checkpoint."
            )


def _refuse_headless(settings: DeploymentSettings, checkpoint: Checkpoint) -> None:
    if not isinstance(getattr(checkpoint.model, "score", None), nn.Linear):
        raise CheckpointRefused(
            f"`{settings.checkpoint}`: {type(checkpoint.model).__name__} has no linear head `score` over every token, "
            "which transformers' decoder classes have; encoders that pool their first token cannot be served"
        )
    num_labels = checkpoint.value_head[0].shape[0]
    if num_labels not in (1, 2):
        raise CheckpointRefused(f"`{settings.checkpoint}` has {num_labels} labels; a reward model has 1 or 2")
