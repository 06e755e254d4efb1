"""The tokens of answers that an option spells: `Yes`, ` yes`, `+`, a grade.

A request sends its spellings once, and they are read for every one of its items. So each is short,
and a list is read once. This module knows no scorer and no logits.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from tokenreward.contract import TokenizerView
from tokenreward.errors import UnsupportedText

MAX_SPELLINGS = 100  # of a list: each is tokenised, and read from the logits, by itself
MAX_SPELLING_CHARACTERS = 256  # hardly any token has more

Spelling = Annotated[str, StringConstraints(max_length=MAX_SPELLING_CHARACTERS)]


def single_tokens(
    name: str, spellings: list[str], tokenizer: TokenizerView, *, need_all: bool
) -> list[int]:
    """The distinct tokens of one list of spellings.

    Args:
        name: The option that spells them, for errors.
        spellings: The spellings. One that is not one token cannot be read.
        tokenizer: The checkpoint's.
        need_all: Whether each must be a token. If not, one of them is enough.

    Raises:
        UnsupportedText: A spelling that must be a token is none.
    """
    tokens = [tokenizer.single(text) for text in spellings]
    if need_all and None in tokens:
        place = tokens.index(None)
        pieces = tokenizer.pieces(spellings[place], param=None)[0].tolist()
        raise UnsupportedText(f"option `{name}[{place}]` must be one token, here it is {pieces}")
    distinct = list(dict.fromkeys(token for token in tokens if token is not None))
    if not distinct:
        raise UnsupportedText(
            f"none of the default spellings of `{name}` is a single token; set it"
        )
    return distinct
