"""Which deployment serves which scorer: learnt from `GET /v1/scorers`, so that a request can go
straight there.

A second hop costs more than the whole ingress, so the gateway is the way only where no one
deployment has all that is asked. It knows names, paths and tokenizers' fingerprints, and nothing of
what a scorer computes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenreward.wire import NAME_PATTERN
from tokenreward.wire.paths import REWARDS_PATH, SCORERS_PATH, deployment_prefix
from tokenreward_client.errors import BadArgument, BadReply, ClientError, ServerRefused
from tokenreward_client.flow import Attempts, Flow, Road, answered, let_in
from tokenreward_client.window import Window

# A gateway that is slow to list its scorers must not slow every call.
ASK_AGAIN_AFTER_S = 30.0


class ScorerInfo(BaseModel):
    """One entry of `GET /v1/scorers`. What the server says beyond these fields is in
    `model_extra`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    type: str | None = None
    deployment: str | None = Field(default=None, pattern=NAME_PATTERN)
    model: str | None = None
    version: int | None = None
    tokenizer: str | None = None


class _Listing(BaseModel):
    scorers: list[ScorerInfo]
    unavailable: list[str] = []


class Routes:
    """The deployments of one service, as far as they are known."""

    def __init__(self) -> None:
        self._deployments: dict[str, str | None] | None = None
        self._num_listings = 0
        self._tokenizers: dict[str, str | None] = {}
        self._unlisted: list[str] = []  # deployments that did not say what they serve
        self._ask_again_at = -math.inf
        self._turn = Window(1)

    def listing(self, attempts: Attempts) -> Flow[list[ScorerInfo]]:
        """Ask the service. Raises as `answered`, and BadReply."""
        response: httpx.Response = yield from answered(Road(SCORERS_PATH), None, attempts)
        try:
            listing = _Listing.model_validate_json(response.content)
        except ValidationError as error:
            raise BadReply(
                f"{SCORERS_PATH} did not answer a list of scorers: {error.errors()[0]['msg']}"
            ) from None
        found, self._unlisted = listing.scorers, listing.unavailable
        if self._unlisted:
            self._ask_again_at = attempts.retry.clock() + ASK_AGAIN_AFTER_S
        # Only the gateway can fill in what a scorer takes from another.
        self._deployments = {
            each.name: None if _asks_another(each) else each.deployment for each in found
        }
        self._tokenizers = {scorer.name: scorer.tokenizer for scorer in found}
        self._num_listings += 1
        return found

    def agree(self, names: Sequence[str], fingerprint: str, attempts: Attempts) -> Flow[None]:
        """Raise BadArgument unless each of these scorers lists this tokenizer, ServerRefused if its
        deployment may be one that did not list any. What is known is believed only where it agrees;
        else the service is asked, raising as `listing`."""
        if any(self._tokenizers.get(name) != fingerprint for name in names):
            num_known = self._num_listings
            yield from self._listed_once(attempts, lambda: self._num_listings == num_known)
        for name in names:
            if self._may_come(name):
                raise ServerRefused(
                    f"scorer {name!r} is not listed, and {', '.join(self._unlisted)} did not "
                    "answer",
                    status=503,
                    code="loading",
                    retryable=True,
                )
            if (theirs := self._tokenizers.get(name)) != fingerprint:
                message = (
                    f"the items' ids are of tokenizer {fingerprint!r}, but scorer {name!r} has "
                    f"{theirs!r}: "
                    "send text and spans (see text_and_spans)"
                    if theirs is not None
                    else f"the service lists no tokenizer of scorer {name!r} to compare with {fingerprint!r}"
                )
                raise BadArgument(message, param="fingerprint")

    def direct(self, names: Sequence[str], attempts: Attempts) -> Flow[str | None]:
        """The path of the one deployment that has all these scorers; None without one, or without a
        listing: then the gateway will do."""

        def unknown() -> bool:
            some = self._deployments is None or any(map(self._may_come, names))
            return some and attempts.retry.clock() >= self._ask_again_at

        if unknown():
            with contextlib.suppress(ClientError):
                yield from self._listed_once(attempts, unknown)
        deployments = {(self._deployments or {}).get(name) for name in names}
        only = deployments.pop() if len(deployments) == 1 else None
        return None if only is None else deployment_prefix(only) + REWARDS_PATH

    def road(self, direct: str | None) -> Road:
        """The way of one request: straight, or through the gateway if there is no straight one or
        it leads nowhere."""
        return Road(REWARDS_PATH) if direct is None else Road(direct, self.forget)

    def _may_come(self, name: str) -> bool:
        """Whether a deployment that did not answer may have this scorer."""
        return bool(self._unlisted) and name not in (self._deployments or {})

    def _listed_once(self, attempts: Attempts, is_needed: Callable[[], bool]) -> Flow[None]:
        """One call asks; those that come meanwhile wait for its answer, and ask only if it was none
        for them. Raises as `listing`."""
        ticket = self._turn.ask(self._turn.number())
        try:
            yield from let_in(ticket, attempts.left_s())
            if is_needed():
                yield from self.listing(attempts)
        except ClientError:
            self._ask_again_at = attempts.retry.clock() + ASK_AGAIN_AFTER_S
            raise
        finally:
            self._turn.leave(ticket)

    def forget(self) -> None:
        """Learn again before the next call: a direct path led nowhere."""
        self._deployments = None
        self._tokenizers = {}


def _asks_another(scorer: ScorerInfo) -> bool:
    """Whether its operator has it take its score from another scorer."""
    options = (scorer.model_extra or {}).get("options")
    option = options.get("score_from") if isinstance(options, dict) else None
    return isinstance(option, dict) and option.get("default") is not None
