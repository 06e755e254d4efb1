"""How the number of a deployment's replicas follows its load.

It knows no deployment and no load: the policy that reads these settings is in
`deployment/autoscaling.py`.
"""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator, model_validator


class AutoscalingSettings(BaseModel, extra="forbid", frozen=True):
    """Bounds, targets and delays of one deployment's autoscaling."""

    min_replicas: int = Field(
        default=1,
        json_schema_extra={"minimum": 1},
        description="The fewest replicas, at least 1.",
    )
    max_replicas: int = Field(
        ge=1, description="The most replicas. Limits and reserved resources count this many."
    )
    target_queue_s: float = Field(
        default=30.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds of work that may wait for each replica before there are more.",
    )
    upscale_delay_s: float = Field(
        default=5.0,
        ge=0,
        allow_inf_nan=False,
        description="How long more replicas must be needed before they are started.",
    )
    downscale_delay_s: float = Field(
        default=600.0,
        ge=0,
        allow_inf_nan=False,
        description="How long fewer replicas must be enough before the others are stopped.",
    )
    tokens_per_second: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="What one replica computes, until a replica has measured it; by default the "
        "number of replicas stays until then.",
    )

    @field_validator("min_replicas")
    @classmethod
    def _at_least_one_replica(cls, value: int) -> int:
        if value < 1:
            raise ValueError(
                "must be at least 1: without a replica nobody reports the load, and none is started"
            )
        return value

    @model_validator(mode="after")
    def _bounds_in_order(self) -> AutoscalingSettings:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"`max_replicas` ({self.max_replicas}) must be at least `min_replicas` "
                f"({self.min_replicas})"
            )
        return self
