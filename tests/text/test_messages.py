"""Messages as people send them reach a template in a form that it takes, with every character; what
a template would not show, or show as something else, is refused. The truth is transformers' own
rendering of the form that the template was written for."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from fakes import tiny
from tokenreward.errors import UnsupportedText
from tokenreward.text.chat_template import ChatTemplate

STRINGS = tiny.TEMPLATE  # prints a list as Python's repr
SILENT = (  # reads a content that is no string as nothing
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content if m.content is string }}<|end|>"
    "{% endfor %}"
)
ADDING = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"  # TypeError
PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}{{ part.text }}{% endfor %}"
    "{% endfor %}"
)
FIRST = "{% for m in messages %}<|{{ m.role }}|>{{ m.content[0].text }}{% endfor %}"
BOTH = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}{% endfor %}"
)
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
TRIMMED_PARTS = (  # trims each part of a list, as Gemma 3's
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content | trim }}"
    "{% else %}{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endif %}{% endfor %}"
)
CALLS = (  # prints a null, and JSON of arguments
    "{% for m in messages %}{{ m.content | string }}{% for call in m.tool_calls or [] %}"
    "{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}{% endfor %}"
)
JSON_CALLS = CALLS.replace(" | tojson", "").replace("({{", "({{ '' +")
FLAT_CALLS = "{% for m in messages %}{{ m.content }}{% endfor %}"

TEXT = "What is 2+2? Add the numbers."
TWO = [{"type": "text", "text": "What is 2+2? "}, {"text": "Add the numbers."}]


def template_of(text: str) -> ChatTemplate:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer)


def rendered(template: str, *messages: dict[str, Any]) -> str:
    return template_of(template).prompt(list(messages), param="prompt")


@pytest.mark.parametrize("template", [STRINGS, SILENT, ADDING, PARTS, FIRST, TRIMMED_PARTS])
@pytest.mark.parametrize("role", ["user", "system", "assistant", "tool"])
def test_a_text_and_the_same_text_in_parts_are_one_text(template: str, role: str) -> None:
    user = {"role": "user", "content": "a"}
    texts = {rendered(template, user, {"role": role, "content": form}) for form in (TEXT, TWO)}
    assert len(texts) == 1
    assert TEXT in texts.pop()


def test_a_template_that_reads_parts_is_given_them_as_they_are() -> None:
    assert rendered(BOTH, {"role": "user", "content": TWO}) == (
        "<|user|>[What is 2+2? ][Add the numbers.]"
    )
    assert rendered(BOTH, {"role": "user", "content": TEXT}) == f"<|user|>{TEXT}"


@pytest.mark.parametrize(
    ("template", "message", "param", "why"),
    [
        (NO_SYSTEM, {"role": "system", "content": "x"}, "prompt[0].content", "role `system`"),
        (STRINGS, {"role": "user"}, "prompt[0].content", "has no content"),
        (
            STRINGS,
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "prompt[0].content",
            "type `image_url` cannot be read",
        ),
        (
            FLAT_CALLS,
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            "prompt[0].tool_calls",
            "does not show such tool calls",
        ),
        (
            CALLS,
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "prompt[0].tool_calls[0]",
            "no JSON of one",
        ),
        (ADDING + "{{ 1 + 'a' }}", {"role": "user", "content": "x"}, "prompt", "TypeError: unsu"),
    ],
)
def test_what_a_template_would_not_show_is_refused_in_one_sentence(
    template: str, message: dict[str, Any], param: str, why: str
) -> None:
    with pytest.raises(UnsupportedText, match=why) as caught:
        rendered(template, message)
    assert caught.value.param == param
    assert "\n" not in caught.value.message


ARGUMENTS = {"city": "Köln", "days": 2}


@pytest.mark.parametrize("template", [CALLS, JSON_CALLS])
@pytest.mark.parametrize("arguments", [ARGUMENTS, json.dumps(ARGUMENTS, ensure_ascii=False)])
@pytest.mark.parametrize("is_flat", [False, True])
def test_arguments_of_a_tool_call_are_written_once_as_json(
    template: str, arguments: Any, is_flat: bool
) -> None:
    call: dict[str, Any] = {"name": "weather", "arguments": arguments}
    if not is_flat:
        call = {"id": "1", "type": "function", "function": call}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    expected = json.dumps(ARGUMENTS, ensure_ascii=False)
    assert rendered(template, message) == f"weather({expected})"


NESTED = {"type": "function", "function": {"name": "add", "description": "Adds."}}
FLAT = {"type": "function", "name": "add", "description": "Adds."}
BODY = "{% for m in messages %}{{ m.content }}{% endfor %}"
NAMES_OF_NESTED = "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}" + BODY
NAMES_OF_FLAT = "{% for t in tools or [] %}<{{ t['name'] }}>{% endfor %}" + BODY
WITH_SYSTEM = (  # shows tools in a system message alone, as older templates do
    "{% for m in messages %}{{ m.content }}{% if m.role == 'system' %}{{ tools | tojson }}"
    "{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("tool", [NESTED, FLAT], ids=["nested", "flat"])
@pytest.mark.parametrize("template", [NAMES_OF_NESTED, NAMES_OF_FLAT])
def test_a_tool_is_shown_in_whichever_form_it_comes(template: str, tool: dict[str, Any]) -> None:
    user = {"role": "user", "content": TEXT}
    text = template_of(template).prompt([user], [copy.deepcopy(tool)], param="prompt")
    assert text == f"<add>{TEXT}"


@pytest.mark.parametrize("tool", [NESTED, FLAT], ids=["nested", "flat"])
def test_a_template_that_prints_tools_as_they_are_gets_them_as_they_were_sent(
    tool: dict[str, Any],
) -> None:
    turns = [{"role": "system", "content": "Short."}, {"role": "user", "content": TEXT}]
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = WITH_SYSTEM
    expected = tokenizer.apply_chat_template(turns, tools=[tool], tokenize=False)
    assert template_of(WITH_SYSTEM).prompt(turns, [tool], param="prompt") == expected


def test_tools_of_a_template_that_shows_none_are_refused() -> None:
    with pytest.raises(UnsupportedText, match="shows no tools") as caught:
        template_of(STRINGS).prompt([{"role": "user", "content": "a"}], [NESTED], param="prompt")
    assert caught.value.param == "tools"


FIRST_SYSTEM = (  # reads a system message in front alone, and calls in the last turn alone
    "{% for m in messages %}{% if m.role != 'system' or loop.first %}{{ m.content }}"
    "{% if loop.last %}{% for call in m.tool_calls or [] %}{{ call.function.name }}"
    "{{ call.function.arguments }}{% endfor %}{% endif %}{% endif %}{% endfor %}"
)
ONE_SYSTEM = (  # the last system message replaces those before it, as DeepSeek R1's
    "{% set ns = namespace(s='') %}{% for m in messages if m.role == 'system' %}"
    "{% set ns.s = m.content %}{% endfor %}{{ ns.s }}"
    "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
)
SYSTEM = {"role": "system", "content": "What"}  # a word of the question: it is in the prompt anyhow
QUESTION = {"role": "user", "content": TEXT}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "What", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("template", "messages", "param", "shown"),
    [
        (FIRST_SYSTEM, [QUESTION, SYSTEM], "prompt[1].content", [SYSTEM, QUESTION]),
        (FIRST_SYSTEM, [QUESTION, CALL, QUESTION], "prompt[1].tool_calls", [QUESTION, CALL]),
        (ONE_SYSTEM, [SYSTEM, SYSTEM, QUESTION], "prompt[0].content", [SYSTEM, QUESTION]),
    ],
)
def test_a_message_that_a_template_passes_over_at_its_place_is_refused(
    template: str, messages: list[dict[str, Any]], param: str, shown: list[dict[str, Any]]
) -> None:
    for _ in range(2):  # the second answer is a remembered one
        with pytest.raises(UnsupportedText, match="at this place") as caught:
            rendered(template, *messages)
        assert caught.value.param == param
    assert TEXT in rendered(template, *shown)


def test_tools_that_a_template_shows_beside_a_system_message_alone_are_refused_without() -> None:
    with pytest.raises(UnsupportedText, match="no tools in such a conversation") as caught:
        template_of(WITH_SYSTEM).prompt([QUESTION], [NESTED], param="prompt")
    assert caught.value.param == "tools"


def test_a_thought_that_a_template_cuts_out_of_an_earlier_turn_is_no_hidden_message() -> None:
    template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    thought = {"role": "assistant", "content": "<think>Hm.</think>It is 4."}
    assert rendered(template, QUESTION, thought, QUESTION) == f"{TEXT}It is 4.{TEXT}"
