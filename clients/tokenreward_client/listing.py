"""Which deployment serves which scorer: learnt from `GET /v1/scorers`, so that a request can go
straight there.

A second hop costs more than the whole ingress. So a request goes through the gateway only where no
single deployment has all that it names. This module knows names, paths and tokenizers'
fingerprints, and nothing of what a scorer computes.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tokenreward.errors import Loading
from tokenreward.wire import NAME_PATTERN, served_name
from tokenreward.wire.dependencies import listed_score_source
from tokenreward.wire.paths import SCORERS_PATH
from tokenreward_client.errors import (
    BadArgument,
    BadReply,
    ClientError,
    DeadlineExceeded,
)
from tokenreward_client.flow import Flow
from tokenreward_client.request import send_until_answered
from tokenreward_client.retry import Attempts, wait_for
from tokenreward_client.window import Window

# A gateway that is slow to list its scorers must not slow every call.
ASK_AGAIN_AFTER_S = 30.0
# Segments of plain characters, none of which begins with a dot. So a listing cannot lead the API
# key to another host (`//host`, `http:`), out of the base URL's path (`..`), or into a query.
_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")


class ScorerInfo(BaseModel):
    """One entry of `GET /v1/scorers`.

    Attributes:
        name: What a request calls the scorer.
        type: The scorer's type, for example `endogenous`.
        deployment: The deployment that serves it.
        model: The model that it reads.
        version: The version of that model's weights.
        tokenizer: The fingerprint of its tokenizer; see `tokenreward_client.fingerprint`.
        model_extra: All other fields of the entry: its options, limits, route and so on.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    type: str | None = None
    deployment: str | None = Field(default=None, pattern=NAME_PATTERN)
    model: str | None = None
    version: int | None = None
    tokenizer: str | None = None


_BODY = TypeAdapter(dict[str, Any])
_SCORERS = TypeAdapter(list[ScorerInfo])
_DEPLOYMENTS = TypeAdapter(list[str])


