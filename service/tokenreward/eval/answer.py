"""What came back for one candidate: a score, maybe rewards and whose characters they are, or an
error; and how long it took. It knows the client's Rewards and no figures.
"""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenreward.eval.dataset import Candidate
from tokenreward.wire import ErrorDetail, Token, decode_rewards, encode_rewards
from tokenreward_client import Rewards

Ints = npt.NDArray[np.int64]

_PLACE = re.compile(r"\bitems\[\d+\]\.?")


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Rewards [n] float32 and the half-open character ranges [n, 2] that they stand for. `names`
    has the text of each unit without characters of its own (end-of-turn, for one), in order."""

    rewards: npt.NDArray[np.float32]
    spans: Ints
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """The request that brought an answer: its seconds on this side of the wire, how many of them
    passed since the reply before it (these add up to the time of the run), its items, and how many
    requests were in flight at most."""

    seconds: float
    since_last_s: float
    num_items: int
    concurrency: int


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """All that the candidate needs, or `error`."""

    score: float | None = None
    units: Units | None = None
    error: ErrorDetail | None = None
    timing: Timing | None = None

    @property
    def known(self) -> float:
        """The score of an answer without an error whose candidate needs one."""
        if self.score is None:
            raise ValueError("this answer has no score")
        return self.score


def answer_of(candidate: Candidate, rewards: Rewards, timing: Timing) -> Answer:
    """The answer to one candidate. What it needs and does not get is an error of ours, never a
    zero."""
    if rewards.error is not None:
        return Answer(error=_placeless(rewards.error), timing=timing)
    if candidate.needs_score and rewards.score is None:
        detail = ErrorDetail(code="no_score", message="the scorer answered without a score")
        return Answer(error=detail, timing=timing)
    units = None
    if candidate.needs_units:
        spans = _spans(candidate, rewards)
        if rewards.rewards is None or spans is None or len(spans) != len(rewards.rewards):
            message = "the service does not say which characters the rewards stand for"
            return Answer(error=ErrorDetail(code="no_token_spans", message=message), timing=timing)
        units = Units(rewards.rewards, spans, _names(rewards.tokens, spans))
    return Answer(rewards.score, units, timing=timing)


def to_record(answer: Answer) -> dict[str, Any]:
    """As the cache keeps it. Errors are not kept: the next run asks again."""
    record: dict[str, Any] = {"score": answer.score}
    if answer.units is not None:
        record["rewards"] = encode_rewards(answer.units.rewards)
        record["spans"] = answer.units.spans.tolist()
        record["names"] = list(answer.units.names)
    if answer.timing is not None:
        record["timing"] = list(astuple(answer.timing))
    return record


def from_record(record: dict[str, Any]) -> Answer:
    """The answer again. Raises KeyError, TypeError, ValueError for what `to_record` never wrote."""
    score = record["score"]
    if score is not None and not np.isfinite(float(score)):
        raise ValueError("the score is not finite")
    units = None
    if "rewards" in record:
        rewards, spans = (
            decode_rewards(record["rewards"]),
            np.asarray(record["spans"], dtype=np.int64).reshape(-1, 2),
        )
        if len(rewards) != len(spans) or not np.isfinite(rewards).all():
            raise ValueError("rewards and spans do not go together")
        units = Units(rewards, spans, tuple(map(str, record["names"])))
    seconds, since_last_s, num_items, concurrency = record["timing"]
    timing = Timing(float(seconds), float(since_last_s), int(num_items), int(concurrency))
    return Answer(score, units, timing=timing)


def _spans(candidate: Candidate, rewards: Rewards) -> Ints | None:
    if "spans" in candidate.item:
        return np.asarray(candidate.item["spans"], dtype=np.int64).reshape(-1, 2)
    spans = [token.span for token in rewards.tokens or ()]
    if not spans or None in spans:
        return None
    return np.asarray(spans, dtype=np.int64)


def _names(tokens: tuple[Token, ...] | None, spans: Ints) -> tuple[str, ...]:
    if tokens is None or len(tokens) != len(spans):
        return ()
    return tuple(
        token.text
        for token, (start, end) in zip(tokens, spans.tolist(), strict=True)
        if start == end
    )


def _placeless(error: ErrorDetail) -> ErrorDetail:
    """An item's place in the request that it was sent with means nothing here: its row is named
    instead."""
    param = _PLACE.sub("", error.param or "") or None
    return error.model_copy(update={"message": _PLACE.sub("", error.message), "param": param})
