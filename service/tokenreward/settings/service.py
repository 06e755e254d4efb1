"""The settings of the whole service, and what has to agree between its deployments.

They know no scorer but by its name: what a type gives is checked where scorers are known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from tokenreward.settings.deployment import DeploymentSettings


class SettingsError(ValueError):
    """A configuration that cannot be served; the message names the setting."""


class ProtocolSettings(BaseModel, extra="forbid", frozen=True):
    """Which scorer answers another program's protocol, and how it is asked."""

    scorer: str | None = Field(
        default=None,
        description="The scorer that answers. Default: the first one of type `reward_model`; for "
        "log-probabilities, the first one of type `logprob`, else the first one that gives any.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="The scorer's options.")
    credit: dict[str, Any] = Field(
        default_factory=dict, description="Its `credit`, as in a request."
    )


class Settings(BaseModel, extra="forbid", frozen=True):
    """The whole service."""

    deployments: tuple[DeploymentSettings, ...] = Field(
        min_length=1, description="One entry per checkpoint."
    )
    host: str = Field(default="127.0.0.1", description="Address that HTTP listens on.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port that HTTP listens on.")
    api_keys_file: Path | None = Field(
        default=None,
        description="File with one key per line; every route but /healthz, /readyz, "
        "/openapi.json and /docs then wants one.",
    )
    admin_keys_file: Path | None = Field(
        default=None,
        description="File with one key per line, which open the routes that change weights; "
        "without it there are none.",
    )
    max_body_bytes: int = Field(
        default=16 * 2**20, ge=1, description="Largest request body; past it: 413."
    )
    max_body_memory_bytes: int = Field(
        default=256 * 2**20,
        ge=1,
        description="Bytes that one process holds of requests at a time: their bodies, and on the "
        "gateway what it makes of them and the deployments' replies; past it: 503.",
    )
    # The most are `MAX_ITEMS` of wire/limits.py, which this module cannot import: it needs msgspec.
    max_request_items: int = Field(
        default=4096, ge=1, le=2**16, description="Most items in one request; past it: 413."
    )
    request_timeout_s: float = Field(
        default=300.0,
        gt=0,
        allow_inf_nan=False,
        description="Deadline of a request that names none, and the longest that a body may take "
        "to arrive.",
    )
    max_timeout_s: float = Field(
        default=3600.0,
        gt=0,
        allow_inf_nan=False,
        description="Latest deadline that a caller may name; past it: 422.",
    )
    gateway_num_cpus: float = Field(
        default=0.1,
        ge=0,
        allow_inf_nan=False,
        description="CPUs that Ray reserves for each replica of the gateway.",
    )
    gateway_num_replicas: int = Field(
        default=1,
        ge=1,
        description="Replicas of the gateway. On a cluster each is on a node of its own.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="How the files of Ray Serve's processes are written: as lines to read, or as "
        "one JSON object a line.",
    )
    protocols: dict[str, ProtocolSettings] = Field(
        default_factory=dict,
        description="By name, how other programs' protocols are answered.",
    )

    @model_validator(mode="after")
    def _one_request_keeps_within_the_limits_for_all(self) -> Settings:
        limits = {
            "max_body_bytes": "max_body_memory_bytes",  # else the largest body never gets in
            "request_timeout_s": "max_timeout_s",
        }
        for name, limit_name in limits.items():
            value, limit = getattr(self, name), getattr(self, limit_name)
            if value > limit:
                raise ValueError(f"`{limit_name}` ({limit}) must be at least `{name}` ({value})")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Settings:
        _refuse_repeated_names("deployments", [deployment.name for deployment in self.deployments])
        _refuse_repeated_names(
            "scorers", [scorer.served_name for d in self.deployments for scorer in d.scorers]
        )
        return self

    @model_validator(mode="after")
    def _scores_come_from_scorers_that_have_their_own(self) -> Settings:
        scorers = {scorer.served_name: scorer for d in self.deployments for scorer in d.scorers}
        for name, scorer in scorers.items():
            source = scorer.score_from
            if source is None:
                continue
            problem = f"`scorers`: `{name}`: the option `score_from` names `{source}`"
            if source not in scorers:
                raise ValueError(f"{problem}; there are {', '.join(scorers)}")
            if scorers[source].score_from is not None:
                raise ValueError(
                    f"{problem}, which takes its own score from `{scorers[source].score_from}`"
                )
        return self

    @model_validator(mode="after")
    def _protocols_are_answered_by_scorers_that_are_served(self) -> Settings:
        names = [scorer.served_name for d in self.deployments for scorer in d.scorers]
        for protocol, plan in self.protocols.items():
            if plan.scorer is not None and plan.scorer not in names:
                raise ValueError(
                    f"`protocols.{protocol}.scorer` names `{plan.scorer}`; there are "
                    f"{', '.join(names)}"
                )
        return self


def _refuse_repeated_names(field: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"`{field}`: the name `{name}` is used {names.count(name)} times; names are unique"
            )
