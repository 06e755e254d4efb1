"""What a model's modules say about positions: tables of them, and where they begin.

It knows modules, and no architecture by name.
"""

from __future__ import annotations

from typing import Any

import torch

_MOST_LEADING = 8  # rows of a table before the first position's


def padding_position(model: Any, config: Any) -> int | None:
    """Where the positions of RoBERTa and its kin begin: behind the row of their table that padding
    reads, within the same number of rows.

    Args:
        model: The model.
        config: Its text configuration.

    Returns:
        The row of padding, which is also the id of its token; None for other models.
    """
    num_positions = getattr(config, "max_position_embeddings", None)
    tokens = model.get_input_embeddings()
    for module in model.modules():
        is_table = isinstance(module, torch.nn.Embedding) and module is not tokens
        if is_table and module.num_embeddings == num_positions:
            padding: int | None = module.padding_idx
            return padding
    return None


def has_table(trunk: Any, embedding: Any, num_positions: int) -> bool:
    """Whether the trunk has a table, learned or computed, of so many positions.

    Args:
        trunk: The layers, and what is in front of them.
        embedding: The embedding of tokens, which is no such table.
        num_positions: The longest row.
    """
    for module in trunk.modules():
        if module is embedding:
            continue
        tables = list(module.buffers(recurse=False))
        if isinstance(module, torch.nn.Embedding):
            tables.append(module.weight)
        for table in tables:
            # OPT's table, for one, has two rows before the first position's.
            num_leading = table.shape[0] - num_positions if table.dim() == 2 else -1
            if 0 <= num_leading <= _MOST_LEADING:
                return True
    return False
