"""A response as the chat template renders it.

By default a response is tokenised alone behind the prompt. A reward model was trained on whole
templated conversations, and a template may trim a response, write an empty think block in front of
it, or more behind it. Here the whole conversation is rendered and tokenised at once, and each token
is led back to the characters that the caller sent. It knows no model and no head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64

from tokenreward.errors import UnsupportedText
from tokenreward.text.tokenizer import Tokenizer

Ids = Int64[np.ndarray, " _"]

_MARK = "tokenreward"
_MAX_OPENED = 20  # characters of a response that a generation prompt may have in front


def templated_tokens(
    tokenizer: Tokenizer,
    messages: list[dict[str, Any]],
    response: str,
    *,
    tools: list[dict[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    finished: bool = True,
) -> tuple[Ids, Ids, Ids, Ids]:
    """The tokens of a whole templated conversation, cut into prompt, response and suffix.

    Args:
        tokenizer: The checkpoint's.
        messages: The turns before the response, which the policy wrote.
        response: Its text.
        tools: Descriptions of tools for the template, if any.
        variables: The item's `chat_template_kwargs`.
        finished: Whether the turn ended. If not, nothing is read behind the response's tokens.

    Returns:
        The prompt's ids; the response's, end-of-turn included; where each one's characters end in
        `response`, in code points (an appended end-of-turn has no entry); the ids that follow.

    Raises:
        UnsupportedText: The template fails or rewrites the response, or ends cannot be said.
        SequenceTooLong: The conversation has too many tokens.
    """
    render = tokenizer.template.prompt
    opened = render(messages, tools, variables, param="prompt")
    turns = [*messages, {"role": "assistant", "content": _MARK}]
    marked = render(turns, tools, variables, is_whole=True, param="response")
    content = response
    if finished:
        content, marked = _without_end(tokenizer, response, marked)
    turns = [*messages, {"role": "assistant", "content": content}]
    text = render(turns, tools, variables, is_whole=True, param="response")
    tokenizer.encoder.refuse_long(text, param="response")  # before it is read by character
    begin, stop, places = _find(text, marked, opened, response)
    if places is None:
        raise UnsupportedText("the chat template rewrites this response", param="response")
    ids, ends = tokenizer.encoder.caller_ids_and_ends(text, param="response")
    if ends is None:
        raise UnsupportedText("this tokenizer cannot say where tokens end", param="response")
    num_prompt, num_read = _borders(ends, begin, stop)
    inside = np.clip(ends[num_prompt:num_read] - begin, 0, stop - begin)
    behind = ids[num_read:] if finished else ids[:0]
    num_ends = int(len(behind) > 0 and int(behind[0]) in tokenizer.terminal_ids)
    num_ends *= content == response  # else the response has its end-of-turn
    num_response, suffix = num_read + num_ends, behind[num_ends:]
    return ids[:num_prompt], ids[num_prompt:num_response], places[inside], suffix


def _without_end(tokenizer: Tokenizer, response: str, marked: str) -> tuple[str, str]:
    """Takes out the end-of-turn that a response spells, where the template writes it, too.

    Args:
        tokenizer: The checkpoint's.
        response: What the policy wrote.
        marked: As in `_find`.

    Returns:
        What the template is to render; and `marked` with `_MARK` for the response and the
        end-of-turn that the template writes behind it.
    """
    end = tokenizer.end_of_turn_text
    before, mark, after = marked.rpartition(_MARK)
    if not end or not response.endswith(end) or not after.lstrip().startswith(end):
        return response, marked
    if tokenizer.single(end) != tokenizer.end_of_turn:  # its text is no special token
        return response, marked
    return response.removesuffix(end), before + mark + after.lstrip().removeprefix(end)


def _borders(ends: Ids, begin: int, stop: int) -> tuple[int, int]:
    """How many tokens of a text stand before its character `begin`, and how many before `stop`.
    `ends` says where the characters of each end."""
    starts = np.append(0, ends[:-1])
    num_before = int(np.searchsorted(ends, begin, side="right"))
    # A token without characters of its own stands with the token before it.
    return num_before, max(num_before, int(np.searchsorted(starts, stop, side="left")))


def _find(text: str, marked: str, opened: str, response: str) -> tuple[int, int, Ids | None]:
    """Where a response stands in a rendered conversation.

    Args:
        text: The conversation.
        marked: The same with `_MARK` for its response.
        opened: The conversation before the response, with the generation prompt.
        response: What the policy wrote.

    Returns:
        Where the response begins and where it ends in `text`, and its `_places`: None if it is not
        there.
    """
    before, _, after = marked.rpartition(_MARK)
    # A response with a think block of its own replaces the one that the template would write: then
    # it begins where the generation prompt ends.
    num_common = 0
    while num_common < len(opened) and text.startswith(opened[num_common], num_common):
        num_common += 1
    starts = [num_common]
    if text.startswith(before):
        starts.insert(0, len(before))
    # A generation prompt may open the think block that the response opens, too.
    head = response.lstrip()
    for length in range(min(len(head), _MAX_OPENED), 0, -1):
        if text[: starts[-1]].endswith(head[:length]):
            starts.append(starts[-1] - length)
            break
    stop = len(text) - len(after)
    for begin in starts:
        if text.endswith(after) and begin <= stop:
            places = _places(text[begin:stop], response)
            if places is not None:
                return begin, stop, places
    return 0, 0, None


def _places(rendered: str, response: str) -> Ids | None:
    """For each boundary between characters of a rendered response [n + 1], the boundary in the
    caller's that it stands for; None if more differs than white space."""
    places = [0]
    place = 0
    for character in rendered:
        if not character.isspace():
            while place < len(response) and response[place].isspace():
                place += 1
        if response[place : place + 1] == character:
            place += 1
        elif not character.isspace():
            return None
        places.append(place)
    return None if response[place:].strip() else np.asarray(places, dtype=np.int64)
