"""Messages as people send them, in the form that a chat template takes.

Content comes as a string, as a list of text parts or not at all, and arguments of tool calls as an
object or as its JSON. A template takes some of these forms. Of another form it may print Python's
repr, or nothing, without a word: the model would then read another text than the caller sent. So a
form that the template does not take is put into one that it takes, which changes no character, and
what it would not show is refused.

This module does not know how a template is rendered. What a template takes is found out by
`chat_template`.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from tokenreward.errors import UnsupportedText, quotable
from tokenreward.wire import texts_of

# Forms of content: a string, a list of one text part, a list of several.
Form = Literal["string", "part", "parts"]
# A description of a tool: as `{"function": {"name": ...}}`, or with its name at its top.
ToolForm = Literal["nested", "flat"]
TOOL_FORMS: tuple[ToolForm, ...] = ("nested", "flat")
# How arguments of tool calls are taken: as an object, or as its JSON.
Arguments = Literal["object", "json"]

_MAX_CHARACTERS = 200  # of what a template raised


def text_part(text: str) -> dict[str, str]:
    """A text as one part of a content that is a list."""
    return {"type": "text", "text": text}


def content_in_form(
    message: dict[str, Any], forms: frozenset[Form] | None, *, param: str | None
) -> Any:
    """The content of a message in a form that the template takes.

    Args:
        message: The message; its content is a string or a list of parts.
        forms: What the template takes of the message's role. Empty if it shows no content of that
            role; None if that could not be found out.
        param: The path of the content, for errors.

    Raises:
        UnsupportedText: A part is not text, or the template would not show the content.
    """
    content = message["content"]
    try:
        texts = [content] if isinstance(content, str) else texts_of(content)
    except ValueError as error:
        raise UnsupportedText(str(error), param=param) from None
    text = "".join(texts)
    if forms is None or not text:
        return text
    if not forms:
        raise UnsupportedText(
            f"the chat template shows no content of role `{quotable(message['role'])}`: move it "
            "into a message that it shows",
            param=param,
        )
    if isinstance(content, list) and "parts" in forms:
        return [text_part(text) for text in texts]
    return text if "string" in forms else [text_part(text)]


def calls_in_form(
    calls: list[Any], arguments: Arguments | None, *, param: str | None
) -> list[dict[str, Any]]:
    """Tool calls as templates read them: `{"function": {"name": ..., "arguments": ...}}`.

    Args:
        calls: The calls. A call may also have name and arguments at its top.
        arguments: How the template takes arguments.
        param: The path of the calls, for errors.

    Raises:
        UnsupportedText: The template takes objects, and arguments are no JSON of one.
    """
    result = []
    for place, call in enumerate(calls):
        where = None if param is None else f"{param}[{place}]"
        if not isinstance(call, dict):
            raise UnsupportedText("a tool call is an object", param=where)
        function = call.get("function")
        if not isinstance(function, dict):
            function = {name: call[name] for name in ("name", "arguments") if name in call}
        rest = {name: value for name, value in call.items() if name not in function}
        if "arguments" in function:
            value = _arguments_in_form(function["arguments"], arguments, param=where)
            function = {**function, "arguments": value}
        result.append({"type": "function", **rest, "function": function})
    return result


def _arguments_in_form(value: Any, form: Arguments | None, *, param: str | None) -> Any:
    if form == "json":
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value or "{}")
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise UnsupportedText(
            "the chat template takes `arguments` as an object, and these are no JSON of one",
            param=param,
        )
    return parsed


def tools_in_form(
    tools: list[dict[str, Any]] | None, forms: frozenset[ToolForm] | None
) -> list[dict[str, Any]] | None:
    """Descriptions of tools in a form that the template shows.

    Args:
        tools: As the caller sent them.
        forms: What the template shows. Empty if it shows no tools; None if that could not be found
            out.

    Raises:
        UnsupportedText: The template shows no tools.
    """
    if not tools or forms is None:
        return tools
    if not forms:
        raise UnsupportedText(
            "the chat template shows no tools: describe them in a message", param="tools"
        )
    result = []
    for tool in tools:
        function = tool.get("function")
        if isinstance(function, dict) and "nested" not in forms:
            tool = {"type": "function", **function}
        elif not isinstance(function, dict) and "flat" not in forms:
            function = {name: value for name, value in tool.items() if name != "type"}
            tool = {"type": "function", "function": function}
        result.append(tool)
    return result


def refuse_answered(messages: list[dict[str, Any]], *, param: str) -> None:
    """Refuses a prompt that ends in an answer: behind it the response would begin another turn.

    Raises:
        UnsupportedText: It does.
    """
    if messages and messages[-1]["role"] == "assistant":
        raise UnsupportedText(
            "the last message is the assistant's, and the response would begin another turn: send "
            "its text as `response`, or in front of `response` where the policy went on from it",
            param=f"{param}[{len(messages) - 1}]",
        )


def cause(error: Exception) -> str:
    """What a template raised, in a few words.

    The text of an error of Python's may quote the messages, which stay out of logs: only errors of
    types are repeated, which name types.
    """
    kind = type(error).__name__
    if isinstance(error, (TypeError, AttributeError)):
        return f"{kind}: {error}"[:_MAX_CHARACTERS]
    return kind
