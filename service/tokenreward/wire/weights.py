"""The weights that a deployment is to serve: where they lie, and their version.

Weights are the body of `POST /v1/deployments/{name}/weights`, and what the service remembers of the
last push; the replies of that route are here, too. This module knows names and numbers: nobody has
looked yet whether the files are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from tokenreward.errors import BodyTooLarge
from tokenreward.wire.item import STRICT
from tokenreward.wire.parsing import refusal
from tokenreward.wire.reply import ErrorDetail

MAX_BODY_BYTES = 64 * 1024
MAX_NAME_CHARACTERS = 4096
MAX_VERSION = 2**53 - 1  # the largest that readers of JSON in all languages hold exactly

# A path, a hub id, or an embedded model. No path has control characters, and those in a message
# would steer the terminal that shows it.
_Name = Annotated[
    str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS, pattern=r"^[^\x00-\x1f\x7f]+$")
]

_CHECKPOINT = "the folder or hub id of the weights is `checkpoint`"
_INSTEAD = dict.fromkeys(
    ("model", "model_path", "model_id", "path", "weights", "folder"), _CHECKPOINT
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One version of a deployment's weights.

    Attributes:
        checkpoint: Local folder or hub id of the model.
        version: Stamped on every reply that they compute; versions only grow.
        adapter: The LoRA adapter on `checkpoint`, for a deployment that has one.
        reference_checkpoint: The model that `implicit` compares with, for a deployment that names
            one.
    """

    __pydantic_config__ = STRICT

    checkpoint: Annotated[
        _Name, Field(description="Local folder, as the replicas see it, or hub id.")
    ]
    version: Annotated[
        int,
        Field(
            ge=0, le=MAX_VERSION, description="Greater than the version that the deployment has."
        ),
    ]
    adapter: Annotated[
        _Name | None, Field(description="LoRA adapter on `checkpoint`: local folder or hub id.")
    ] = None
    reference_checkpoint: Annotated[
        _Name | None, Field(description="The model that `implicit` compares with.")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaWeights:
    """What one replica serves.

    Attributes:
        replica: Its name, as in the metrics.
        version: The version of its weights; None if it did not say.
        error: Why it does not serve the newest ones yet; None if it does, or is on its way.
    """

    replica: str
    version: int | None
    error: ErrorDetail | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PushReply:
    """The answer to a push that all replicas could prepare.

    Attributes:
        version: The version that was pushed.
        replicas: Each with the version that it serves. One that could not change yet follows within
            seconds.
        seconds: How long it took.
    """

    version: int
    replicas: list[ReplicaWeights]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentWeights:
    """What a deployment is to serve, and what it serves.

    Attributes:
        pushed: The newest weights that were pushed, or None.
        declared: Those of the settings; None if no replica says. Of the two, the greater version
            is served.
        replicas: Each with the version that it serves.
    """

    pushed: Weights | None
    declared: Weights | None
    replicas: list[ReplicaWeights]


_ADAPTER: TypeAdapter[Weights] = TypeAdapter(Weights)


def parse_weights(body: bytes) -> Weights:
    """The weights that a JSON body names.

    Raises:
        MalformedJson, MalformedBody, BodyTooLarge: It is no JSON object, or a huge one.
        UnknownField, InvalidField: The error names the field.
    """
    if len(body) > MAX_BODY_BYTES:
        raise BodyTooLarge(f"the body has {len(body)} bytes, a push has at most {MAX_BODY_BYTES}")
    try:
        return _ADAPTER.validate_json(body)
    except ValidationError as error:
        raise refusal(error, instead=_INSTEAD) from None
