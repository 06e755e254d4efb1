"""The reply: body of a 200, as dataclasses that the server writes and the client reads.

A reader takes what it knows and ignores the rest, so that newer servers may add fields. This module
knows the shape of a reply, and nothing of how its bytes travel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, WithJsonSchema

from tokenreward.errors import RewardError
from tokenreward.wire.encoding import encode_array

EncodingFormat = Literal["float", "base64"]

# Numbers of each response token beside its reward, by their names in results.
Table = Literal["top_logprobs", "top_token_ids", "ranks", "candidate_logprobs"]
TABLES: tuple[Table, ...] = get_args(Table)
INTEGER_TABLES = frozenset({"top_token_ids", "ranks"})

# A float32 array where it was computed; on its way a list, base64 (JSON) or bytes (msgpack), which
# `decode_rewards` reads. Its entries are checked there, once, and not here.
if TYPE_CHECKING:
    RewardVector = npt.NDArray[np.float32] | list[float] | str | bytes
    # The same of a table [tokens, k] or [tokens], which is flat where it is base64 or bytes.
    NumberTable = npt.NDArray[np.float32] | npt.NDArray[np.int32] | list[Any] | str | bytes
else:
    _NUMBERS = {"type": "array", "items": {"type": "number"}}
    _TABLE = {"type": "array", "items": {"oneOf": [{"type": "number"}, _NUMBERS]}}
    RewardVector = Annotated[Any, WithJsonSchema({"oneOf": [_NUMBERS, {"type": "string"}]})]
    NumberTable = Annotated[Any, WithJsonSchema({"oneOf": [_TABLE, {"type": "string"}]})]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDetail:
    """The one error body: of a request under `error` at the top level, or of an item.

    Attributes:
        code: One word for what is wrong, one of those in `tokenreward.errors`.
        message: What is wrong, in a sentence. It never repeats `param`.
        param: Path of the field at fault, for example `items[0].response`.
        retryable: Whether the same request may succeed later.
    """

    code: str
    message: str
    param: str | None = None
    retryable: bool = False

    @classmethod
    def of(cls, error: RewardError) -> ErrorDetail:
        """The body of one of our errors."""
        return cls(**error.detail())


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token that was scored. `span` is its half-open code point range in a text response; None
    for ids."""

    id: int
    text: str
    span: tuple[int, int] | None = None


@dataclass(slots=True, kw_only=True)
class ScorerResult:
    """One scorer's result for one item: rewards and maybe a score, or an error.

    Attributes:
        rewards: One number per unit of the caller.
        score: The scorer's sequence-level number, if it has one.
        error: Why there are no rewards.
        model: The model that computed the result.
        version: The version of that model's weights.
        scores: By name, further numbers of the response: all labels of a reward model with several.
        step_scores: One number per reasoning step, of a scorer that finds steps (`process`).
        step_ids: For each unit the step, from 0, that its last token belongs to.
        top_logprobs: Of `logprob` with `top_k`: float32 [tokens, top_k], the largest log-probs at
            each response token, in descending order.
        top_token_ids: int32 [tokens, top_k], the tokens that they are of.
        ranks: int32 [tokens], the rank of the response token itself, 1 for the most likely.
        candidate_logprobs: Of `logprob` with `candidates`: float32 [tokens, candidates].
    """

    rewards: RewardVector | None = None
    score: float | None = None
    error: ErrorDetail | None = None
    model: str | None = None
    version: int | None = None
    scores: dict[str, float] | None = None
    step_scores: list[float] | None = None
    step_ids: list[int] | None = None
    top_logprobs: NumberTable | None = None
    top_token_ids: NumberTable | None = None
    ranks: NumberTable | None = None
    candidate_logprobs: NumberTable | None = None


