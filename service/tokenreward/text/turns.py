"""A conversation in one text, cut where the chat template lets its last assistant turn begin.

Trainers send such texts: what their tokenizer decodes, or what a template wrote. It knows no model.
"""

from __future__ import annotations

from tokenreward.errors import UnsupportedText
from tokenreward.text.tokenizer import Tokenizer


def last_turn(tokenizer: Tokenizer, text: str, *, param: str) -> tuple[str, str, bool]:
    """Cuts the text of a conversation in two.

    Args:
        tokenizer: The checkpoint's.
        text: The conversation, special tokens included.
        param: The caller's field, for errors.

    Returns:
        The prompt, which ends with what the template writes before an assistant's words; these
        words; and whether end-of-turn stands behind them. What the template writes behind
        end-of-turn is left out: a deployment's `suffix_text` says whether it is read.

    Raises:
        UnsupportedText: The template marks no assistant's turn, the text has none, or it goes on
            behind it.
    """
    openings = tokenizer.turn_openings
    if not openings:
        raise UnsupportedText(
            "prompt and response cannot be told apart: this tokenizer has no chat template that "
            "marks an assistant's turn",
            param=param,
        )
    begin = max(text.rfind(opening) for opening in openings)
    if begin < 0:
        raise UnsupportedText(
            "prompt and response cannot be told apart: the text has no assistant turn as the chat "
            "template writes one",
            param=param,
        )
    place = begin + max(len(opening) for opening in openings if text.startswith(opening, begin))
    prompt, response = text[:place], text[place:]
    if not tokenizer.end_of_turn_text:
        return prompt, response, False
    words, mark, behind = response.partition(tokenizer.end_of_turn_text)
    if behind.strip() and behind != tokenizer.after_end_of_turn:
        raise UnsupportedText(
            "the text goes on behind its last assistant turn, so no response stands at its end",
            param=param,
        )
    return prompt, words, bool(mark)
