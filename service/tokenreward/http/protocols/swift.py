"""ms-swift's rollout server as a teacher, `POST /infer/` (`--teacher_model_server`): GKD and GRPO
with a teacher's KL.

    {"infer_requests": [{"messages": [{"role": "user", "content": "2+2?"},
                                      {"role": "assistant", "content": [61, 72]}]}],
     "request_config": {"prompt_logprobs": 0, "max_tokens": 1, "temperature": 0.0}}
    -> [{"model": "...", "choices": [...], "usage": {...}, "prompt_logprobs": [null, {"61":
         {"logprob": -1.2, ...}}, ...], ...}]

The messages before the last go through this checkpoint's chat template, with the generation prompt;
so it must be the student's. The last message is the assistant's: ids are read as they are, and a
text is tokenised. `prompt_logprobs` is of the whole sequence: 0 gives each token's own entry alone,
which is how the client finds the response by its ids. Masks of the loss play no part.

The client reads an answer as a dataclass, to which a key that it does not know is an error.

Client: swift/rlhf_trainers/vllm_client.py (`VLLMInferClient.infer`), which gives up at the first
refusal, and has no time limit.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from tokenreward.errors import InvalidField, RequestError
from tokenreward.http.protocols._answers import ListOf, refuse_many
from tokenreward.http.protocols._log_probs import (
    GENERATES_NOTHING,
    LogProbProtocol,
    fastapi_content,
    vllm_entries,
    with_raw,
)
from tokenreward.wire import Item, Reply, RewardsRequest, parse
from tokenreward.wire.media import JSON

_MEDIA = ("images", "audios", "videos")


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    prompt_logprobs: Annotated[int, Field(ge=0)] | None = None
    max_tokens: int | None = None
    temperature: FiniteFloat | None = None
    n: int | None = None
    stream: bool | None = None


class _InferRequest(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    messages: ListOf[dict[str, Any]] = Field(min_length=1)
    tools: ListOf[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_eos: bool | str | None = None
    images: ListOf[Any] = Field(default_factory=list)
    audios: ListOf[Any] = Field(default_factory=list)
    videos: ListOf[Any] = Field(default_factory=list)


class _Infer(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    infer_requests: ListOf[_InferRequest]
    request_config: _Config | None = None
    adapter_request: Any = None


class Swift(LogProbProtocol):
    """An answer per conversation."""

    paths = ("/infer/", "/infer")
    example = (
        '{"infer_requests": [{"messages": [{"role": "user", "content": "2+2?"}, {"role": '
        '"assistant", "content": [60, 1]}]}], "request_config": {"prompt_logprobs": 0, '
        '"max_tokens": 1, "temperature": 0.0}}'
    )
    items = "infer_requests"
    top_k_field = "request_config.prompt_logprobs"
    temperature_field = "request_config.temperature"

    def read(self, body: bytes) -> RewardsRequest | None:
        content = JSON.parse(_Infer, body)
        refuse_many(content.infer_requests, "infer_requests")
        config = content.request_config
        if config is None or config.prompt_logprobs is None:
            raise InvalidField(
                f"{GENERATES_NOTHING}: say how many of the most likely ones to give at each",
                param=self.top_k_field,
            )
        if config.max_tokens not in (0, 1) or config.n not in (None, 1) or config.stream:
            raise InvalidField(
                f"{GENERATES_NOTHING}: send `max_tokens` 1 and no stream", param="request_config"
            )
        if content.adapter_request is not None:
            raise InvalidField("the deployment's own weights are read", param="adapter_request")
        return self.ask(
            [_item(each, index) for index, each in enumerate(content.infer_requests)],
            top_k=config.prompt_logprobs,
            temperature=config.temperature,
        )

    def write(self, reply: Reply) -> bytes:
        answers = []
        for table in self.tables(reply):
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": ""},
                "finish_reason": "length",
            }
            usage = {
                "prompt_tokens": len(table.ids),
                "completion_tokens": 0,
                "total_tokens": len(table.ids),
            }
            content = {
                "model": reply.model or "",
                "choices": [choice],
                "usage": usage,
                "id": f"chatcmpl-{reply.id}",
                "object": "chat.completion",
                "created": int(time.time()),
                "prompt_token_ids": table.ids,
            }
            answers.append(with_raw(content, "prompt_logprobs", vllm_entries(table)))
        return b"[" + b",".join(answers) + b"]"

    error_content = staticmethod(fastapi_content)


def _item(request: _InferRequest, index: int) -> Item:
    """The item of a conversation. Raises InvalidField, UnknownField."""
    where = f"infer_requests[{index}]"
    for name in _MEDIA:
        if getattr(request, name):
            raise InvalidField("only text is read here", param=f"{where}.{name}")
    *prompt, last = request.messages
    place = f"{where}.messages[{len(prompt)}]"
    if last.get("role") != "assistant":
        raise InvalidField("the last message is scored, and must be the assistant's", param=place)
    if not prompt:
        raise InvalidField("there is no message before the scored one", param=place)
    response = last.get("content")
    if isinstance(response, dict):
        response = response.get("token_ids")
    if not isinstance(response, (str, list)) or not response:
        raise InvalidField("it must hold token ids, or a text", param=f"{place}.content")
    fields: dict[str, Any] = {
        "prompt": prompt,
        "response": response,
        "whole": "sequence",
        "chat_template_kwargs": request.chat_template_kwargs or {},
        "tools": request.tools or None,
    }
    if isinstance(response, str):
        fields["finished"] = request.add_eos in (True, "auto")
    for number, message in enumerate(prompt):
        if isinstance(message.get("content"), (list, dict)) and message.get("role") == "assistant":
            raise InvalidField(
                "ids can stand in the last message alone: the template writes text",
                param=f"{where}.messages[{number}].content",
            )
    try:
        return parse(Item, fields)
    except RequestError as error:
        error.param = (error.param or "").replace("prompt", f"{where}.messages", 1)
        error.param = error.param.replace("response", f"{place}.content", 1)
        raise
