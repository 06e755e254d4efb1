"""vLLM's `POST /tokenize`: a text or messages in, token ids out. It asks no scorer.

    {"prompt": "2+2?"} -> {"count": 5, "max_model_len": 4096, "tokens": [0, 20, 13, 20, 33], ...}

It knows bodies, and a tokenizer by what it can be asked.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tokenreward.errors import InvalidField, ItemError, RequestError
from tokenreward.http.protocols._answers import ListOf
from tokenreward.text.tokenizer import Tokenizer
from tokenreward.wire import Item, parse
from tokenreward.wire.media import JSON


class TokenizeRequest(BaseModel):
    """A body of `/tokenize`. Other fields play no part here."""

    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: str | None = None
    messages: ListOf[dict[str, Any]] | None = Field(default=None, min_length=1)
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: ListOf[dict[str, Any]] | None = None
    return_token_strs: bool | None = None


def read_texts(body: bytes) -> TokenizeRequest:
    """The body of a request for tokens. Raises RequestError if it is wrong."""
    content = JSON.parse(TokenizeRequest, body)
    if (content.prompt is None) == (content.messages is None):
        raise InvalidField("give exactly one of `prompt` and `messages`", param="prompt")
    if content.chat_template is not None:
        raise InvalidField("the deployment's own template is used", param="chat_template")
    if content.continue_final_message:
        raise InvalidField(
            "the template ends each message: send the text of the conversation as `prompt`",
            param="continue_final_message",
        )
    return content


def tokenize(content: TokenizeRequest, tokenizer: Tokenizer, max_tokens: int | None) -> bytes:
    """The answer to a request for tokens.

    Args:
        content: The request's body.
        tokenizer: The deployment's.
        max_tokens: The longest row that the deployment scores.

    Raises:
        RequestError: The text cannot be tokenised.
    """
    param = "prompt" if content.messages is None else "messages"
    text = content.prompt
    try:
        if text is None:
            text = _rendered(content, tokenizer)
        ids = tokenizer.encoder.caller_ids(text, param=param)
    except ItemError as error:
        raise InvalidField(f"{error.message} ({error.code})", param=error.param) from None
    if content.messages is None and content.add_special_tokens:
        ids = tokenizer.with_bos(ids)
    answer = {"count": len(ids), "max_model_len": max_tokens, "tokens": ids.tolist()}
    answer["token_strs"] = tokenizer.texts(ids) if content.return_token_strs else None
    return JSON.dump(answer)


def _rendered(content: TokenizeRequest, tokenizer: Tokenizer) -> str:
    """The messages as the chat template writes them. Raises RequestError, UnsupportedText."""
    fields = {
        "prompt": content.messages,
        "response": "",
        "tools": content.tools,
        "chat_template_kwargs": content.chat_template_kwargs or {},
    }
    try:
        item = parse(Item, fields)
    except RequestError as error:
        error.param = re.sub("^prompt", "messages", error.param or "") or None
        raise
    return tokenizer.template.prompt(
        item.messages or [],
        item.tools,
        item.chat_template_kwargs,
        param="messages",
        is_whole=not content.add_generation_prompt,
    )
