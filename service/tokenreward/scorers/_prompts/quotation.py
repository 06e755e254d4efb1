"""A sample as text that can be quoted in another prompt: no special token in it, whatever the
policy wrote.

Text is taken as the caller wrote it; ids are decoded, without the end-of-turn that ends a response.
Special tokens become line breaks (`TokenizerView.without_special`): a response must not be able to
end the turn that quotes it. It knows no template and no scorer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenreward.contract import Sample, Source, TokenizerView
from tokenreward.errors import UnsupportedText


@dataclass(frozen=True, slots=True)
class Quotation:
    """`prompt`: the whole prompt as one text; several messages stand in it with their roles.
    `messages`: the same as dictionaries; a prompt of text or ids is one message of the user."""

    prompt: str
    messages: list[dict[str, Any]]
    response: str


def quote(sample: Sample) -> Quotation:
    """What to quote of a sample that has its source. Raises UnsupportedText for content that is not
    text."""
    source = sample.source
    assert source is not None
    messages = source.item.messages
    if messages is None:
        messages = [{"role": "user", "content": _prompt(sample, source)}]
    else:
        messages = [_clean(message, source.words) for message in messages]
    said = [
        _said(message, param=f"{source.param}.prompt[{place}]")
        for place, message in enumerate(messages)
    ]
    if len(said) > 1:
        said = [f"{message['role']}: {text}" for message, text in zip(messages, said, strict=True)]
    return Quotation("\n\n".join(said), messages, _response(sample, source))


def _prompt(sample: Sample, source: Source) -> str:
    if isinstance(source.item.prompt, str):
        return source.words.without_special(source.item.prompt)
    return source.words.without_special(source.words.text(sample.prompt_ids)).strip("\n")


def _response(sample: Sample, source: Source) -> str:
    if isinstance(source.item.response, str):
        return source.words.without_special(source.item.response)
    ids = sample.response_ids[:-1] if sample.terminal else sample.response_ids
    return source.words.without_special(source.words.text(ids))


def _clean(value: Any, words: TokenizerView) -> Any:
    """The same JSON with no special token in any of its texts."""
    if isinstance(value, str):
        return words.without_special(value)
    if isinstance(value, list):
        return [_clean(entry, words) for entry in value]
    if isinstance(value, dict):
        return {words.without_special(key): _clean(entry, words) for key, entry in value.items()}
    return value


def _said(message: dict[str, Any], *, param: str) -> str:
    """A message's text, then its tool calls as JSON."""
    content = message.get("content") or ""
    parts = [{"text": content}] if isinstance(content, str) else content
    if not all(isinstance(part.get("text"), str) for part in parts):
        raise UnsupportedText(
            f"`{param}.content`: only text can be quoted to a verifier", param=f"{param}.content"
        )
    texts = [part["text"] for part in parts]
    if message.get("tool_calls"):
        texts.append(json.dumps(message["tool_calls"], ensure_ascii=False))
    return "\n".join(text for text in texts if text)
