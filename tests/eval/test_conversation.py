"""Prompts and responses in the forms of data sets: what each becomes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tokenreward.errors import InvalidField
from tokenreward.eval.conversation import Prompt, conversation, messages_of

USER = {"role": "user", "content": "q"}
SYSTEM = {"role": "system", "content": "s"}
OLD = [USER, {"role": "assistant", "content": "a"}, {"role": "user", "content": "q2"}]


def reply(text: Any = "yes", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"prompt": "q", "chosen": "yes"}, [USER]),
        ({"prompt": OLD, "chosen": "yes"}, OLD),
        ({"question": "q", "chosen": "yes"}, [USER]),
        (
            {"instruction": "do", "input": "this", "chosen": "yes"},
            [{"role": "user", "content": "do\nthis"}],
        ),
        ({"system": "s", "question": "q", "chosen": "yes"}, [SYSTEM, USER]),
        ({"system": "", "prompt": "q", "chosen": "yes"}, [USER]),
        ({"system": "other", "prompt": [SYSTEM, USER], "chosen": "yes"}, [SYSTEM, USER]),
        # TRL: explicit and implicit prompts of messages.
        ({"prompt": [USER], "chosen": [reply()]}, [USER]),
        ({"chosen": [*OLD, reply()]}, OLD),
        ({"prompt": [USER], "chosen": reply()}, [USER]),
        # UltraFeedback: the conversation repeats the prompt.
        ({"prompt": "q", "chosen": [USER, reply()]}, [USER]),
        ({"prompt": "q", "chosen": [SYSTEM, USER, reply()]}, [SYSTEM, USER]),
        ({"prompt": "q", "chosen": [*OLD, reply()]}, OLD),
        ({"prompt": [USER], "chosen": [USER, reply()]}, [USER]),
        ({"prompt": "q", "chosen": [reply()]}, [USER]),
        # HH-RLHF.
        ({"chosen": "\n\nHuman: q\n\nAssistant: yes"}, [USER]),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: q2\n\nAssistant: yes"}, OLD),
        ({"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " yes"}, [USER]),
        (
            {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "\n\nHuman: q\n\nAssistant: yes"},
            [USER],
        ),
        # LLaMA-Factory's ranking.
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "q"},
                ],
                "chosen": {"from": "gpt", "value": "yes"},
            },
            [SYSTEM, USER],
        ),
        # Content in parts, and columns that hold nothing.
        (
            {
                "chosen": [
                    USER,
                    reply([{"type": "text", "text": "y"}, {"type": "text", "text": "es"}]),
                ]
            },
            [USER],
        ),
        ({"prompt": None, "chosen": [USER | {"name": None}, reply(tool_calls=None)]}, [USER]),
    ],
)
def test_conversation_is_read(fields: dict[str, Any], prompt: Prompt) -> None:
    assert conversation(fields, "chosen") == (prompt, "yes")


@pytest.mark.parametrize(
    ("fields", "prompt", "response"),
    [
        ({"prompt": "q", "chosen": "yes"}, "q", "yes"),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: yes"},
            "\n\nHuman: q\n\nAssistant:",
            " yes",
        ),
        (
            {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " yes"},
            "\n\nHuman: q\n\nAssistant:",
            " yes",
        ),
        ({"prompt": "q", "chosen": [reply()]}, [USER], "yes"),
    ],
)
def test_raw_text_stays_as_it_is_and_goes_with_text_alone(
    fields: dict[str, Any], prompt: Prompt, response: str
) -> None:
    assert conversation(fields, "chosen", prompt_as="raw") == (prompt, response)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"chosen": "yes"}, "prompt", "is required"),
        ({"chosen": "\n\nAssistant: yes"}, "prompt", "is required"),
        ({"chosen": [reply()]}, "prompt", "the response stands alone"),
        ({"prompt": "q", "chosen": 5}, "chosen", "must be a string or messages, got 5"),
        ({"prompt": "q", "chosen": []}, "chosen", "got a list of length 0"),
        ({"prompt": {"a": 1}, "chosen": "x"}, "prompt", "a list of messages, got an object"),
        ({"chosen": [USER, reply(), USER]}, "chosen[2].role", "must be the assistant's"),
        ({"chosen": [USER, "text"]}, "chosen[1]", "must be a message"),
        ({"chosen": [USER, reply(None)]}, "chosen[1].content", "must be text"),
        (
            {"chosen": [USER, reply([{"type": "image", "url": "x"}])]},
            "chosen[1].content",
            "must be text",
        ),
        (
            {"chosen": [USER, reply("", tool_calls=[{"id": 1}])]},
            "chosen[1].tool_calls",
            "cannot be scored as text",
        ),
        ({"prompt": "other", "chosen": [USER, reply()]}, "chosen", "begins with other messages"),
        ({"prompt": OLD, "chosen": [USER, reply()]}, "chosen", "begins with other messages"),
        ({"chosen": [{"from": "bard", "value": "x"}]}, "chosen[0].from", "must be one of human"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: b"}, "chosen", "of the assistant"),
    ],
)
def test_what_is_no_conversation_is_refused_by_its_field(
    fields: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(InvalidField, match=message) as caught:
        conversation(fields, "chosen")
    assert caught.value.param == param


def test_system_text_beside_a_raw_prompt_is_refused() -> None:
    fields = {"system": "s", "prompt": "q", "chosen": "x"}
    with pytest.raises(InvalidField, match="goes with messages"):
        conversation(fields, "chosen", prompt_as="raw")


def test_messages_of_sharegpt_keep_what_else_they_say() -> None:
    messages = messages_of([{"from": "tool", "value": "4", "name": "add", "weight": None}], "m")
    assert messages == [{"role": "tool", "content": "4", "name": "add"}]
