"""The settings of one deployment, its value head and its scorers.

They know nothing of models, and nothing of other deployments.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, field_validator, model_validator

from tokenreward.settings.autoscaling import AutoscalingSettings
from tokenreward.wire import NAME_PATTERN
from tokenreward.wire.dependencies import score_source
from tokenreward.wire.weights import MAX_VERSION, Weights


class ScorerSettings(BaseModel, extra="forbid", frozen=True):
    """One named scorer on a deployment."""

    type: str = Field(
        description="A file of `tokenreward/scorers/`, or `package.module:Class` of your own."
    )
    name: str | None = Field(
        default=None, pattern=NAME_PATTERN, description="Unique in the config; default: the type."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Defaults for requests that do not set them."
    )

    @model_validator(mode="after")
    def _type_without_name_can_be_requested(self) -> ScorerSettings:
        if self.name is None and re.fullmatch(NAME_PATTERN, self.type) is None:
            raise ValueError(f"`name` is required: requests could not use `{self.type}` as one")
        return self

    @property
    def served_name(self) -> str:
        """The name that requests use."""
        return self.type if self.name is None else self.name

    @property
    def score_from(self) -> str | None:
        """The scorer that the gateway asks for the score of items that have none.

        It is the only option that the gateway reads.
        """
        return score_source(self.options)


class HeadSettings(BaseModel, extra="forbid", frozen=True):
    """What a reward model's files do not say about its value head."""

    tensor: str | None = Field(
        default=None,
        min_length=1,
        description="Name of the head in the checkpoint, as `reward.out`; default: the one known "
        "name that is there.",
    )
    activation: Literal["relu", "gelu", "silu", "tanh"] = Field(
        default="relu", description="Between the layers of a head that has several."
    )
    trunk_prefix: str | None = Field(
        default=None,
        description="What the trunk's names begin with, as `transformer`; default: what most do.",
    )
    label: int | None = Field(
        default=None, ge=0, description="Index of the label that is the value, of several."
    )
    label_weights: tuple[FiniteFloat, ...] | None = Field(
        default=None,
        min_length=1,
        description="One per label: the value is the weighted sum of the labels.",
    )

    @model_validator(mode="after")
    def _a_label_or_weights(self) -> HeadSettings:
        if self.label is not None and self.label_weights is not None:
            raise ValueError("`label` and `label_weights` exclude each other")
        return self


