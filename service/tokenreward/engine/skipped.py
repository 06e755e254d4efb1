"""Rows that end where the model's own class pools.

A classifier of transformers passes over padding at the end of a row, and where padding is EOS, over
the end-of-turn of a response. It was trained so: its head never saw that token. Such tokens are cut
off the row before it is read. Afterwards they are put back into the outputs as what they are to the
class: a value at one of them is the pooled value, and no attention is paid to them. No scorer needs
to know of it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tokenreward.contract import Needs, Outputs, Row


def without_skipped(row: Row, needs: Needs, skipped_id: int | None) -> Row:
    """The row up to its last token that is not skipped.

    Args:
        row: A row of a scorer.
        needs: What is wanted of it. It is left as it is unless its last token is pooled.
        skipped_id: The token that is skipped (see `skipped_token`).
    """
    if skipped_id is None or not (needs.pooled or needs.values):
        return row
    read = np.flatnonzero(row.ids != skipped_id)
    num_read = max(row.start, int(read[-1]) + 1 if len(read) else 0)
    return replace(row, ids=row.ids[:num_read], stop=min(row.stop, num_read))


def with_skipped(outputs: Outputs, num_skipped: int, num_scored: int) -> Outputs:
    """The outputs of a row with those of the tokens that were cut off it.

    Args:
        outputs: Of the row that was read.
        num_skipped: How many tokens were cut off.
        num_scored: How many of them are tokens whose outputs are wanted.

    Returns:
        Outputs whose `values` go on with the pooled value, and whose attention to the tokens that
        were cut off is 0.
    """
    if not num_skipped:
        return outputs
    values, attention = outputs.values, dict(outputs.attention)
    if values is not None:
        assert outputs.pooled is not None
        values = np.append(values, np.full(num_scored, outputs.pooled, dtype=values.dtype))
    for reading, row_of_attention in attention.items():
        num_zeros = num_scored if reading == "mean_step" else num_skipped
        zeros = np.zeros(num_zeros, dtype=row_of_attention.dtype)
        attention[reading] = np.append(row_of_attention, zeros)
    return replace(outputs, values=values, attention=attention)
