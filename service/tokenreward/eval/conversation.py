"""Reads a prompt and a response out of a row, in the forms in which data sets hold them.

A prompt is text, or messages; a response is text, an assistant message, or a conversation that ends
in one. Messages are `{"role", "content"}`, or `{"from", "value"}` as ShareGPT has them. A dialogue
is one text with `\\n\\nHuman: ` and `\\n\\nAssistant: ` before its turns, as in HH-RLHF.

    prompt, response                        both text
    prompt, completion                      TRL's prompt-completion, text or messages
    prompt, chosen                          TRL's explicit preference; UltraFeedback, whose `chosen`
                                            repeats the prompt
    chosen                                  TRL's implicit prompt; a dialogue
    conversations, chosen                   LLaMA-Factory's ranking
    instruction, input, history             Alpaca: what the instruction is about, and turns before
                                            it
    messages                                a conversation that ends in the response

A response that has no text of its own (an assistant message that calls tools) is refused, and so is
a conversation that begins with another prompt than the row has: there is no guess at what was
meant. This module knows no files, no kinds of data and no service. Paths in errors begin with the
field of the row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tokenreward.errors import InvalidField

PromptAs = Literal["user", "raw"]
Prompt = str | list[dict[str, Any]]

PROMPT_FIELDS = (
    "prompt",
    "question",
    "instruction",
    "problem",
    "query",
    "conversations",
    "trajectory",
    "context",
    "history",
    "input",
)
"""The first of them that has a value is the prompt."""
RESPONSE_FIELDS = ("response", "completion", "messages")
SYSTEM_FIELDS = ("system", "system_prompt")

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ASSISTANT = "\n\nAssistant:"
_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def conversation(
    fields: Mapping[str, Any], field: str, *, prompt_as: PromptAs = "user"
) -> tuple[Prompt, str]:
    """The prompt and the response of a row.

    Args:
        fields: The row.
        field: The field that holds the response.
        prompt_as: What a prompt that is text becomes: one user message (`user`), or itself (`raw`).
            Beside a response that is a message it is a user message in any case.

    Raises:
        InvalidField: The row holds no such conversation. `param` is the path in the row.
    """
    value = fields[field]
    own = _own_prompt(fields, prompt_as)
    if isinstance(value, str):
        if own is None:
            return _dialogue(fields, value, field, prompt_as)
        if isinstance(own, str) and own.rstrip(" ").endswith(_ASSISTANT) and prompt_as == "user":
            # A dialogue, cut before its last turn, which the response may repeat. Nectar's prompts
            # end in a space.
            whole = value if value.startswith(own) else own + value
            return _dialogue(fields, whole, field, prompt_as)
        return _with_system(fields, own, prompt_as), value
    before, response = _split(value, field)
    if isinstance(own, str):
        own = [{"role": "user", "content": own}]
        texts = [message.get("content") for message in before if message.get("role") == "user"]
        if texts and own[0]["content"] in (texts[0], texts[-1]):
            own = before  # UltraFeedback: the conversation repeats the prompt
    if before and own not in (None, before):
        message = "begins with other messages than the row's prompt has"
        raise InvalidField(message, param=field)
    messages = before or own
    if not messages:
        raise InvalidField("is required: the response stands alone", param="prompt")
    return _with_system(fields, messages, "user"), response


def messages_of(value: Sequence[Any], field: str) -> list[dict[str, Any]]:
    """Messages with `role` and `content`.

    Columns of a table have every key in every row: keys without a value are left out.

    Raises:
        InvalidField: One is no object, or its `from` is no role.
    """
    messages = []
    for place, message in enumerate(value):
        if not isinstance(message, dict):
            message_text = "must be a message, as `role` and `content`"
            raise InvalidField(message_text, param=f"{field}[{place}]")
        entry = {k: v for k, v in message.items() if v is not None or k == "content"}
        if "from" in entry and "role" not in entry:
            role = _ROLES.get(str(entry.pop("from")))
            if role is None:
                choices = ", ".join(_ROLES)
                raise InvalidField(f"must be one of {choices}", param=f"{field}[{place}].from")
            entry = {"role": role, "content": entry.pop("value", None), **entry}
        messages.append(entry)
    return messages


def kind_of(value: object) -> str:
    """What a JSON value is, without quoting its text: `a list of length 2`, `true`, `a string`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return "a large number" if abs(value) >= 10**12 else f"{value}"
    if isinstance(value, list):
        return f"a list of length {len(value)}"
    if isinstance(value, dict):
        return f"an object of length {len(value)}"
    return "a string"