@dataclass(slots=True, kw_only=True)
class ItemResult(ScorerResult):
    """The result for one item: of the one scorer, or (`scorers`) of several by name, and then maybe
    their weighted sum.

    Attributes:
        index: The item's place in the request.
        tokens: The tokens that were scored, if the request asked for them.
        scorers: The results by scorer name; None if the request named one `scorer`.
    """

    index: int
    tokens: list[Token] | None = None
    scorers: dict[str, ScorerResult] | None = None

    def results(self) -> list[ScorerResult]:
        """The item itself, and the results of its scorers."""
        return [self, *(self.scorers or {}).values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that were read."""

    prompt_tokens: int
    response_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds: waiting for the device, in the tokenizer, on the device."""

    queue_s: float
    tokenize_s: float
    compute_s: float


NO_USAGE = Usage(prompt_tokens=0, response_tokens=0)
NO_TIME = Timing(queue_s=0.0, tokenize_s=0.0, compute_s=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """The model, and the version of its weights, that a dependency answered with."""

    model: str | None = None
    version: int | None = None


@dataclass(slots=True, kw_only=True)
class Reply:
    """Body of a 200.

    Attributes:
        id: The request's id.
        scorer: The scorer, if the request named one.
        model: The model that computed the reply, if there was one.
        version: The version of that model's weights.
        items: One result per item of the request, in its order.
        usage: Tokens that were read.
        timing: Seconds by stage.
        sources: By name, the scorers that the gateway asked because others depend on them
            (`credit.kl.reference`, `score_from`). None or empty if it asked none.
    """

    id: str
    items: list[ItemResult]
    usage: Usage
    timing: Timing
    scorer: str | None = None
    model: str | None = None
    version: int | None = None
    sources: dict[str, ModelVersion] | None = None


def reply_without_work(
    request_id: str, items: Iterable[ItemResult] = (), *, scorer: str | None = None
) -> Reply:
    """A reply for which no model was asked: it has no items, or errors alone."""
    return Reply(id=request_id, scorer=scorer, items=list(items), usage=NO_USAGE, timing=NO_TIME)


_REPLY = TypeAdapter(Reply)
_ERROR = TypeAdapter(ErrorDetail)


def parse_reply(body: bytes) -> Reply:
    """A reply from the bytes of a JSON body.

    Raises:
        ValueError: The body is no reply.
    """
    return _REPLY.validate_json(body)


def read_reply(content: object) -> Reply:
    """A reply from plain objects, as `parse_reply`."""
    return _REPLY.validate_python(content)


def read_error(content: object) -> ErrorDetail:
    """An error body from plain objects.

    Raises:
        ValueError: It is none.
    """
    return _ERROR.validate_python(content)


def write_reply(reply: Reply, *, encoding: EncodingFormat = "float") -> dict[str, Any]:
    """A reply as plain objects and float32 arrays, for a JSON or msgpack writer.

    What does not concern a reply is left out: steps and tables of a scorer that has none, `scorers`
    of a request with one `scorer`, whose model and version stand at the top alone.

    Args:
        reply: The reply.
        encoding: How arrays are written: as they are, or as base64 of little-endian float32.
    """
    body: dict[str, Any] = {
        "id": reply.id,
        "scorer": reply.scorer,
        "model": reply.model,
        "version": reply.version,
        "items": [_write_item(item, encoding) for item in reply.items],
        "usage": asdict(reply.usage),
        "timing": asdict(reply.timing),
    }
    if reply.sources is not None:
        body["sources"] = {name: asdict(source) for name, source in reply.sources.items()}
    return body


def _write_item(item: ItemResult, encoding: EncodingFormat) -> dict[str, Any]:
    body = {"index": item.index, **_write_result(item, encoding), "tokens": None}
    if item.tokens is not None:
        body["tokens"] = [
            {"id": token.id, "text": token.text, "span": token.span} for token in item.tokens
        ]
    if item.scorers is not None:
        body["scorers"] = {}
        for name, result in item.scorers.items():
            weights = {"model": result.model, "version": result.version}
            body["scorers"][name] = {**_write_result(result, encoding), **weights}
    return body


def _write_result(result: ScorerResult, encoding: EncodingFormat) -> dict[str, Any]:
    error = None if result.error is None else asdict(result.error)
    rewards = _encoded(result.rewards, encoding)
    body: dict[str, Any] = {"rewards": rewards, "score": result.score, "error": error}
    if result.scores is not None:
        body["scores"] = result.scores
    if result.step_scores is not None:
        body |= {"step_scores": result.step_scores, "step_ids": result.step_ids}
    for name in TABLES:
        table = getattr(result, name)
        if table is not None:
            body[name] = _encoded(table, encoding)
    return body


def _encoded(array: Any, encoding: EncodingFormat) -> Any:
    """An array as it is or as base64. What a deployment has encoded already stays as it is."""
    if encoding == "base64" and isinstance(array, np.ndarray):
        return encode_array(array)
    return array
