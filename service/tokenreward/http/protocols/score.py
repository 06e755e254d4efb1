"""vLLM's scores of pairs, `POST /score`: a prompt and a response, one number out.

    {"model": "rm", "text_1": "2+2?", "text_2": ["4", "5"]}
    -> {"data": [{"index": 0, "object": "score", "score": 1.3}, {"index": 1, ...}], ...}

`text_1` is the prompt and `text_2` the response, as raw text, which ends its turn. One prompt goes
with many responses, or one with each. The fields may be called `queries` and `documents`, `queries`
and `items`, or `data_1` and `data_2`, too. `score` has the raw number: a request for an activation
is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from tokenreward.errors import InvalidField, RequestError
from tokenreward.http.protocols import Protocol
from tokenreward.http.protocols._answers import ListOf, refuse_many, scores_of
from tokenreward.http.protocols._vllm import (
    frame,
    openai_error,
    refuse_activation,
    refuse_truncation,
)
from tokenreward.wire import Item, Reply, RewardsRequest
from tokenreward.wire.media import JSON

_NAMES = (
    ("text_1", "text_2"),
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
)


class _Pairs(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = None
    text_1: str | ListOf[str] | None = None
    text_2: str | ListOf[str] | None = None
    queries: str | ListOf[str] | None = None
    documents: str | ListOf[str] | None = None
    items: str | ListOf[str] | None = None
    data_1: str | ListOf[str] | None = None
    data_2: str | ListOf[str] | None = None
    use_activation: bool | None = None
    activation: bool | None = None
    softmax: bool | None = None
    truncate_prompt_tokens: int | None = None


class PairScores(Protocol):
    """A score per pair."""

    paths = ("/score", "/v1/score")
    example = '{"model": "rm", "text_1": "2+2?", "text_2": ["4", "5"]}'

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__(headers)
        self._field = "text_2"  # what the body calls its responses

    def read(self, body: bytes) -> RewardsRequest | None:
        content = JSON.parse(_Pairs, body)
        refuse_activation(content)
        refuse_truncation(content.truncate_prompt_tokens)
        self._model = content.model
        for first, second in _NAMES:
            prompts, responses = getattr(content, first), getattr(content, second)
            if prompts is None or responses is None:
                continue
            self._field = second
            prompts = [prompts] if isinstance(prompts, str) else prompts
            responses = [responses] if isinstance(responses, str) else responses
            if not responses:
                raise InvalidField("there is no response", param=second)
            refuse_many(responses, second)
            if len(prompts) not in (1, len(responses)):
                raise InvalidField(
                    f"there are {len(prompts)} for {len(responses)} in `{second}`", param=first
                )
            if len(prompts) == 1:
                prompts = prompts * len(responses)
            pairs = zip(prompts, responses, strict=True)
            return self.request([Item(prompt=one, response=other) for one, other in pairs])
        raise InvalidField("it is required, with `text_2`", param="text_1")

    def write(self, reply: Reply) -> bytes:
        data = [
            {"index": index, "object": "score", "score": score}
            for index, score in enumerate(scores_of(reply, self._field))
        ]
        return JSON.dump(frame("score", self._model, reply, data))

    def write_error(self, error: RequestError) -> tuple[int, bytes]:
        return openai_error(error, self._field)
