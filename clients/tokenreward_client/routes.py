"""Which deployment serves which scorer: learnt from `GET /v1/scorers`, so that a request can go straight there.

A second hop costs more than the whole ingress, so the gateway is the way only where no one deployment has all that is
asked. It knows names, paths and tokenizers' fingerprints, and nothing of what a scorer computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenreward.wire import NAME_PATTERN
from tokenreward_client.errors import BadArgument, BadReply, ClientError
from tokenreward_client.flow import GATEWAY_REWARDS, Attempts, Flow, Road, answered

SCORERS = "/v1/scorers"
# A gateway that is slow to list its scorers must not slow every call.
ASK_AGAIN_AFTER_S = 30.0


class ScorerInfo(BaseModel):
    """One entry of `GET /v1/scorers`. What the server says beyond these fields is in `model_extra`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    type: str | None = None
    deployment: str | None = Field(default=None, pattern=NAME_PATTERN)
    model: str | None = None
    version: int | None = None
    tokenizer: str | None = None


class _Listing(BaseModel):
    scorers: list[ScorerInfo]


class Routes:
    """The deployments of one service, as far as they are known."""

    def __init__(self) -> None:
        self._deployments: dict[str, str | None] | None = None
        self._tokenizers: dict[str, str | None] = {}
        self._ask_again_at = -math.inf

    def listing(self, attempts: Attempts) -> Flow[list[ScorerInfo]]:
        """Ask the service. Raises as `answered`, and BadReply."""
        response: httpx.Response = yield from answered(Road(SCORERS), None, attempts)
        try:
            found = _Listing.model_validate_json(response.content).scorers
        except ValidationError as error:
            raise BadReply(f"{SCORERS} did not answer a list of scorers: {error.errors()[0]['msg']}") from None
        self._deployments = {scorer.name: scorer.deployment for scorer in found}
        self._tokenizers = {scorer.name: scorer.tokenizer for scorer in found}
        return found

    def agree(self, names: Sequence[str], fingerprint: str, attempts: Attempts) -> Flow[None]:
        """Raise BadArgument unless each of these scorers lists this tokenizer. What is known is believed only where it
        agrees; else the service is asked, raising as `listing`."""
        if any(self._tokenizers.get(name) != fingerprint for name in names):
            yield from self.listing(attempts)
        for name in names:
            if (theirs := self._tokenizers.get(name)) != fingerprint:
                message = (
                    f"the items' ids are of tokenizer {fingerprint!r}, but scorer {name!r} has {theirs!r}: "
                    "send text and spans (see text_and_spans)"
                    if theirs is not None
                    else f"the service lists no tokenizer of scorer {name!r} to compare with {fingerprint!r}"
                )
                raise BadArgument(message, param="fingerprint")

    def road(self, names: Sequence[str], attempts: Attempts) -> Flow[str]:
        """The path for a request that names these scorers. A listing that fails is no error: the gateway will do."""
        if self._deployments is None and attempts.retry.clock() >= self._ask_again_at:
            try:
                yield from self.listing(attempts)
            except ClientError:
                self._ask_again_at = attempts.retry.clock() + ASK_AGAIN_AFTER_S
        deployments = {(self._deployments or {}).get(name) for name in names}
        only = deployments.pop() if len(deployments) == 1 else None
        return GATEWAY_REWARDS if only is None else f"/d/{only}{GATEWAY_REWARDS}"

    def forget(self) -> None:
        """Learn again before the next call: a direct path led nowhere."""
        self._deployments = None
        self._tokenizers = {}
