"""The skeleton of a conversation: the same turns and tools, with a mark in place of each text.

A template may pass over a message because of its role, its place or what stands around it, and the
model would then read another conversation than the caller sent. Whether a text is in the prompt
cannot be told from the text itself, which may be one word, or stand there twice, and which
templates trim, escape and cut. A mark can be looked for. This module renders nothing.
"""

from __future__ import annotations

import re
from typing import Any

from tokenreward.errors import UnsupportedText, quotable
from tokenreward.text.messages import Arguments, ToolForm, text_part
from tokenreward.text.trial_turns import MARK, message_of, tool_call, tool_named

_MARKS = re.compile(rf"{MARK}(?:t?\d+|\d+[pc]\d+)e")

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]]


def skeleton_of(messages: Messages, tools: Tools | None) -> tuple[Messages, Tools]:
    """The skeleton of messages and tools that have the forms which the template takes."""
    turns = []
    for place, message in enumerate(messages):
        content = message["content"]
        if isinstance(content, list):
            content = [text_part(f"{MARK}{place}p{part}e") for part in range(len(content))]
        elif content:
            content = f"{MARK}{place}e"
        turn = message_of(message["role"], content)
        calls = []
        for number, call in enumerate(message.get("tool_calls") or ()):
            arguments: Arguments = "object"
            if isinstance(call["function"].get("arguments"), str):
                arguments = "json"
            calls.append(tool_call(f"{MARK}{place}c{number}e", "b", arguments))
        if calls:
            turn["tool_calls"] = calls
        if turn["role"] == "tool":
            turn["tool_call_id"] = tool_call("f", "b")["id"]
        turns.append(turn)
    marked_tools = []
    for place, tool in enumerate(tools or ()):
        form: ToolForm = "nested" if isinstance(tool.get("function"), dict) else "flat"
        marked_tools.append(tool_named(f"{MARK}t{place}e", form))
    return turns, marked_tools


def refuse_hidden(text: str, turns: Messages, tools: Tools, *, param: str | None) -> None:
    """Refuses a conversation of which the template hides a text.

    Args:
        text: What the template made of the skeleton.
        turns: The skeleton's messages.
        tools: The skeleton's tools.
        param: The path of the messages, for errors.

    Raises:
        UnsupportedText: It names what is hidden.
    """
    marks_in_text = frozenset(
        _MARKS.findall(text.lower())
    )  # found at once: there may be 100,000 turns
    for place, turn in enumerate(turns):
        where = None if param is None else f"{param}[{place}]"
        content = turn["content"]
        marks = [part["text"] for part in content or () if isinstance(part, dict)]
        if isinstance(content, str) and content:
            marks = [content]
        if not marks_in_text.issuperset(marks):
            raise UnsupportedText(
                f"the chat template shows no content of role `{quotable(str(turn['role']))}` at "
                "this place: move it into a message that the template shows",
                param=where and f"{where}.content",
            )
        names = [call["function"]["name"] for call in turn.get("tool_calls", ())]
        if not marks_in_text.issuperset(names):
            raise UnsupportedText(
                "the chat template does not show such tool calls at this place: write them into "
                "`content`, as the policy wrote them",
                param=where and f"{where}.tool_calls",
            )
    if not all(tool.get("function", tool)["name"] in marks_in_text for tool in tools):
        raise UnsupportedText(
            "the chat template shows no tools in such a conversation: describe them in a message",
            param="tools",
        )
