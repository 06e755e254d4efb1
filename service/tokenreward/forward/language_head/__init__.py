"""A language model's head on chosen rows of hidden states, without a matrix [rows, vocabulary].

    tiling.py      how the product of rows and vocabulary is cut into tiles
    reduction.py   what is kept of a tile: logsumexps, entropies
    ranking.py     what else may be kept: the largest logits, and the rank of one token
    head.py        LanguageHead, which multiplies the tiles and merges what is kept

It knows one head and its rows, and no rows of requests.
"""

from tokenreward.forward.language_head.head import (
    LanguageHead,
    half_product,
    states_before_head,
)
from tokenreward.forward.language_head.ranking import Ranking, best, ranks_of

__all__ = [
    "LanguageHead",
    "Ranking",
    "best",
    "half_product",
    "ranks_of",
    "states_before_head",
]
