"""The reply: body of a 200, as pydantic models that read what they know and let newer servers add
fields."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Reply(BaseModel):
    """Base of all replies. A client reads what it knows: newer servers may add fields."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class ErrorDetail(Reply):
    code: str
    message: str
    param: str | None = None
    retryable: bool = False


class Token(Reply):
    """One token that was scored. `span` is its half-open code point range in a text response (null
    for ids)."""

    id: int
    text: str
    span: tuple[int, int] | None = None


class ScorerResult(Reply):
    """One scorer's result for one item: `rewards` is a list, or little-endian float32, in JSON as
    base64.

    Of a scorer that finds reasoning steps (`process`): `step_scores`, one number per step, and
    `step_ids`, one per reward: the step (from 0) that the unit's last token belongs to.
    """

    rewards: list[float] | str | bytes | None = None
    score: float | None = None
    error: ErrorDetail | None = None
    model: str | None = None
    version: int | None = None
    step_scores: list[float] | None = None
    step_ids: list[int] | None = None


class ItemReply(ScorerResult):
    index: int
    tokens: list[Token] | None = None
    scorers: dict[str, ScorerResult] | None = None


class Usage(Reply):
    prompt_tokens: int
    response_tokens: int


class Timing(Reply):
    """Seconds: waiting for the device, in the tokenizer, on the device."""

    queue_s: float
    tokenize_s: float
    compute_s: float


class Source(Reply):
    """Whose weights a scorer that was asked on behalf of another answered with."""

    model: str | None = None
    version: int | None = None


class RewardsReply(Reply):
    """Body of a 200. `sources`: by name, the scorers that `credit.kl.reference` or `score_from` had
    the front ask."""

    id: str
    scorer: str | None = None
    model: str | None = None
    version: int | None = None
    items: list[ItemReply]
    usage: Usage
    timing: Timing
    sources: dict[str, Source] = Field(default_factory=dict)
