"""Short conversations that a chat template is tried with, and words to look for in what it writes.

It knows the shape of messages and no template.
"""

from __future__ import annotations

import json
from typing import Any

from tokenreward.text.messages import Arguments, ToolForm

# Words that no template has.
MARK, SECOND_MARK = "tokenreward", "qzlarch"
KEY, VALUE = "xjelm", "wvbirch"


def tool_named(name: str, form: ToolForm) -> dict[str, Any]:
    """A description of a tool without parameters."""
    parameters = {"type": "object", "properties": {}, "required": []}
    function = {"name": name, "description": "g", "parameters": parameters}
    if form == "flat":
        return {"type": "function", **function}
    return {"type": "function", "function": function}


def conversation_with(role: str, content: Any) -> list[dict[str, Any]]:
    """A short conversation with a message of this role where templates allow one."""
    user, message = {"role": "user", "content": "a"}, message_of(role, content)
    if role in ("system", "developer"):
        return [message, user]
    if role == "assistant":
        return [user, message, user]
    if role == "tool":
        call = tool_call("f", "b")
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        return [user, turn, {**message, "tool_call_id": call["id"]}]
    return [message]


def message_of(role: str, content: Any) -> dict[str, Any]:
    message = {"role": role, "content": content}
    return {**message, "name": "f"} if role == "tool" else message


def tool_call(name: str, value: str, form: Arguments = "object") -> dict[str, Any]:
    """A tool call with one argument. Mistral's templates want an id of nine characters."""
    arguments: Any = {KEY: value}
    if form == "json":
        arguments = json.dumps(arguments)
    function = {"name": name, "arguments": arguments}
    return {"id": "call00000", "type": "function", "function": function}
