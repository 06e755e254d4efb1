"""Renders conversations through a tokenizer's chat template: messages in, text out.

A template is a program that the checkpoint's author or a caller wrote, so rendering may raise
anything. It knows no token ids.
"""

from __future__ import annotations

import inspect
from typing import Any

from jinja2 import TemplateError

from tokenreward.errors import UnsupportedText

_MARK = "tokenreward"


def render_prompt(
    tokenizer: Any,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    variables: dict[str, Any],
    *,
    param: str | None,
) -> str:
    """The conversation so far, with the template's generation prompt behind it.

    Args:
        tokenizer: A transformers tokenizer.
        messages: The turns, as the caller wrote them.
        tools: Descriptions of tools for the template, if any.
        variables: The caller's `chat_template_kwargs`.
        param: The caller's field, for errors.

    Raises:
        UnsupportedText: There is no template, it refuses or fails on these messages, or
            `variables` names an argument of the rendering call.
    """
    if variables:
        # Variables reach the template, arguments of the call must not be set: one of them,
        # `chat_template`, is a whole template to run.
        arguments = inspect.signature(tokenizer.apply_chat_template).parameters
        for name in variables:
            if name in arguments:
                raise UnsupportedText(f"`chat_template_kwargs` may not set `{name}`", param=param)
    if not tokenizer.chat_template:
        raise UnsupportedText("this tokenizer has no chat template; send raw text", param=param)
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=False, **variables
        )
    except TemplateError as error:
        raise UnsupportedText(
            f"the chat template refused these messages: {error}", param=param
        ) from None
    except Exception as error:
        # Whatever a template raises is the fault of this item. Only the kind of error is
        # repeated, because its text may quote the messages.
        kind = type(error).__name__
        raise UnsupportedText(
            f"the chat template failed on these messages: {kind}", param=param
        ) from None
    return text


def render_conversation(tokenizer: Any, messages: list[dict[str, Any]]) -> str | None:
    """A whole conversation as the template writes it, without a generation prompt.

    None if there is no template, or if the template fails: it may demand fields that plain turns
    do not have.
    """
    if not tokenizer.chat_template:
        return None
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:
        return None
    return text


def text_after_assistant_turn(tokenizer: Any) -> str:
    """The text that the template writes behind an assistant's words, for example `<|im_end|>\\n`.

    Empty if it writes nothing there, or if there is no template that renders two plain turns.
    """
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    text = render_conversation(tokenizer, turns) or ""
    return text.rpartition(_MARK)[2]
