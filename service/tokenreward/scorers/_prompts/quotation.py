"""A sample as text that can be quoted in another prompt: it holds no special token, whatever the
policy wrote.

Text is taken as the caller wrote it. Ids are decoded, without the end-of-turn that ends a response.
Special tokens become line breaks (`TokenizerView.without_special`), because a response must not be
able to end the turn that quotes it. This module knows no template and no scorer.
"""

from __future__ import annotations

import json
from typing import Any

from tokenreward.contract import Sample, TokenizerView
from tokenreward.errors import UnsupportedText


def quote(sample: Sample) -> dict[str, Any]:
    """A prompt and its response as a template can show them.

    Returns:
        `prompt`: The whole prompt as one text. Several messages stand in it with their roles.
        `messages`: The prompt as dictionaries. A prompt of text or ids is one message of the user.
        `response`: The response.

    Raises:
        UnsupportedText: The prompt has content that is not text, or is scored itself
            (`whole: sequence`).
    """
    sample.refuse_sequence()
    messages = sample.item.messages
    if messages is None:
        messages = [{"role": "user", "content": _prompt(sample)}]
    else:
        messages = [_clean(message, sample.tokenizer) for message in messages]
    texts = [_text_of(message, param=f"prompt[{place}]") for place, message in enumerate(messages)]
    if len(texts) > 1:
        pairs = zip(messages, texts, strict=True)
        texts = [f"{message['role']}: {text}" for message, text in pairs]
    prompt = "\n\n".join(texts)
    return {"prompt": prompt, "messages": messages, "response": _response(sample)}


def _prompt(sample: Sample) -> str:
    """A prompt of text or of ids, as text."""
    if isinstance(sample.item.prompt, str):
        return sample.tokenizer.without_special(sample.item.prompt)
    text = sample.tokenizer.text(sample.prompt_ids)
    return sample.tokenizer.without_special(text).strip("\n")


def _response(sample: Sample) -> str:
    """The response as text, without the end-of-turn that ids end with."""
    if isinstance(sample.item.response, str):
        return sample.tokenizer.without_special(sample.item.response)
    ids = sample.response_ids[:-1] if sample.terminal else sample.response_ids
    return sample.tokenizer.without_special(sample.tokenizer.text(ids))


def _clean(value: Any, tokenizer: TokenizerView) -> Any:
    """The same JSON with no special token in any of its texts."""
    if isinstance(value, str):
        return tokenizer.without_special(value)
    if isinstance(value, list):
        return [_clean(entry, tokenizer) for entry in value]
    if isinstance(value, dict):
        return {
            tokenizer.without_special(key): _clean(entry, tokenizer) for key, entry in value.items()
        }
    return value


def _text_of(message: dict[str, Any], *, param: str) -> str:
    """A message's text, then its tool calls as JSON. Raises UnsupportedText."""
    content = message.get("content") or ""
    parts = [{"text": content}] if isinstance(content, str) else content
    if not all(isinstance(part.get("text"), str) for part in parts):
        raise UnsupportedText("only text can be quoted to a verifier", param=f"{param}.content")
    texts = [part["text"] for part in parts]
    if message.get("tool_calls"):
        texts.append(json.dumps(message["tool_calls"], ensure_ascii=False))
    return "\n".join(text for text in texts if text)
