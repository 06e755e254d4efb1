"""Renders conversations through a tokenizer's chat template: messages in, text out.

A template is a program that the checkpoint's author or a caller wrote, so rendering may raise
anything. What a template takes is found out by `template_forms`, and what it hides by `skeleton`.
This module knows no token ids.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import cached_property, lru_cache, partial
from typing import Any

from jinja2 import TemplateError

from tokenreward.errors import SequenceTooLong, UnsupportedText
from tokenreward.text.messages import (
    calls_in_form,
    cause,
    content_in_form,
    tools_in_form,
)
from tokenreward.text.skeleton import refuse_hidden, skeleton_of
from tokenreward.text.template_forms import call_forms, content_forms, tool_forms
from tokenreward.text.trial_turns import MARK

_MAX_ROLES, _MAX_ROLE_CHARACTERS = 64, 256
# Most conversations of a run have the same few skeletons.
_MAX_SKELETONS, _MAX_KEY = 256, 4096  # the second in characters
_ROLES_WITH_CONTENT = frozenset({"system", "developer", "user", "tool"})


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: A transformers tokenizer.
        variables: The deployment's `chat_template_kwargs`. An item's own stand over them.
        max_tokens: The most tokens that a conversation may have; None for no limit.
        limit: The setting that says so, for errors.

    Attributes:
        variables: The same.
    """

    def __init__(
        self,
        tokenizer: Any,
        variables: Mapping[str, Any] | None = None,
        *,
        max_tokens: int | None = None,
        limit: str = "max_sequence_tokens",
    ) -> None:
        self._tokenizer = tokenizer
        self._max_tokens, self._limit = max_tokens, limit
        self.variables = dict(variables or {})
        self._skeleton_text = lru_cache(_MAX_SKELETONS)(self._find_skeleton_text)
        self._content_forms = lru_cache(_MAX_ROLES)(partial(content_forms, self._try))
        self._call_forms = lru_cache(8)(partial(call_forms, self._try))
        self._tool_forms = lru_cache(1)(partial(tool_forms, self._try))

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
            tools: Descriptions of tools, if any.
            variables: The caller's `chat_template_kwargs`.
            param: The caller's field, for errors.
            is_whole: Whether the conversation ends here. Then there is no generation prompt.

        Raises:
            UnsupportedText: There is no template, it refuses or fails on these messages, it would
                not show all of them or all tools, or `variables` names an argument of the call.
            SequenceTooLong: There are more messages and parts of them than tokens may be.
        """
        self._refuse_many(messages, tools, param=param)
        # Arguments of the call must not be set: `chat_template` is a whole template to run.
        arguments = inspect.signature(self._tokenizer.apply_chat_template).parameters
        for name in variables or ():
            if name in arguments:
                raise UnsupportedText(f"`chat_template_kwargs` may not set `{name}`", param=param)
        if not self.source:
            raise UnsupportedText("this tokenizer has no chat template; send raw text", param=param)
        messages = self.normalised(messages, has_tools=bool(tools), param=param)
        tools = tools_in_form(tools, self._tool_forms() if tools else None)
        try:
            text = self._render(messages, tools, variables, add_generation_prompt=not is_whole)
        except TemplateError as error:
            raise UnsupportedText(
                f"the chat template refused these messages: {error}", param=param
            ) from None
        except Exception as error:
            raise UnsupportedText(
                f"the chat template failed on these messages: {cause(error)}", param=param
            ) from None
        turns, marked_tools = skeleton_of(messages, tools)
        key = json.dumps([turns, marked_tools, variables, is_whole])
        render = self._skeleton_text if len(key) <= _MAX_KEY else self._find_skeleton_text
        marked = render(key)
        if marked is not None:
            refuse_hidden(marked, turns, marked_tools, param=param)
        return text

    def _refuse_many(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        *,
        param: str | None,
    ) -> None:
        """Refuses more messages, parts of content, tool calls and tools than the conversation may
        have tokens, before any of them is rendered: a template may look at all messages for each.

        Raises:
            SequenceTooLong: There are more.
            UnsupportedText: The messages have more different roles than any template knows, or a
                role of many characters. How a template shows a role is found out by rendering, and
                kept.
        """
        num_parts = len(messages) + len(tools or ())
        for message in messages:
            for name in ("content", "tool_calls"):
                if isinstance(message.get(name), list):
                    num_parts += len(message[name])
        if self._max_tokens is not None and num_parts > self._max_tokens:
            raise SequenceTooLong(
                f"the conversation has {len(messages)} messages, and {num_parts} with their parts "
                f"and tools, `{self._limit}` is {self._max_tokens}",
                param=param,
            )
        roles = {str(message["role"]) for message in messages}
        if len(roles) > _MAX_ROLES:
            raise UnsupportedText(
                f"the messages have {len(roles)} different roles, the limit is {_MAX_ROLES}",
                param=param,
            )
        longest = max(map(len, roles), default=0)
        if longest > _MAX_ROLE_CHARACTERS:
            raise UnsupportedText(
                f"a message has a role of {longest} characters, the limit is "
                f"{_MAX_ROLE_CHARACTERS}",
                param=param,
            )

    def _find_skeleton_text(self, key: str) -> str | None:
        """The text of a conversation's skeleton; None if the template refuses it, or fails."""
        turns, tools, variables, is_whole = json.loads(key)
        try:
            return self._render(turns, tools, variables, add_generation_prompt=not is_whole)
        except Exception:
            return None

    def conversation(
        self, messages: list[dict[str, Any]], variables: Mapping[str, Any] | None = None
    ) -> str | None:
        """A whole conversation as the template writes it, without a generation prompt.

        None if there is no template, or if the template fails: it may demand fields that plain
        turns do not have.
        """
        try:
            messages = self.normalised(messages, has_tools=False, param=None)
        except UnsupportedText:
            return None
        return self._try(messages, variables=variables, add_generation_prompt=False)

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
                f"the chat template does not show such tool calls{' and content' * bool(content)}: "
                "write them into `content`, as the policy wrote them",
                param=below,
            )
        arguments, absent = forms[0] if forms else ("object", "")
        message["content"] = content or absent
        message["tool_calls"] = calls_in_form(calls, arguments, param=below)

    def _try(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        *,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str | None:
        """The text of messages; None if there is no template, or if it refuses or fails."""
        if not self.source:
            return None
        try:
            return self._render(
                messages, tools, variables, add_generation_prompt=add_generation_prompt
            )
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
