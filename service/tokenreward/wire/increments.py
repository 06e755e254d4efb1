"""Which rewards of tokens must not be added up, although trainers do that without a word.

Returns, GAE and group means are sums over tokens, and want increments. A value head at every token
gives levels: each is the judgement of the whole prefix, and their sum is the score times the
length. The type `reward_model` with the credit `values` gives these, unless its option `red` is
set. The credit `discount` gives returns, which are such sums already.

This module knows the names of types, credits and options, and neither scorers nor numbers.
"""

from __future__ import annotations

LEVELS_TYPE = "reward_model"


def why_not_added_up(
    scorer: str, *, type_: str | None, credit: str | None, is_red: bool
) -> str | None:
    """What is wrong with a sum of a scorer's rewards over tokens.

    Args:
        scorer: The scorer's name, for the sentence.
        type_: Its type.
        credit: The rule that its rewards are made by.
        is_red: Whether its option `red` is set.

    Returns:
        A sentence; None if they may be added up.
    """
    if credit == "discount":
        return (
            f"`{scorer}` under the credit `discount` gives returns, which must not be added up "
            "over tokens: ask for another credit, and set the advantages' own `gamma`"
        )
    if type_ == LEVELS_TYPE and credit == "values" and not is_red:
        return (
            f"`{scorer}` under the credit `values` gives levels, whose sum grows with the "
            "length: ask for its increments with the option `red`, or for another credit "
            "(`last`, `uniform`)"
        )
    return None
