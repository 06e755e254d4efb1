"""The answer for one candidate: a score, its rewards with their characters if needed, or an error.

It knows the client's Rewards; it knows no files, no cases and no other candidates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tokenreward.errors import described
from tokenreward.eval.candidate import Candidate
from tokenreward.eval.statistics import Floats, Ints, Timing
from tokenreward.wire import ErrorDetail
from tokenreward_client import Rewards

_ITEM = re.compile(r"^items\[\d+\]\.?")


@dataclass(frozen=True, slots=True, eq=False)
class CandidateAnswer:
    """All that the candidate needs, or `error`.

    Attributes:
        score: The score of the response.
        rewards: A reward per unit, [n].
        spans: The half-open character range that each unit stands for, [n, 2]. It is there if and
            only if `rewards` is.
        names: The text of each unit without characters of its own (end-of-turn, for one), in order.
        steps: The probability that each step of the item is right, [steps]; None if the candidate
            does not need it.
        error: Why there is no answer. Its `param` is a path inside the item: `response`.
        timing: The timing of the request that brought the answer.
    """

    score: float | None = None
    rewards: npt.NDArray[np.float32] | None = None
    spans: Ints | None = None
    names: tuple[str, ...] = ()
    steps: Floats | None = None
    error: ErrorDetail | None = None
    timing: Timing | None = None

    def require_score(self) -> float:
        """The score. Raises ValueError if there is none, as for an error."""
        if self.score is None:
            raise ValueError("this answer has no score")
        return self.score

    def require_units(self) -> tuple[npt.NDArray[np.float32], Ints]:
        """`rewards` and `spans`. Raises ValueError if there are none, as for an error."""
        if self.rewards is None or self.spans is None:
            raise ValueError("this answer has no units")
        return self.rewards, self.spans

    def require_steps(self) -> Floats:
        """`steps`. Raises ValueError if there are none, as for an error."""
        if self.steps is None:
            raise ValueError("this answer has no scores of steps")
        return self.steps

    @property
    def fault(self) -> str:
        """The error's message, for a reader who sees where the response stands.

        If the error is about another field than the response, that field stands before the message.
        Without an error the text is empty.
        """
        if self.error is None:
            return ""
        if self.error.param in (None, "response"):
            return self.error.message
        return described(self.error.message, self.error.param)


def answer_of(
    candidate: Candidate, rewards: Rewards, timing: Timing, *, is_signed: bool = False
) -> CandidateAnswer:
    """The answer for one candidate.

    Args:
        candidate: The candidate.
        rewards: The client's result for its item.
        timing: The timing of the request that brought it.
        is_signed: Step scores are 2 p - 1 of their probabilities p.

    Returns:
        The answer. A score, step scores or spans that the candidate needs and the service left out
        are an error of our own, never a zero.
    """
    if rewards.error is not None:
        # An item's place in its request means nothing to the reader: the row is named instead.
        param = _ITEM.sub("", rewards.error.param or "") or None
        error = replace(rewards.error, param=param)
        return CandidateAnswer(error=error, timing=timing)
    if candidate.needs_score and rewards.score is None:
        detail = ErrorDetail(code="no_score", message="the scorer answered without a score")
        return CandidateAnswer(error=detail, timing=timing)
    steps = None
    if candidate.needs_steps:
        if rewards.step_scores is None or len(rewards.step_scores) != len(candidate.item["steps"]):
            message = "the scorer gives no score of each step: only a process reward model does"
            detail = ErrorDetail(code="no_step_scores", message=message)
            return CandidateAnswer(error=detail, timing=timing)
        steps = rewards.step_scores.astype(np.float64)
        if is_signed:
            steps = (steps + 1) / 2
    if not candidate.needs_units:
        return CandidateAnswer(rewards.score, steps=steps, timing=timing)
    tokens = rewards.tokens or ()
    spans = candidate.item.get("spans") or [token.span for token in tokens]
    if rewards.rewards is None or None in spans or not 0 < len(spans) == len(rewards.rewards):
        message = "the service does not say which characters the rewards stand for"
        detail = ErrorDetail(code="no_token_spans", message=message)
        return CandidateAnswer(error=detail, timing=timing)
    names: list[str] = []
    if len(tokens) == len(spans):
        for token, (start, end) in zip(tokens, spans, strict=True):
            if start == end:
                names.append(token.text)
    ranges = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
    return CandidateAnswer(
        rewards.score, rewards.rewards, ranges, tuple(names), steps, timing=timing
    )
