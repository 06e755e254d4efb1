"""How the product of hidden states and a vocabulary is cut into tiles, so that the workspace of the
loop over them is bounded, whatever the model and the batch.

It knows sizes and no tensors.
"""

from __future__ import annotations

FLOAT_BYTES = 4

# The rows x columns of a tile of logits. On a CPU it is 4 MiB, within its cache, and square: a
# product of 1024 rows takes MKL 5 to 12 % less time than one of 256 rows and 4096 columns. On a GPU
# there are few calls, and the logits still fit the L2 cache (32 MiB).
TILES = {"cpu": (1024, 1024), "cuda": (1024, 8192)}

# At most, these live at a time:
# - so many tiles of logits: the logits, the logits over a temperature, and what logsumexp and
#   entropy make of them; or the logits and the keys that rank them (8 bytes each);
_LIVE_TILES = 5
# - a tile of weights and a tile of rows as float32, where they are converted;
_CONVERTED_WEIGHT_BYTES = 32 * 2**20
_CONVERTED_ROW_BYTES = 8 * 2**20
# - the rows of a block, where they are picked from others;
BLOCK_BYTES = 24 * 2**20
# - the results of a block, of each tile of columns: three times, while they are merged.
_RESULT_BYTES = 8 * 2**20
# This bound follows from the above. The tests count the bytes of the loop and hold it to the bound.
MAX_WORKSPACE_BYTES = (
    _LIVE_TILES * FLOAT_BYTES * max(rows * columns for rows, columns in TILES.values())
    + _CONVERTED_WEIGHT_BYTES
    + _CONVERTED_ROW_BYTES
    + BLOCK_BYTES
    + 3 * _RESULT_BYTES
)


def largest_tiles(
    device_type: str, weight: tuple[int, int, int], num_results: int, *, converts: bool
) -> tuple[int, int, int]:
    """How the product of hidden states and a vocabulary is cut, so that the workspace stays within
    `MAX_WORKSPACE_BYTES`.

    Args:
        device_type: "cpu" or "cuda".
        weight: Vocabulary size, hidden size, and bytes of one number.
        num_results: Numbers that a row gets of each tile.
        converts: Whether tiles of weights and rows are made float32.

    Returns:
        The rows of a tile of logits; its columns, which are vocabulary entries; and the rows of a
        block, for which each tile of weights is read once, a multiple of the rows of a tile.
    """
    vocab_size, hidden_size, num_bytes = weight
    rows, columns = TILES.get(device_type, TILES["cuda"])
    if converts:
        rows = min(rows, _CONVERTED_ROW_BYTES // (FLOAT_BYTES * hidden_size))
        columns = min(columns, _CONVERTED_WEIGHT_BYTES // (FLOAT_BYTES * hidden_size))
    columns = max(1, min(columns, vocab_size))
    num_tiles = -(-vocab_size // columns)
    by_results = _RESULT_BYTES // (FLOAT_BYTES * num_results * num_tiles)
    block = max(1, min(by_results, BLOCK_BYTES // (num_bytes * hidden_size)))
    rows = max(1, min(rows, block))
    return rows, columns, block - block % rows