class DeploymentSettings(BaseModel, extra="forbid", frozen=True):
    """One checkpoint, held once, with every scorer that reads it."""

    name: str = Field(
        pattern=NAME_PATTERN, description="Route: the deployment answers at `/d/{name}`."
    )
    checkpoint: str = Field(
        min_length=1,
        description="Local folder, `.gguf` file, hub id, or `demo:base|sft|dpo|rm|smol` for an "
        "embedded model.",
    )
    adapter: str | None = Field(
        default=None,
        min_length=1,
        description="PEFT LoRA adapter that is put on `checkpoint`: local folder or hub id.",
    )
    reference_checkpoint: str | None = Field(
        default=None,
        min_length=1,
        description="The model that `implicit` compares with: local folder, hub id or embedded "
        "model. Default: `checkpoint` without its `adapter`, and the weights are then held once.",
    )
    version: int = Field(
        default=1,
        ge=0,
        le=MAX_VERSION,
        description="Version of the weights, stamped on every reply.",
    )
    task: Literal["causal_lm", "reward_model"] = Field(description="How the checkpoint is loaded.")
    scorers: tuple[ScorerSettings, ...] = Field(
        min_length=1, description="The scorers served on this checkpoint."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Dtype of the trunk."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="`auto` takes a GPU if Ray grants one."
    )
    revision: str | None = Field(default=None, description="Hub revision.")
    adapter_revision: str | None = Field(default=None, description="Hub revision of `adapter`.")
    reference_revision: str | None = Field(default=None, description="The reference's revision.")
    trust_remote_code: bool = Field(default=False, description="Run the checkpoint's Python code.")
    allow_pickle: bool = Field(default=False, description="Load `.bin` weights, which are pickles.")
    suffix_text: str | None = Field(
        default=None,
        description="Reward models: text read after the response; its last token is pooled.",
    )
    scored_text: Literal["conversation"] | None = Field(
        default=None,
        description="Reward models: `conversation` reads the response as the template renders it.",
    )
    normalize_reward: bool | None = Field(
        default=None,
        description="Reward models: (value - mean) / std by the checkpoint; default: as its "
        "config.json says.",
    )
    head: HeadSettings | None = Field(
        default=None, description="Reward models: the value head, where its files do not say all."
    )
    chat_template: str | None = Field(
        default=None, description="Jinja; replaces the tokenizer's own template."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Passed to the chat template; an item's own stand over."
    )
    max_sequence_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longest prompt + response; default: what the model's positions allow.",
    )
    max_batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Tokens in one forward pass; default: 4096 on a CPU, 16384 on a GPU.",
    )
    max_batch_requests: int = Field(default=512, ge=1, description="Items in one forward pass.")
    max_batch_s: float = Field(
        default=600.0,
        gt=0,
        allow_inf_nan=False,
        description="Longest forward pass: Ray replaces a replica whose pass takes longer.",
    )
    max_queued_tokens: int = Field(
        default=1_000_000,
        ge=1,
        description="Tokens that may wait; past it: 503. Each scorer of a request after the first "
        "counts for a sixteenth of the response.",
    )
    max_concurrent_requests: int = Field(
        default=1024, ge=1, description="Requests one replica holds at a time."
    )
    num_replicas: int = Field(default=1, ge=1, description="Replicas of this deployment.")
    autoscaling: AutoscalingSettings | None = Field(
        default=None,
        description="Instead of `num_replicas`: a number of replicas that follows the load.",
    )
    max_replicas_per_node: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="Most replicas of this deployment on one node of a cluster; default: as many "
        "as fit.",
    )
    num_cpus: float = Field(
        default=1,
        ge=0,
        allow_inf_nan=False,
        description="CPUs that Ray reserves per replica; also its threads.",
    )
    num_gpus: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="GPUs that Ray reserves per replica. The layers of a model are spread over 2 "
        "or more.",
    )

    @model_validator(mode="after")
    def _settings_of_reward_models_need_one(self) -> DeploymentSettings:
        for name in ("suffix_text", "scored_text", "normalize_reward", "head"):
            if getattr(self, name) is not None and self.task != "reward_model":
                raise ValueError(f"`{name}` has no effect with task `{self.task}`")
        if self.scored_text is not None and self.suffix_text is not None:
            raise ValueError("`suffix_text` has no effect with `scored_text`")
        return self

    @field_validator("num_gpus")
    @classmethod
    def _whole_gpus_or_a_share_of_one(cls, num_gpus: float) -> float:
        if num_gpus > 1 and not num_gpus.is_integer():
            raise ValueError("a replica has a share of one GPU, up to 1, or whole GPUs: 2, 3, ...")
        return num_gpus

    @model_validator(mode="after")
    def _revisions_need_their_repository(self) -> DeploymentSettings:
        repositories = ("adapter", "adapter"), ("reference", "reference_checkpoint")
        for name, repository in repositories:
            revision = f"{name}_revision"
            if getattr(self, revision) is not None and getattr(self, repository) is None:
                raise ValueError(f"`{revision}` has no effect without `{repository}`")
        return self

    @model_validator(mode="after")
    def _a_number_of_replicas_or_autoscaling(self) -> DeploymentSettings:
        if self.autoscaling is not None and "num_replicas" in self.model_fields_set:
            raise ValueError("`num_replicas` and `autoscaling` exclude each other")
        return self

    @property
    def max_replicas(self) -> int:
        """The most replicas that may run at a time."""
        if self.autoscaling is not None:
            return self.autoscaling.max_replicas
        return self.num_replicas

    @property
    def weights(self) -> Weights:
        """The weights that these settings name."""
        return Weights(
            checkpoint=self.checkpoint,
            version=self.version,
            adapter=self.adapter,
            reference_checkpoint=self.reference_checkpoint,
        )

    def with_weights(self, weights: Weights) -> DeploymentSettings:
        """These settings with other weights. A revision belongs to the repository that it was
        written for.

        Weights without an adapter are those of the checkpoint alone: with an adapter of these
        settings they would be others of the same version. A reference of these settings stays, if
        the weights name none.
        """
        changes: dict[str, Any] = {"version": weights.version}
        places = {"revision": "checkpoint", "adapter_revision": "adapter"}
        if weights.reference_checkpoint is not None:
            places["reference_revision"] = "reference_checkpoint"
        for revision, name in places.items():
            place = getattr(weights, name)
            if place != getattr(self, name):
                changes |= {name: place, revision: None}
        return self.model_copy(update=changes)

    @property
    def model(self) -> str:
        """The model's name in replies."""
        if self.adapter is None:
            return self.checkpoint
        return f"{self.checkpoint} + {self.adapter}"

    @property
    def reference(self) -> str | None:
        """The name of the model that this one is compared with, or None without one."""
        if self.reference_checkpoint is None and self.adapter is not None:
            return self.checkpoint
        return self.reference_checkpoint
