"""Chat messages: what a prompt is made of, and the text of one that is a response.

It knows the shape of messages and no chat template.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tokenreward.errors import quotable

RESPONSE_FORMS = 'must be a string, an assistant message, a list of token ids or {"ids_b64": "..."}'
# Keys of an assistant's message that hold nothing the policy wrote.
_KEYS_WITHOUT_TEXT = frozenset({"role", "content", "name", "id", "type", "status"})
# A tuple, because a caller may send what has no hash. The last two are of OpenAI's Responses.
_TEXT_PARTS = ("text", "input_text", "output_text")


class Message(BaseModel):
    """One chat message. Further keys (`name`, `tool_calls`, ...) reach the chat template as they
    are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: str
    content: str | Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None


def text_of_message(value: object) -> str:
    """The text of a response that is an assistant's message, or a list of one.

    Raises:
        ValueError: It is no such message, or the policy wrote more than its text.
    """
    messages = value if isinstance(value, list) else [value]
    if len(messages) > 1:
        raise ValueError(
            f"must be one assistant message, got {len(messages)} messages: those before it belong "
            "in `prompt`"
        )
    message = messages[0]
    if isinstance(message, Message):
        message = message.model_dump(exclude_unset=True)
    if not isinstance(message, dict) or not message.keys() & {"role", "content"}:
        raise ValueError(RESPONSE_FORMS)
    if message.get("role") != "assistant":
        raise ValueError("a response that is a message has `role` `assistant`")
    for key, entry in message.items():
        if key not in _KEYS_WITHOUT_TEXT and entry not in (None, [], {}, ""):
            raise ValueError(
                f"the message has `{quotable(str(key))}` beside its text: send what the policy "
                "wrote, as text or as token ids"
            )
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("the message has no `content` that is a string or a list of text parts")
    return "".join(texts_of(content))


def texts_of(parts: list[Any]) -> list[str]:
    """The texts of a content that is a list of parts.

    Raises:
        ValueError: A part is not text: an image, say. It is named by its type.
    """
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        text = part.get("text") if kind in _TEXT_PARTS else None
        if not isinstance(text, str):
            raise ValueError(
                f"a part of type `{quotable(str(kind))}` cannot be read, only text can"
            )
        texts.append(text)
    return texts
