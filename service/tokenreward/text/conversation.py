"""A response as the chat template renders it, and how that differs from reading it as it is.

By default a response is tokenised alone behind the prompt. A reward model was trained on whole
templated conversations, and a template may trim a response, write an empty think block in front of
it, or more behind it. Here the whole conversation is rendered and tokenised at once, and each token
is led back to the characters that the caller sent. It knows no model and no head.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from tokenreward.errors import ItemError, UnsupportedText
from tokenreward.text.tokenizer import Tokenizer

Ids = Int64[np.ndarray, " _"]

_MARK = "tokenreward"
_MAX_OPENED = 20  # characters of a response that a generation prompt may have in front
_MAX_SHOWN = 40  # characters of tokens that differ
# Responses in the shapes in which policies write them and templates rewrite them.
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "It is Paris."
SHAPES = {
    "a plain response": ANSWER,
    "a response that begins with a space": f" {ANSWER}",
    "a response that ends with a line break": f"{ANSWER}\n",
    "a response of several lines": f"{ANSWER}\n\nIt is large.",
    "a response with an empty think block": f"<think>\n\n</think>\n\n{ANSWER}",
}
_SWITCHES = ("enable_thinking", "thinking")  # variables of templates that open a think block


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
        The prompt's ids; the response's, end-of-turn included; where the characters of each of its
        tokens but end-of-turn end in `response`, in code points; the ids that follow.

    Raises:
        UnsupportedText: The template fails or rewrites the response, or ends cannot be said.
        SequenceTooLong: The conversation has too many tokens.
    """
    render = tokenizer.template.prompt
    opened = render(messages, tools, variables, param="prompt")
    texts = []
    for content in (_MARK, response):
        turns = [*messages, {"role": "assistant", "content": content}]
        texts.append(render(turns, tools, variables, is_whole=True, param="response"))
    marked, text = texts
    begin, stop, places = _find(text, marked, opened, response)
    if places is None:
        raise UnsupportedText("the chat template rewrites this response", param="response")
    ids, ends = tokenizer.encoder.caller_ids_and_ends(text, param="response")
    if ends is None:
        raise UnsupportedText("this tokenizer cannot say where tokens end", param="response")
    starts = np.append(0, ends[:-1])
    num_prompt = int(np.searchsorted(ends, begin, side="right"))
    # A token without characters of its own stands with the token before it.
    num_read = max(num_prompt, int(np.searchsorted(starts, stop, side="left")))
    inside = np.clip(ends[num_prompt:num_read] - begin, 0, stop - begin)
    behind = ids[num_read:] if finished else ids[:0]
    num_ends = int(len(behind) > 0 and int(behind[0]) in tokenizer.terminal_ids)
    num_response, suffix = num_read + num_ends, behind[num_ends:]
    return ids[:num_prompt], ids[num_prompt:num_response], places[inside], suffix


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
    starts = [_num_common(opened, text)]
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


def differences(
    tokenizer: Tokenizer, suffix_text: str | None, variables: Mapping[str, Any] | None = None
) -> list[str]:
    """The shapes of a response whose tokens, read as they are, are not the template's, each with
    the tokens that differ. Empty if there is no template, or none that renders plain turns."""
    result = []
    suffix = tokenizer.suffix(suffix_text)
    for name, response in SHAPES.items():
        turns = [*QUESTION, {"role": "assistant", "content": response}]
        templated = tokenizer.templated(turns)
        if templated is None:
            continue
        prompt = tokenizer.prompt_from_messages(QUESTION, None, dict(variables or {}), param=None)
        is_finished = tokenizer.end_of_turn is not None
        ids, _ = tokenizer.response(response, finished=is_finished, param=None)
        ours = np.concatenate([prompt, ids, suffix])
        if ours.tolist() != templated.tolist():
            result.append(f"{name}: {_contrast(tokenizer, ours, templated)}")
    return result


def advice(tokenizer: Tokenizer, suffix_text: str | None) -> str:
    """The end of a line that is told at load: which tokens differ, and the setting with which none
    do. Empty if none do."""
    shapes = differences(tokenizer, suffix_text)
    if not shapes:
        return ""
    told = (
        f": they differ in {len(shapes)} of {len(SHAPES)} shapes of a response ({shapes[0]}); if "
    )
    told += "it was trained on its template, "
    setting = remedy(tokenizer, suffix_text)
    if setting is not None:
        return f"{told}set `{setting}`"
    return f"{told}send token ids of whole templated conversations: no setting makes them equal"


def remedy(tokenizer: Tokenizer, suffix_text: str | None) -> str | None:
    """The settings under which every shape of a response is read as the template writes it, the
    fewest that do; None if no settings do."""
    suffixes = [suffix_text]
    after = tokenizer.after_end_of_turn
    suffixes += [suffix for suffix in (after or None, None) if suffix not in suffixes]
    source, known = str(tokenizer.template.source), tokenizer.template.variables
    switches = [switch for switch in _SWITCHES if switch in source and switch not in known]
    variables: list[dict[str, Any]] = [{}, *({switch: False} for switch in switches)]
    choices = list(itertools.product(variables, suffixes))[1:]  # the first is what is set
    # One setting before two of them: sorting keeps the order of choices that change as many.
    choices.sort(key=lambda choice: bool(choice[0]) + (choice[1] != suffix_text))
    for chosen, suffix in choices:
        if differences(tokenizer, suffix, chosen):
            continue
        settings = [f"chat_template_kwargs: {{{switch}: false}}" for switch in chosen]
        if suffix != suffix_text:
            settings.append("suffix_text: null" if suffix is None else f"suffix_text: {suffix!r}")
        return "` and `".join(settings)
    if not _reads_conversations(tokenizer):
        return None
    return "scored_text: conversation" + "` and `suffix_text: null" * bool(suffix_text)


def _reads_conversations(tokenizer: Tokenizer) -> bool:
    """Whether a response that is read as the template renders it has the tokens of the template's
    conversation. Shapes that cannot be read so are refused one by one, but not a plain one."""
    for response in SHAPES.values():
        turns = [*QUESTION, {"role": "assistant", "content": response}]
        try:
            parts = templated_tokens(tokenizer, QUESTION, response)
        except ItemError:
            if response == ANSWER:
                return False
            continue
        templated = tokenizer.templated(turns)
        prompt, ids, _, suffix = parts
        if (
            templated is None
            or np.concatenate([prompt, ids, suffix]).tolist() != templated.tolist()
        ):
            return False
    return True


def _num_common(one: Sequence[Any] | Ids, other: Sequence[Any] | Ids) -> int:
    """How many entries two sequences have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    differing = (place for place, (left, right) in enumerate(pairs) if left != right)
    return next(differing, min(len(one), len(other)))


def _contrast(tokenizer: Tokenizer, ours: Ids, templated: Ids) -> str:
    """Where two rows differ, as text."""
    num_same = _num_common(ours, templated)
    num_behind = _num_common(ours[num_same:][::-1], templated[num_same:][::-1])
    texts = []
    for row in (ours, templated):
        text = tokenizer.text(row[num_same : len(row) - num_behind])
        texts.append(repr(text[:_MAX_SHOWN]))
    return f"{texts[0]} where the template has {texts[1]}"