def _own_prompt(fields: Mapping[str, Any], prompt_as: PromptAs) -> Prompt | None:
    """The prompt that a row holds in a field of its own; None if it has no such field."""
    past = _past_turns(fields)
    names = [name for name in PROMPT_FIELDS if fields.get(name) is not None]
    if past and "history" in names:
        names.remove("history")
    if not names:
        return None
    name, value = names[0], fields[names[0]]
    context = fields.get("context")
    is_beside = name != "context" and isinstance(context, str) and bool(context.strip())
    if is_beside and isinstance(value, str) and str(context) not in value:
        message = f"stands beside `{name}`, and which of both is the prompt is not said"
        raise InvalidField(f"{message}: leave it out, or put it into `{name}`", param="context")
    if isinstance(value, str):
        # Alpaca's rows: the instruction, and below it what it is about.
        more = fields.get("input")
        if name == "instruction" and more:
            if not isinstance(more, str):
                raise InvalidField(f"must be a string, got {kind_of(more)}", param="input")
            value = f"{value}\n{more}"
        if prompt_as == "user" and _HELPSTEER_TURN.search(value):
            return past + _helpsteer_messages(value)
        return [*past, {"role": "user", "content": value}] if past else value
    if not isinstance(value, list) or not value or not all(isinstance(m, dict) for m in value):
        message = f"must be a string or a list of messages, got {kind_of(value)}"
        raise InvalidField(message, param=name)
    return past + messages_of(value, name)


def _past_turns(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turns before the prompt, which Alpaca's rows have as `history`: pairs of texts. In SHP's
    rows that field is a text, the prompt itself.

    Raises:
        InvalidField: It is anything else.
    """
    history = fields.get("history")
    if not history or isinstance(history, str):
        return []
    messages = []
    for place, pair in enumerate(history if isinstance(history, list) else [history]):
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not all(isinstance(text, str) for text in pair):
            message = f"must be a text of the user and one of the assistant, got {kind_of(pair)}"
            raise InvalidField(message, param=f"history[{place}]")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            messages.append({"role": role, "content": text})
    return messages


def _helpsteer_messages(text: str) -> list[dict[str, Any]]:
    """The messages of a prompt of several turns, as HelpSteer2 has them in one text."""
    first, *turns = _HELPSTEER_TURN.split(text)
    messages = [{"role": "user", "content": first}] if first else []
    for role, content in zip(turns[::2], turns[1::2], strict=True):
        messages.append({"role": role.lower(), "content": content})
    return messages


def _split(value: Any, field: str) -> tuple[list[dict[str, Any]], str]:
    """The messages before the last one, and the text of the last one, which is the assistant's."""
    is_list = isinstance(value, list) and bool(value)
    if not is_list and not isinstance(value, dict):
        message = f"must be a string or messages, got {kind_of(value)}"
        raise InvalidField(message, param=field)
    messages = messages_of(value if is_list else [value], field)
    path = f"{field}[{len(messages) - 1}]" if is_list else field
    *before, last = messages
    if last.get("role") != "assistant":
        raise InvalidField("must be the assistant's: it is the response", param=f"{path}.role")
    if last.get("tool_calls"):
        message = "cannot be scored as text: send what the policy wrote as `response`"
        raise InvalidField(message, param=f"{path}.tool_calls")
    content = last.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        if all(isinstance(text, str) for text in texts):
            content = "".join(map(str, texts))
    if not isinstance(content, str):
        raise InvalidField("must be text", param=f"{path}.content")
    return before, content


def _dialogue(
    fields: Mapping[str, Any], text: str, field: str, prompt_as: PromptAs
) -> tuple[Prompt, str]:
    """The prompt and the response of a dialogue in one text."""
    start, *turns = _TURN.split(text)
    if start.strip() or len(turns) < 4:  # a turn is a name and a text, and a prompt has one
        raise InvalidField("is required", param="prompt")
    if turns[-2] != "Assistant":
        raise InvalidField("must end in a turn of the assistant: it is the response", param=field)
    if prompt_as == "raw":
        response = turns[-1]
        return text[: len(text) - len(response)], response
    roles = ["user" if name == "Human" else "assistant" for name in turns[::2]]
    # One space separates a name from what is said.
    contents = [content.removeprefix(" ") for content in turns[1::2]]
    pairs = zip(roles, contents, strict=True)
    *before, last = [{"role": role, "content": content} for role, content in pairs]
    return _with_system(fields, before, prompt_as), last["content"]


def _with_system(fields: Mapping[str, Any], prompt: Prompt, prompt_as: PromptAs) -> Prompt:
    """The prompt as it is sent, with the system message that the row has in a field of its own."""
    name = next((name for name in SYSTEM_FIELDS if fields.get(name)), "system")
    system = fields.get(name) or None
    if not isinstance(system, str | None):
        raise InvalidField(f"must be a string, got {kind_of(system)}", param=name)
    if isinstance(prompt, str):
        if prompt_as == "raw" and system is None:
            return prompt
        if prompt_as == "raw":
            raise InvalidField("goes with messages, and the prompt is raw text", param=name)
        prompt = [{"role": "user", "content": prompt}]
    if system is None or prompt[0].get("role") == "system":
        return prompt
    return [{"role": "system", "content": system}, *prompt]
