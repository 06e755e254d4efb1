"""vLLM's completions with `prompt_logprobs`, `POST /v1/completions`: what TRL's client of a teacher
asks, and whoever reads log-probs of a vLLM server.

    {"model": "any", "prompt": [[5, 6, 7]], "max_tokens": 1, "prompt_logprobs": 1}
    -> {"choices": [{"index": 0, "text": "", "prompt_logprobs": [null, {"6": {"logprob": -2.1,
        "rank": 4, ...}, "8": {"logprob": -0.2, "rank": 1, ...}}, ...], ...}], ...}

`prompt` is one sequence or several, of ids or of text. A choice's `prompt_logprobs` has an entry
for each token, of which the first is null. The others hold the token itself, first and whatever its
rank, and as many of the most likely ones as `prompt_logprobs` says (0: none).

`temperature` divides the logits, as TRL means it; 0 leaves them as they are. vLLM itself leaves
the log-probs of prompts as they are at any temperature. Nothing is generated: `max_tokens` must be
0 or 1, and the choice's text is empty.

Clients: trl/generation/vllm_client.py (`get_sequence_logprobs`, from TRL 1.11 on), which first
wants `GET /health` and `GET /v1/models`.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from tokenreward.errors import InvalidField
from tokenreward.http.protocols._answers import ListOf, refuse_many
from tokenreward.http.protocols._log_probs import (
    GENERATES_NOTHING,
    LogProbProtocol,
    text_item,
    vllm_entries,
    with_raw,
)
from tokenreward.http.protocols._vllm import openai_content, refuse_truncation
from tokenreward.wire import Item, Reply, RewardsRequest
from tokenreward.wire.media import JSON


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = None
    prompt: str | ListOf[str] | ListOf[int] | ListOf[ListOf[int]]
    max_tokens: int | None = None
    prompt_logprobs: Annotated[int, Field(ge=0)] | None = None
    temperature: FiniteFloat | None = None
    n: int | None = None
    best_of: int | None = None
    stream: bool | None = None
    echo: bool | None = None
    return_token_ids: bool | None = None
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    prompt_embeds: Any = None


class Completions(LogProbProtocol):
    """A choice per prompt."""

    paths = ("/v1/completions",)
    example = (
        '{"model": "teacher", "prompt": [[0, 50, 60, 1]], "max_tokens": 1, "temperature": '
        '1.0, "prompt_logprobs": 1}'
    )
    items = "prompt"
    top_k_field = "prompt_logprobs"

    def read(self, body: bytes) -> RewardsRequest | None:
        content = JSON.parse(_Body, body)
        self._model, self._shows_ids = content.model, content.return_token_ids
        if content.prompt_logprobs is None:
            raise InvalidField(
                f"{GENERATES_NOTHING}: say how many of the most likely ones to give at each",
                param="prompt_logprobs",
            )
        if content.max_tokens not in (0, 1):
            raise InvalidField(f"{GENERATES_NOTHING}: send 0 or 1", param="max_tokens")
        for name in ("n", "best_of"):
            if getattr(content, name) not in (None, 1):
                raise InvalidField(f"{GENERATES_NOTHING}: send 1", param=name)
        for name in ("stream", "echo"):
            if getattr(content, name):
                raise InvalidField(f"{GENERATES_NOTHING}: leave it out", param=name)
        refuse_truncation(content.truncate_prompt_tokens)
        if content.prompt_embeds is not None:
            raise InvalidField("only ids and texts are read here", param="prompt_embeds")
        sequences = _sequences(content.prompt)
        if content.add_special_tokens is False and any(
            isinstance(each, Item) for each in sequences
        ):
            raise InvalidField(
                "a text is read as the tokenizer begins one: send ids instead",
                param="add_special_tokens",
            )
        return self.ask(
            sequences,
            top_k=content.prompt_logprobs,
            temperature=content.temperature,
        )

    def write(self, reply: Reply) -> bytes:
        tables = self.tables(reply)
        choices = []
        for index, table in enumerate(tables):
            choice: dict[str, Any] = {
                "index": index,
                "text": "",
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
            if self._shows_ids:
                choice |= {"prompt_token_ids": table.ids, "token_ids": []}
            choices.append(with_raw(choice, "prompt_logprobs", vllm_entries(table)))
        num_tokens = sum(len(table.ids) for table in tables)
        content = {
            "id": f"cmpl-{reply.id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._model or reply.model or "",
            "usage": {
                "prompt_tokens": num_tokens,
                "completion_tokens": 0,
                "total_tokens": num_tokens,
            },
        }
        return with_raw(content, "choices", "[" + b",".join(choices).decode("ascii") + "]")

    error_content = staticmethod(openai_content)


def _sequences(prompt: str | list[str] | list[int] | list[list[int]]) -> list[list[int] | Item]:
    """The sequences of a body, each of them ids or a text. Raises InvalidField."""
    prompts: list[Any] = prompt if isinstance(prompt, list) else [prompt]
    if prompts and isinstance(prompts[0], int):
        prompts = [prompts]
    if not prompts:
        raise InvalidField("there is no prompt", param="prompt")
    refuse_many(prompts, "prompt")
    return [text_item(each) if isinstance(each, str) else each for each in prompts]
