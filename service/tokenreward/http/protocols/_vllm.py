"""What the protocols that follow vLLM share: inputs, the frame of an answer, errors.

It knows no scorer. vLLM's own definitions are in vllm/entrypoints/pooling/ and, since 0.33,
vllm/frontend/entrypoints/pooling/.
"""

from __future__ import annotations

import re
import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tokenreward.errors import InvalidField, RequestError
from tokenreward.http.protocols._answers import ListOf, item_at, param_of, refuse_many
from tokenreward.wire import Item, Reply, parse
from tokenreward.wire.media import JSON

_ACTIVATIONS = ("use_activation", "activation", "softmax")


class PoolingRequest(BaseModel):
    """The fields of `/classify`, `/v1/embeddings` and `/pooling`. Others play no part here."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = None
    input: str | ListOf[str] | ListOf[int] | ListOf[ListOf[int]] | None = None
    messages: ListOf[dict[str, Any]] | None = Field(default=None, min_length=1)
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool = False
    add_special_tokens: bool | None = None
    use_activation: bool | None = None
    activation: bool | None = None
    softmax: bool | None = None
    truncate_prompt_tokens: int | None = None
    dimensions: int | None = None
    encoding_format: Literal["float", "base64", "bytes", "bytes_only"] = "float"
    embed_dtype: str = "float32"
    endianness: Literal["native", "little", "big"] = "native"
    task: str | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """The inputs, each a text or ids; none if the body has messages."""
        if isinstance(self.input, str):
            return [self.input]
        values: list[Any] = self.input or []
        if values and isinstance(values[0], int):
            return [values]
        return values


def parse_body(body: bytes) -> PoolingRequest:
    """The body of a request for pooled outputs.

    Raises:
        RequestError: It is wrong, or it asks for what would be another number here: an activation,
            a truncated input, another chat template, a turn behind the scored one.
    """
    content = JSON.parse(PoolingRequest, body)
    refuse_activation(content)
    refuse_truncation(content.truncate_prompt_tokens)
    if content.dimensions not in (None, 1):
        raise InvalidField("there is one number for an input", param="dimensions")
    if content.chat_template is not None:
        raise InvalidField("the deployment's own template is used", param="chat_template")
    if content.add_generation_prompt:
        raise InvalidField("the last message is the scored one", param="add_generation_prompt")
    if (content.input is None) == (content.messages is None):
        raise InvalidField("give exactly one of `input` and `messages`", param="input")
    if content.input is not None and not content.input:
        raise InvalidField("there is no input", param="input")
    refuse_many(content.inputs, "input")
    return content


def refuse_activation(content: BaseModel) -> None:
    """Raises InvalidField if the body asks for a score between 0 and 1."""
    for name in _ACTIVATIONS:
        if getattr(content, name, None):
            raise InvalidField("scores are raw logits here: send false", param=name)


def refuse_truncation(num_tokens: int | None, param: str = "truncate_prompt_tokens") -> None:
    """Raises InvalidField if the body asks for fewer tokens than an input has. -1 means no fewer
    than the model reads, which is refused where an input has more."""
    if num_tokens not in (None, -1):
        raise InvalidField("nothing is truncated here", param=param)


def chat_item(content: PoolingRequest, whole: Literal["sequence"] | None = None) -> Item:
    """The item of a body with messages, whose last one is scored. Raises InvalidField."""
    messages = content.messages or []
    if messages[-1].get("role") != "assistant":
        raise InvalidField(
            "the last message is scored, and must be the assistant's",
            param=f"messages[{len(messages) - 1}].role",
        )
    fields = {
        "prompt": messages[:-1],
        "response": messages[-1],
        "finished": not content.continue_final_message,
        "chat_template_kwargs": content.chat_template_kwargs or {},
        "whole": whole,
    }
    try:
        return parse(Item, fields)
    except RequestError as error:
        error.param = re.sub("^prompt", "messages", error.param or "")
        error.param = re.sub("^response", f"messages[{len(messages) - 1}]", error.param)
        raise


def whole_items(content: PoolingRequest) -> list[Item]:
    """The items of the inputs, each of which gets a score: in a text the last assistant turn is
    scored, ids are read as they are. Raises InvalidField."""
    if content.messages is not None:
        return [chat_item(content)]
    items = []
    for index, value in enumerate(content.inputs):
        if not value:
            raise InvalidField("it is empty", param=f"input[{index}]")
        if isinstance(value, str):
            items.append(Item(prompt="", response=value, finished=False, whole="conversation"))
        else:
            where = f"input[{index}]"
            items.append(item_at(where, prompt="", response=value, whole="sequence"))
    return items


def frame(kind: str, model: str | None, reply: Reply, data: list[dict[str, Any]]) -> dict[str, Any]:
    """The body of an answer around its data.

    Args:
        kind: How the answer's id begins.
        model: The model as the caller called it.
        reply: The reply.
        data: The results.
    """
    num_tokens = reply.usage.prompt_tokens + reply.usage.response_tokens
    return {
        "id": f"{kind}-{reply.id}",
        "object": "list",
        "created": int(time.time()),
        "model": model or reply.model or "",
        "data": data,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def openai_error(error: RequestError, field: str) -> tuple[int, bytes]:
    """A failure as vLLM and the OpenAI SDK have it. `field`: what items are called."""
    return error.status, JSON.dump(openai_content(error, param_of(error, field)))


def openai_content(error: RequestError, param: str | None) -> dict[str, Any]:
    """The body of such a failure, whose place in the caller's body is `param`."""
    detail = {"message": error.message, "type": error.code, "param": param, "code": error.status}
    return {"error": detail}
