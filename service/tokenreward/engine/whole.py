"""Items that bring prompt and response in one piece (`whole`): which of their tokens are scored.

It knows texts and ids, and no scorer.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from tokenreward.errors import UnsupportedText
from tokenreward.text.pairs import second_texts
from tokenreward.text.tokenizer import Tokenizer
from tokenreward.text.turns import last_turn
from tokenreward.wire import Item

Ids = Int64[np.ndarray, " _"]


def with_parts(item: Item, tokenizer: Tokenizer) -> Item:
    """An item whose `response` is a whole conversation, as one with a prompt and a response of
    text, for all who read them. Other items are left as they are.

    Raises:
        UnsupportedText: The conversation has no assistant's turn at its end.
    """
    if item.whole != "conversation":
        return item
    assert isinstance(item.response, str)
    prompt, response, is_ended = last_turn(tokenizer, item.response, param="response")
    finished = is_ended or item.finished is not False
    return item.model_copy(update={"prompt": prompt, "response": response, "finished": finished})


def sequence_tokens(
    prompt_ids: Ids, response_ids: Ids, suffix_ids: Ids, *, predicts: bool
) -> tuple[Ids, Ids, Ids]:
    """Cuts a sequence whose tokens are all scored (`whole: sequence`).

    Args:
        prompt_ids: The prompt's tokens, if it has any.
        response_ids: The response's.
        suffix_ids: What a reward model reads after the response.
        predicts: Whether the model predicts tokens. Then the first token has no reward, because
            nothing predicts it. A value head stands at every token.

    Returns:
        The ids that are read before those that are scored; these; and the ids behind them. A
        sequence that brings the suffix itself gets no second one.
    """
    ids = np.concatenate([prompt_ids, response_ids]).astype(np.int64)
    num_suffix = len(suffix_ids)
    if num_suffix and ids[-num_suffix:].tolist() == suffix_ids.tolist():
        suffix_ids = suffix_ids[:0]
    num_unscored = int(predicts)
    return ids[:num_unscored], ids[num_unscored:], suffix_ids


def num_first_text(
    item: Item, tokenizer: Tokenizer, prompt_ids: Ids, response_ids: Ids, suffix_ids: Ids
) -> int:
    """How many tokens of a sequence an encoder reads as the first text of a pair, the suffix too
    if there is no second text.

    A prompt and a response are the two texts of a pair. Ids in one piece are a pair if they hold
    the tokenizer's separator. A text in one piece is one text, whatever it spells.

    Raises:
        UnsupportedText: The ids hold several separators.
    """
    if len(prompt_ids) and len(response_ids):
        return len(prompt_ids)
    ids = np.concatenate([prompt_ids, response_ids]).astype(np.int64)
    starts: list[int] = []
    if tokenizer.has_segments and not isinstance(item.response, str):
        starts = second_texts(ids, tokenizer.around_pair)
    if len(starts) > 1:
        raise UnsupportedText(
            f"the ids hold {len(starts)} separators of texts, and the model is to be told which "
            "tokens are of the second text of a pair: send `prompt` and `response`",
            param="response",
        )
    return starts[0] if starts else len(ids) + len(suffix_ids)