class Listing:
    """The scorers of one service, as far as they are known: where each is served, and with which
    tokenizer.

    All flows of a client share it, over all its threads. Each attribute is replaced as a whole and
    never changed in place, so a reader sees the old value or the new one.
    """

    def __init__(self) -> None:
        self._paths: dict[str, str | None] | None = None  # by scorer; None before the first listing
        self._tokenizers: dict[str, str | None] = {}
        self._unavailable: list[str] = []  # deployments that did not say what they serve
        self._num_listings = 0
        self._ask_again_at = -math.inf
        # A lock with futures for waiters: a thread and a task may wait for it alike, until their
        # own deadline, and give up while they wait.
        self._turn = Window(1)

    def refresh(self, attempts: Attempts) -> Flow[list[ScorerInfo]]:
        """Ask the service for its scorers, and remember them.

        Returns:
            The scorers.

        Raises:
            ClientError: As `send_until_answered`; BadReply if the reply is no listing.
        """
        response = yield from send_until_answered(SCORERS_PATH, None, attempts)
        try:
            body = _BODY.validate_json(response.content)
            scorers = _SCORERS.validate_python(body.get("scorers"))
            unavailable = _DEPLOYMENTS.validate_python(body.get("unavailable", []))
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise BadReply(f"{SCORERS_PATH} did not answer a list of scorers: {message}") from None
        self._unavailable = unavailable
        if self._unavailable:
            self._ask_again_at = attempts.retry.clock() + ASK_AGAIN_AFTER_S
        self._paths = {scorer.name: _direct_path(scorer) for scorer in scorers}
        self._tokenizers = {scorer.name: scorer.tokenizer for scorer in scorers}
        self._num_listings += 1
        return scorers

    def refresh_until(self, names: Sequence[str], attempts: Attempts) -> Flow[list[ScorerInfo]]:
        """Ask the service for its scorers until it lists all of these, or until none of its
        deployments is silent: a deployment that still loads is.

        Returns:
            The scorers.

        Raises:
            DeadlineExceeded: A scorer is not listed yet, and some deployment has not answered.
            ClientError: As `refresh`.
        """
        missing: list[str] = []
        while True:
            try:
                scorers = yield from self.refresh(Attempts(attempts.retry, attempts.deadline))
            except DeadlineExceeded as error:
                if missing:
                    raise self._still_loading(missing[0]) from error
                raise
            missing = [name for name in names if self._may_be_unavailable(served_name(name))]
            if not missing:
                return scorers
            pause_s = attempts.next_pause_s(frozenset({Loading.code}), is_retryable=True) or 0.0
            if not attempts.has_time_for(pause_s):
                raise self._still_loading(missing[0])
            yield pause_s

    def _still_loading(self, name: str) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"scorer {name!r} is not listed, and {', '.join(self._unavailable)} did not answer: "
            "its weights may still load"
        )

    def require_tokenizer(
        self, names: Sequence[str], fingerprint: str, attempts: Attempts
    ) -> Flow[None]:
        """Make sure that these scorers have the tokenizer with this fingerprint.

        What is known is enough to say yes. Before a no the service is asked again: it may have
        changed, and a scorer that it does not list may be of a deployment that still loads.

        Raises:
            BadArgument: A scorer has another tokenizer, or the service lists none of it.
            ClientError: The service was asked; as `refresh_until`.
        """
        names = [served_name(name) for name in names]
        if any(self._tokenizers.get(name) != fingerprint for name in names):
            num_listings = self._num_listings

            def is_needed() -> bool:
                is_new = self._num_listings > num_listings
                return not is_new or any(map(self._may_be_unavailable, names))

            yield from self._refresh_once(attempts, is_needed, names)
        for name in names:
            theirs = self._tokenizers.get(name)
            if theirs is None:
                raise BadArgument(
                    f"the service lists no tokenizer of scorer {name!r} to compare with "
                    f"{fingerprint!r}",
                    param="fingerprint",
                )
            if theirs != fingerprint:
                raise BadArgument(
                    f"the items' ids are of tokenizer {fingerprint!r}, but scorer {name!r} has "
                    f"{theirs!r}: send text and spans (see text_and_spans)",
                    param="fingerprint",
                )

    def direct_path(self, names: Sequence[str], attempts: Attempts) -> Flow[str | None]:
        """The path at which one deployment serves all these scorers.

        Asks the service if it is not known. None if there is no such path, or no listing to be had:
        then the gateway will do.
        """
        names = [served_name(name) for name in names]

        def is_unknown() -> bool:
            if attempts.retry.clock() < self._ask_again_at:
                return False
            return self._paths is None or any(map(self._may_be_unavailable, names))

        if is_unknown():
            with contextlib.suppress(ClientError):
                yield from self._refresh_once(attempts, is_unknown)
        paths = {(self._paths or {}).get(name) for name in names}
        return paths.pop() if len(paths) == 1 else None

    def forget(self) -> None:
        """Forget where scorers are served: a path led nowhere. The listing is learnt again before
        the next call."""
        self._paths = None
        self._tokenizers = {}

    def _may_be_unavailable(self, name: str) -> bool:
        """Whether a deployment that did not answer may serve this scorer."""
        return bool(self._unavailable) and name not in (self._paths or {})

    def _refresh_once(
        self, attempts: Attempts, is_needed: Callable[[], bool], names: Sequence[str] = ()
    ) -> Flow[None]:
        """Refresh until these scorers are listed, one flow at a time. The others wait for the reply
        to the first, and ask again only if it was none for them. Raises as `refresh_until`."""
        ticket = self._turn.join(self._turn.next_number())
        try:
            yield from wait_for(ticket, attempts.left_s())
            if is_needed():
                yield from self.refresh_until(names, attempts)
        except ClientError:
            self._ask_again_at = attempts.retry.clock() + ASK_AGAIN_AFTER_S
            raise
        finally:
            self._turn.leave(ticket)


def _direct_path(scorer: ScorerInfo) -> str | None:
    """The path at which the scorer's deployment serves it; None if a request for it has to go
    through the gateway."""
    entry = scorer.model_extra or {}
    # Its operator has it take its score from another scorer, which the gateway alone can ask.
    if listed_score_source(entry) is not None:
        return None
    path = entry.get("route")
    if isinstance(path, str) and _PATH.fullmatch(path):
        return path
    return None
