"""Loads a checkpoint from a folder or the hub, and refuses what cannot be served.

It knows transformers' Auto classes and no architecture by name; a reward model's head is for
`reward_model` to find, an adapter for `adapter`. Pickled weights and remote code are loaded only if
the operator's settings say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenreward.checkpoints.adapter import CONFIG, Adapter, find
from tokenreward.checkpoints.refusal import CheckpointRefused, refuse_incomplete
from tokenreward.checkpoints.reward_model import load_reward_model, refuse_unreadable
from tokenreward.checkpoints.value_head import ValueHead
from tokenreward.contract import Task
from tokenreward.settings import DeploymentSettings, SettingsError

__all__ = [
    "Checkpoint",
    "CheckpointRefused",
    "choose_device",
    "load_checkpoint",
    "refuse_longer",
    "resolve",
]

DEMO_PREFIX = "demo:"
_MOST_LEADING_POSITIONS = 8  # rows of a table before the first position's
_DEMO_WEIGHTS = Path(__file__).resolve().parents[1] / "demo" / "weights"


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A loaded model in eval mode, with its tokenizer. `trunk` is the model without its head.
    `head_format`: how a reward model's head was stored (see `head_formats`). `reference`: the other
    half of a pair (see `pair`); it may be the same model, to be read without its adapter.
    `adapter_base`: the base that the adapter says it has.

    Model and tokenizer are `Any`: transformers' Auto classes promise no types that hold for every
    architecture.
    """

    model: Any
    tokenizer: Any
    task: Task
    device: torch.device
    head_format: str | None = None
    reference: Checkpoint | None = None
    adapter_base: str | None = None

    @property
    def trunk(self) -> Any:
        return self.model.base_model

    @property
    def text_config(self) -> Any:
        """The language part of the configuration (multi-modal models nest it)."""
        return self.model.config.get_text_config()

    @property
    def head_dim(self) -> int | None:
        """Size of an attention head; None if there is none, or if its values have another size than
        its queries."""
        config = self.text_config
        if getattr(config, "v_head_dim", None) is not None:
            return None
        hidden_size, num_heads = (
            getattr(config, name, None) for name in ("hidden_size", "num_attention_heads")
        )
        own = getattr(config, "head_dim", None) or (
            hidden_size // num_heads if hidden_size and num_heads else None
        )
        return None if own is None else int(own)

    @property
    def vocab_size(self) -> int:
        """Ids from 0 to this, exclusive, have an embedding, also in the reference."""
        own = int(self.model.get_input_embeddings().weight.shape[0])
        return own if self.reference is None else min(own, self.reference.vocab_size)

    @property
    def num_labels(self) -> int:
        """Ids from 0 to this, exclusive, can be predicted: a language head may have fewer rows than
        the embedding."""
        head = self.model.get_output_embeddings() if self.task == "causal_lm" else None
        own = self.vocab_size if head is None else min(self.vocab_size, int(head.weight.shape[0]))
        return own if self.reference is None else min(own, self.reference.num_labels)

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the positions allow, also the reference's; None if there is no
        limit."""
        own = getattr(self.text_config, "max_position_embeddings", None)
        limits = [own, None if self.reference is None else self.reference.max_positions]
        return min((int(limit) for limit in limits if limit), default=None)

    @property
    def num_tabled_positions(self) -> int | None:
        """`max_positions` if they are rows of a table, learned or computed, so that a longer
        sequence has none to read; None if they are not, as with rotary ones, which go on."""
        own, read = self.max_positions, self.model.get_input_embeddings()
        modules = [module for module in self.trunk.modules() if module is not read]
        tables = [module.weight for module in modules if isinstance(module, torch.nn.Embedding)]
        tables += [buffer for module in modules for buffer in module.buffers(recurse=False)]
        sizes = [table.shape[0] - own for table in tables if own is not None and table.dim() == 2]
        tabled = own if any(0 <= size <= _MOST_LEADING_POSITIONS for size in sizes) else None
        limits = [tabled, None if self.reference is None else self.reference.num_tabled_positions]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every EOS id that the generation config, the config or the tokenizer names."""
        found: set[int] = set()
        for holder in (
            getattr(self.model, "generation_config", None),
            self.model.config,
            self.tokenizer,
        ):
            ids = getattr(holder, "eos_token_id", None)
            found.update(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
        return frozenset(int(token_id) for token_id in found)

    @property
    def value_head(self) -> ValueHead:
        """A reward model's head. Raises CheckpointRefused."""
        return ValueHead.of(self.model)


def load_checkpoint(settings: DeploymentSettings) -> Checkpoint:
    """The model and tokenizer that the settings name. Raises CheckpointRefused."""
    source, device = resolve(settings.checkpoint), choose_device(settings)
    try:
        adapter = _adapter(source, settings)
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
        model, head_format = _model(source, settings)
        if adapter is not None:
            adapter.add_to(model)
        model = model.eval().requires_grad_(False).to(device)
        if settings.task == "reward_model":
            refuse_unreadable(model, ValueHead.of(model), device)
    except CheckpointRefused as error:
        raise CheckpointRefused(
            f"`{settings.checkpoint}` cannot be served as {settings.task}: {error}"
        ) from None
    except (
        Exception
    ) as error:  # transformers and safetensors raise of all kinds for a file that is not right
        raise CheckpointRefused(
            f"`{settings.checkpoint}` cannot be loaded as {settings.task}: {error}"
        ) from error
    if settings.chat_template is not None:
        tokenizer.chat_template = settings.chat_template
    return Checkpoint(
        model=model,
        tokenizer=tokenizer,
        task=settings.task,
        device=device,
        head_format=head_format,
        adapter_base=None if adapter is None else adapter.base,
    )


def _model(source: str, settings: DeploymentSettings) -> tuple[Any, str | None]:
    """The model, and the format of a reward model's head."""
    arguments = {
        "revision": settings.revision,
        "dtype": getattr(torch, settings.dtype),
        "trust_remote_code": settings.trust_remote_code,
        "use_safetensors": None if settings.allow_pickle else True,
        "ignore_mismatched_sizes": True,  # so that they are listed, and refused by name
        "output_loading_info": True,
    }
    if settings.task == "reward_model":
        return load_reward_model(source, settings, arguments)
    model, info = AutoModelForCausalLM.from_pretrained(source, **arguments)
    refuse_incomplete(info)
    return model, None


def _adapter(source: str, settings: DeploymentSettings) -> Adapter | None:
    """The deployment's adapter. Raises CheckpointRefused for one that transformers would add by
    itself, unsaid."""
    if find(source, CONFIG, revision=settings.revision) is not None:
        raise CheckpointRefused(
            f"it holds an adapter ({CONFIG}): name it as `adapter`, and as `checkpoint` its base, "
            "in another folder"
        )
    if settings.adapter is None:
        return None
    return Adapter.read(
        settings.adapter, revision=settings.adapter_revision, allow_pickle=settings.allow_pickle
    )


def refuse_longer(checkpoint: Checkpoint, settings: DeploymentSettings) -> None:
    """Raises SettingsError for a `max_sequence_tokens` that runs out of the model's positions."""
    asked, limit = settings.max_sequence_tokens, checkpoint.num_tabled_positions
    if asked is not None and limit is not None and asked > limit:
        raise SettingsError(
            f"deployment `{settings.name}`: `max_sequence_tokens` is {asked}, the model has "
            f"{limit} positions"
        )


def resolve(checkpoint: str) -> str:
    """A folder or hub id as transformers wants it. Raises CheckpointRefused for a demo model that
    does not exist."""
    if not checkpoint.startswith(DEMO_PREFIX):
        return checkpoint
    name = checkpoint.removeprefix(DEMO_PREFIX)
    known = sorted(folder.name for folder in _DEMO_WEIGHTS.glob("*") if folder.is_dir())
    if name not in known:
        raise CheckpointRefused(f"no embedded model `{name}`; there are {', '.join(known)}")
    return str(_DEMO_WEIGHTS / name)


def choose_device(settings: DeploymentSettings) -> torch.device:
    """`auto` is a GPU if one is visible and the deployment reserves one. Raises
    CheckpointRefused."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise CheckpointRefused(
            f"deployment `{settings.name}` wants device `cuda` and torch sees none"
        )
    if settings.device == "cuda" or (
        settings.device == "auto" and settings.num_gpus and torch.cuda.is_available()
    ):
        return torch.device("cuda", 0)
    return torch.device("cpu")
