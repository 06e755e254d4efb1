"""Finds out what a chat template takes, by trying it with short conversations.

Reading the program of a template would say less, because a template calls macros and passes values
on. Whatever it fails on here, it may take elsewhere: then nothing is said. This module renders
through a function that it is given, and knows no tokenizer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from tokenreward.text.messages import TOOL_FORMS, Arguments, Form, ToolForm, text_part
from tokenreward.text.trial_turns import (
    KEY,
    MARK,
    SECOND_MARK,
    VALUE,
    conversation_with,
    message_of,
    tool_call,
    tool_named,
)

# From messages and tools to the template's text, with its generation prompt; None if it fails.
Render = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None], str | None]


def tool_forms(render: Render) -> frozenset[ToolForm] | None:
    """In which forms the template shows tools; None if it refuses or fails on all of them."""
    forms: set[ToolForm] = set()
    has_failed = True
    for system in ([], [message_of("system", "b")]):
        for form in TOOL_FORMS:
            text = render([*system, message_of("user", "a")], [tool_named(MARK, form)])
            if text is not None:
                has_failed = False
                if MARK in text:
                    forms.add(form)
    return None if has_failed else frozenset(forms)


def content_forms(render: Render, role: str, has_tools: bool) -> frozenset[Form] | None:
    """In which forms the template shows content of a role; None if it refuses or fails on all
    of them."""
    tools = [tool_named("f", "nested")] if has_tools else None
    # Parts that a template trims would come together as one word.
    first, second = f"{MARK} ", f" {SECOND_MARK}"
    contents: dict[Form, Any] = {
        "string": f"{first}{second}",
        "part": [text_part(f"{first}{second}")],
        "parts": [text_part(first), text_part(second)],
    }
    forms: set[Form] = set()
    has_failed = True
    for form, content in contents.items():
        text = render(conversation_with(role, content), tools)
        if text is None:  # a template may not take the turns around it
            text = render([{"role": "user", "content": "a"}, message_of(role, content)], tools)
        if text is None:
            continue
        has_failed = False
        places = [text.lower().find(mark) for mark in (first, second)]
        # A list that is printed as it is has the keys of its parts in the text.
        if -1 < places[0] < places[1] and "'text'" not in text and '"text"' not in text:
            forms.add(form)
    return None if has_failed else frozenset(forms)


def call_forms(
    render: Render, several: bool, has_content: bool, has_tools: bool
) -> list[tuple[Arguments, str | None]] | None:
    """How the template shows tool calls.

    Args:
        render: Renders messages and tools.
        several: Whether a message has more than one.
        has_content: Whether it has a content, too.
        has_tools: Whether the template is given tools.

    Returns:
        Forms of arguments, with what stands for an absent content: some templates print a null,
        others show calls beside a null only. Empty if it shows no such calls; None if it
        refuses or fails on all.
    """
    forms: list[tuple[Arguments, str | None]] = []
    has_failed = True
    names_and_values = [(f"{MARK}{place}", f"{VALUE}{place}") for place in range(1 + several)]
    forms_of_arguments: tuple[Arguments, ...] = ("object", "json")
    contents: list[str | None] = [SECOND_MARK] if has_content else ["", None]
    for form, content in itertools.product(forms_of_arguments, contents):
        calls = [tool_call(name, value, form) for name, value in names_and_values]
        turn: dict[str, Any] = {"role": "assistant", "content": content, "tool_calls": calls}
        turns = [{"role": "user", "content": "a"}, turn]
        text = render(turns, [tool_named("f", "nested")] if has_tools else None)
        if text is None:
            continue
        has_failed = False
        # An object that is printed has Python's quotes, a text that is written as JSON has
        # quotes with a backslash, and a null that is printed is None.
        is_garbled = any(garbled in text for garbled in (f"'{KEY}'", f'\\"{KEY}', "None"))
        marks = [*itertools.chain.from_iterable(names_and_values), content or ""]
        if not is_garbled and all(mark in text for mark in marks):
            forms.append((form, content))
    return None if has_failed else forms
