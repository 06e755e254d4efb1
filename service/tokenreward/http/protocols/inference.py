"""vLLM's tokens in, tokens out, `POST /inference/v1/generate`: how prime-rl asks a teacher for the
log-probs of a sequence (`algo.type = "opd"`).

    {"model": "any", "token_ids": [5, 6, 7], "sampling_params": {"max_tokens": 1,
     "prompt_logprobs": 1, "temperature": 1.0}}
    -> {"request_id": "...", "choices": [{"index": 0, "token_ids": [], ...}],
        "prompt_logprobs": [null, {"6": {"logprob": -2.1, "rank": 4, ...}, ...}, ...]}

The client takes the *first* value of each entry: it is the sequence's own token. Temperature and
what is refused are those of `/v1/completions`.

Client: prime_rl/utils/client.py (`prefill_logprobs`). It is an OpenAI SDK, which gives a request up
after two more tries within seconds.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from tokenreward.errors import InvalidField
from tokenreward.http.protocols._answers import ListOf
from tokenreward.http.protocols._log_probs import (
    GENERATES_NOTHING,
    LogProbProtocol,
    vllm_entries,
    with_raw,
)
from tokenreward.http.protocols._vllm import openai_content, refuse_truncation
from tokenreward.wire import Reply, RewardsRequest
from tokenreward.wire.media import JSON


class _Sampling(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    max_tokens: int | None = None
    prompt_logprobs: Annotated[int, Field(ge=0)] | None = None
    temperature: FiniteFloat | None = None
    n: int | None = None
    truncate_prompt_tokens: int | None = None


class _Tokens(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    token_ids: ListOf[int]
    sampling_params: _Sampling
    stream: bool | None = None


class Inference(LogProbProtocol):
    """One sequence."""

    paths = ("/inference/v1/generate",)
    example = (
        '{"model": "teacher", "token_ids": [0, 50, 60, 1], "sampling_params": {"max_tokens": '
        '1, "temperature": 1.0, "top_p": 1.0, "prompt_logprobs": 1}}'
    )
    items = "token_ids"
    top_k_field = "sampling_params.prompt_logprobs"
    temperature_field = "sampling_params.temperature"

    def read(self, body: bytes) -> RewardsRequest | None:
        content = JSON.parse(_Tokens, body)
        sampling = content.sampling_params
        if sampling.prompt_logprobs is None:
            raise InvalidField(
                f"{GENERATES_NOTHING}: say how many of the most likely ones to give at each",
                param=self.top_k_field,
            )
        if sampling.max_tokens not in (0, 1) or sampling.n not in (None, 1) or content.stream:
            raise InvalidField(
                f"{GENERATES_NOTHING}: send `max_tokens` 1 and no stream", param="sampling_params"
            )
        refuse_truncation(sampling.truncate_prompt_tokens, "sampling_params.truncate_prompt_tokens")
        return self.ask(
            [content.token_ids],
            top_k=sampling.prompt_logprobs,
            temperature=sampling.temperature,
        )

    def write(self, reply: Reply) -> bytes:
        (table,) = self.tables(reply)
        choice: dict[str, Any] = {
            "index": 0,
            "logprobs": None,
            "finish_reason": "length",
            "token_ids": [],
        }
        content = {"request_id": reply.id, "choices": [choice], "kv_transfer_params": None}
        return with_raw(content, "prompt_logprobs", vllm_entries(table))

    error_content = staticmethod(openai_content)
