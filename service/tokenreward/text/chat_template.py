"""Renders conversations through a tokenizer's chat template: messages in, text out.

A template is a program that the checkpoint's author or a caller wrote, so rendering may raise
anything. What a template takes is found out by rendering short conversations and looking for their
words in the text: reading the program would say less, because a template calls macros and passes
values on. This module knows no token ids.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

from jinja2 import TemplateError

from tokenreward.errors import UnsupportedText
from tokenreward.text.messages import (
    Arguments,
    Form,
    ToolForm,
    calls_in_form,
    cause,
    content_in_form,
    text_part,
    tools_in_form,
)
from tokenreward.text.trial_turns import (
    KEY,
    MARK,
    SECOND_MARK,
    TOOLS,
    VALUE,
    conversation_with,
    message_of,
    tool_call,
)

_MAX_ROLES = 64
_ROLES_WITH_CONTENT = frozenset({"system", "developer", "user", "tool"})


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: A transformers tokenizer.
        variables: The deployment's `chat_template_kwargs`. An item's own stand over them.

    Attributes:
        variables: The same.
    """

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self.variables = dict(variables or {})
        self._content_forms = lru_cache(_MAX_ROLES)(self._find_content_forms)
        self._call_forms = lru_cache(8)(self._find_call_forms)

    @property
    def source(self) -> Any:
        """The template's Jinja; None if the tokenizer has no template."""
        return self._tokenizer.chat_template

    def prompt(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        *,
        param: str | None,
        is_whole: bool = False,
    ) -> str:
        """The conversation so far, with the template's generation prompt behind it.

        Args:
            messages: The turns, as the caller wrote them.
            tools: Descriptions of tools for the template, if any.
            variables: The caller's `chat_template_kwargs`.
            param: The caller's field, for errors.
            is_whole: Whether the conversation ends here. Then there is no generation prompt.

        Raises:
            UnsupportedText: There is no template, it refuses or fails on these messages, it would
                not show all of them or all tools, or `variables` names an argument of the rendering
                call.
        """
        # Variables reach the template, arguments of the call must not be set: one of them,
        # `chat_template`, is a whole template to run.
        for name in variables or ():
            if name in inspect.signature(self._tokenizer.apply_chat_template).parameters:
                raise UnsupportedText(f"`chat_template_kwargs` may not set `{name}`", param=param)
        if not self.source:
            raise UnsupportedText("this tokenizer has no chat template; send raw text", param=param)
        messages = self.normalised(messages, has_tools=bool(tools), param=param)
        tools = tools_in_form(tools, self._tool_forms if tools else None)
        try:
            return self._render(messages, tools, variables, add_generation_prompt=not is_whole)
        except TemplateError as error:
            raise UnsupportedText(
                f"the chat template refused these messages: {error}", param=param
            ) from None
        except Exception as error:
            # Whatever a template raises is the fault of this item.
            raise UnsupportedText(
                f"the chat template failed on these messages: {cause(error)}", param=param
            ) from None

    def conversation(self, messages: list[dict[str, Any]]) -> str | None:
        """A whole conversation as the template writes it, without a generation prompt.

        None if there is no template, or if the template fails: it may demand fields that plain
        turns do not have.
        """
        try:
            messages = self.normalised(messages, has_tools=False, param=None)
        except UnsupportedText:
            return None
        return self._try(messages, add_generation_prompt=False)

    @cached_property
    def after_assistant_turn(self) -> str:
        """The text that the template writes behind an assistant's words, for example
        `<|im_end|>\\n`.

        Empty if it writes nothing there, or if there is no template that renders two plain turns.
        """
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}]
        return (self.conversation(turns) or "").rpartition(MARK)[2]

    def normalised(
        self, messages: list[dict[str, Any]], *, has_tools: bool, param: str | None
    ) -> list[dict[str, Any]]:
        """The messages in the forms that the template takes.

        Raises:
            UnsupportedText: A content is missing or is not text, or the template would not show a
                content or a tool call.
        """
        result = []
        for place, message in enumerate(messages):
            where = None if param is None else f"{param}[{place}]"
            message = dict(message)
            below = None if where is None else f"{where}.content"
            if message.get("content") is not None:
                forms = self._content_forms(str(message["role"]), has_tools)
                message["content"] = content_in_form(message, forms, param=below)
            elif message["role"] in _ROLES_WITH_CONTENT and "content" not in message:
                raise UnsupportedText("the message has no content", param=below)
            else:
                message["content"] = ""  # some templates print None
            if message.get("tool_calls"):
                self._normalise_calls(message, has_tools=has_tools, param=where)
            result.append(message)
        return result

    @cached_property
    def _tool_forms(self) -> frozenset[ToolForm] | None:
        """In which forms the template shows tools; None if it refuses or fails on all of them."""
        forms: set[ToolForm] = set()
        has_failed = True
        for system in ([], [message_of("system", "b")]):
            for form, tool in TOOLS.items():
                text = self._try([*system, message_of("user", "a")], [tool])
                if text is not None:
                    has_failed = False
                    if MARK in text:
                        forms.add(form)
        return None if has_failed else frozenset(forms)

    def _normalise_calls(
        self, message: dict[str, Any], *, has_tools: bool, param: str | None
    ) -> None:
        """Puts a message's tool calls into the form that the template takes, and beside them an
        absent content."""
        below = None if param is None else f"{param}.tool_calls"
        calls, content = message["tool_calls"], message["content"]
        if not isinstance(calls, list):
            raise UnsupportedText("must be a list of tool calls", param=below)
        forms = self._call_forms(len(calls) > 1, bool(content), has_tools)
        if forms == []:
            raise UnsupportedText(
                "the chat template does not show such tool calls" + " and content" * bool(content),
                param=below,
            )
        arguments, absent = forms[0] if forms else ("object", "")
        message["content"] = content or absent
        message["tool_calls"] = calls_in_form(calls, arguments, param=below)

    def _find_content_forms(self, role: str, has_tools: bool) -> frozenset[Form] | None:
        """In which forms the template shows content of a role; None if it refuses or fails on all
        of them."""
        tools = [TOOLS["nested"]] if has_tools else None
        contents: dict[Form, Any] = {
            "string": MARK + SECOND_MARK,
            "part": [text_part(MARK + SECOND_MARK)],
            "parts": [text_part(MARK), text_part(SECOND_MARK)],
        }
        forms: set[Form] = set()
        has_failed = True
        for form, content in contents.items():
            text = self._try(conversation_with(role, content), tools=tools)
            if text is None:  # a template may not take the turns around it
                text = self._try(
                    [{"role": "user", "content": "a"}, message_of(role, content)], tools
                )
            if text is None:
                continue
            has_failed = False
            places = [text.lower().find(mark) for mark in (MARK, SECOND_MARK)]
            # A list that is printed as it is has the keys of its parts in the text.
            if -1 < places[0] < places[1] and "'text'" not in text and '"text"' not in text:
                forms.add(form)
        return None if has_failed else frozenset(forms)

    def _find_call_forms(
        self, several: bool, has_content: bool, has_tools: bool
    ) -> list[tuple[Arguments, str | None]] | None:
        """How the template shows tool calls.

        Args:
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
            text = self._try(turns, tools=[TOOLS["nested"]] if has_tools else None)
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

    def _try(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str | None:
        """The text of messages; None if there is no template, or if it refuses or fails."""
        if not self.source:
            return None
        try:
            return self._render(messages, tools, {}, add_generation_prompt=add_generation_prompt)
        except Exception:
            return None

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        variables: Mapping[str, Any] | None,
        *,
        add_generation_prompt: bool,
    ) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **{**self.variables, **(variables or {})},
        )
        return text
